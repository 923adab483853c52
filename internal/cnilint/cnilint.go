package cnilint

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
)

// Type is the plugin type of usernet in configurations.
const Type = "usernet"

// Severity says how bad a [Finding] is.
type Severity string

// The severities.
const (
	// OK was looked at and is in order.
	OK Severity = "ok"
	// Warning costs a feature, or bites only some runtimes or containers.
	Warning Severity = "warning"
	// Error makes every container fail, or breaks one that seems to run.
	Error Severity = "error"
)

// Finding is one thing that was found.
type Finding struct {
	Severity Severity `json:"severity"`
	// Check is the rule's name, stable between versions.
	Check string `json:"check"`
	// File is the path as it was given to [Parse]; empty: the machine.
	File string `json:"file,omitempty"`
	// Plugin is the index in the list's plugins; nil: the list as a whole.
	Plugin *int `json:"plugin,omitempty"`
	// Key is the key that the finding is about, with dots below the plugin or
	// the list; may be empty.
	Key string `json:"key,omitempty"`
	// What happens, and to whom.
	What string `json:"what"`
	// Fix is the edit or the command that mends it; empty for OK.
	Fix string `json:"fix,omitempty"`
}

// Where is the place in words: "plugins[1].ipam", or "" for a whole file.
func (f Finding) Where() string {
	if f.Plugin == nil {
		return f.Key
	}
	at := fmt.Sprintf("plugins[%d]", *f.Plugin)
	if f.Key != "" {
		at += "." + f.Key
	}
	return at
}

// File is a configuration to judge.
type File struct {
	// Path tells the form: a list for *.conflist, else one plugin.
	Path string
	Data []byte
	// Dir is the directory if all of it is being judged, as a runtime that takes
	// the first file would see it; else empty.
	Dir string
}

// Facts are what is known of the machine and of the plugin. Every rule whose
// fact is missing is left out.
type Facts struct {
	// Keys of a configuration of type usernet. Empty: unknown keys are not
	// looked for.
	Keys []string
	// Versions of the CNI specification that the plugin speaks, oldest first.
	Versions []string
	// Judge returns what the plugin would say of a configuration at ADD. It must
	// be a pure function.
	Judge func(conf []byte) error
	// PublishMode is what the plugin does without the key "publish".
	PublishMode string

	// BinDirs are where plugins were looked for.
	BinDirs []string
	// Binaries are the executables by type. A type of [Set.Types] that is not
	// there was not found; nil: nothing was looked for.
	Binaries map[string]Binary
	// Sockets are the daemons by the path in the configuration, "" for none.
	Sockets map[string]Daemon
	// DHCP says at which of [Set.DHCPSockets] a daemon serves.
	DHCP map[string]bool
	// NoProgram says that there is no usernet in $PATH that the plugin could
	// start as daemon.
	NoProgram bool
	// TUN is /dev/net/tun.
	TUN *Device
	// Podman is podman as root; nil: there is none.
	Podman *Podman
}

// Binary is an executable found for a type.
type Binary struct {
	Path string
	// Ours says that it is usernet's plugin, under whatever name.
	Ours bool
	// NotExecutable says that the file is no program, or not allowed to run.
	NotExecutable bool
	// Versions of the CNI specification that it says to speak. Empty: it was not
	// asked, or did not say.
	Versions []string
}

// Daemon is what was found at a socket.
type Daemon struct {
	// Path of the socket, also where the configuration has none.
	Path string
	// Running says that a daemon of usernet answers.
	Running bool
	// About is its version and state, in words.
	About string
	// Problem is why it could not be asked, or is not ready; empty: none.
	Problem string
}

// Device is the state of /dev/net/tun.
type Device struct {
	// Missing says that it is not there.
	Missing bool
	// ForAll says that every user may read and write it.
	ForAll bool
	// Mode is its permissions, like "0600", or why they are not known.
	Mode string
}

// Podman is what matters of podman's configuration.
type Podman struct {
	// Reserves says that podman binds published ports itself.
	Reserves bool
	// File is the last containers.conf that says so; empty: the default.
	File string
	// PluginDirs are where it looks for plugins; empty: the default.
	PluginDirs []string
}

// Set is what [Parse] read. It is immutable.
type Set struct {
	lists []*list
}

// list is one file.
type list struct {
	path, dir   string
	name        string
	version     string   // "" if absent
	versions    []string // cniVersions
	keys        map[string]json.RawMessage
	plugins     []*plugin
	unreadables []Finding
}

// plugin is one entry of a list's plugins.
type plugin struct {
	list         *list
	index        int
	typ          string
	keys         map[string]json.RawMessage
	capabilities map[string]bool
	ipam         ipam
}

// Types returns the types of plugins that runtimes will start for the set, IPAM
// plugins included, sorted.
func (s *Set) Types() []string {
	types := make(map[string]bool)
	for _, l := range s.lists {
		for _, p := range l.plugins {
			types[p.typ] = true
			if p.ipam.Type != "" && (p.typ != Type || p.ipam.Type != Type) {
				types[p.ipam.Type] = true
			}
		}
	}
	delete(types, "")
	return slices.Sorted(maps.Keys(types))
}

// Sockets returns the daemon's sockets, sorted; "" stands for the default. Any
// plugin may turn out to be usernet's.
func (s *Set) Sockets() []string { return s.all((*plugin).socket) }

// DHCPSockets returns the sockets of the daemons that IPAM plugins of type dhcp
// ask, sorted.
func (s *Set) DHCPSockets() []string {
	return slices.DeleteFunc(s.all((*plugin).dhcpSocket), func(path string) bool { return path == "" })
}

// all returns what the plugins say of one thing, sorted, each once.
func (s *Set) all(of func(*plugin) string) []string {
	said := make(map[string]bool)
	for _, l := range s.lists {
		for _, p := range l.plugins {
			said[of(p)] = true
		}
	}
	return slices.Sorted(maps.Keys(said))
}

// Lint judges the set: by file in the order given, then what files do to each
// other, then the machine. A file in which nothing is wrong has an OK.
func (s *Set) Lint(facts Facts) []Finding {
	j := &judge{facts: facts}
	for _, l := range s.lists {
		j.list(l)
	}
	j.across(s.lists)
	j.machine(s.lists)
	return j.found
}

// judge collects findings.
type judge struct {
	facts Facts
	found []Finding
}

// at adds a finding about a plugin.
func (j *judge) at(p *plugin, severity Severity, check, key, what, fix string) {
	index := p.index
	j.found = append(j.found, Finding{
		Severity: severity, Check: check, File: p.list.path, Plugin: &index, Key: key, What: what, Fix: fix,
	})
}

// about adds a finding about a whole list.
func (j *judge) about(l *list, severity Severity, check, key, what, fix string) {
	j.found = append(j.found, Finding{Severity: severity, Check: check, File: l.path, Key: key, What: what, Fix: fix})
}

// ours reports whether the plugin is usernet under any of its names.
func (j *judge) ours(p *plugin) bool {
	return p.typ == Type || j.facts.Binaries[p.typ].Ours
}

// connects reports whether the plugin makes the interface, and is usernet.
func (j *judge) connects(p *plugin) bool {
	return j.ours(p) && !chainable[p.typ] && p.typ != "loopback"
}

// delegates reports whether the plugin runs another for its addresses.
func (j *judge) delegates(p *plugin) bool {
	switch {
	case p.ipam.Type == "":
		return false
	case p.typ == Type:
		return p.ipam.Type != Type
	case p.typ == "bridge" && j.ours(p):
		return p.ipam.Type != Type && p.ipam.Type != "host-local" // whose place the daemon takes
	}
	return true
}

// first returns the list's plugin that connects the container to usernet, or
// nil.
func (j *judge) first(l *list) *plugin {
	for _, p := range l.plugins {
		if j.connects(p) {
			return p
		}
	}
	return nil
}

// list applies the rules for one file.
func (j *judge) list(l *list) {
	before := len(j.found)
	j.found = append(j.found, l.unreadables...)
	p := j.first(l)
	if p == nil {
		j.strangers(l)
		if len(j.found) == before {
			j.about(l, OK, "foreign", "", "no plugin of usernet in it: only its subnets and executables are looked at", "")
		}
		return
	}
	j.version(l, p)
	j.misplaced(l)
	for _, q := range l.plugins {
		switch {
		case q.typ == Type:
			j.strict(q)
			j.capabilities(q)
		case j.ours(q):
			j.value(q, q.keys)
		}
	}
	j.chain(p)
	j.spoken(l)
	bad := slices.ContainsFunc(j.found[before:], func(f Finding) bool { return f.Severity != OK })
	if !bad {
		j.about(l, OK, "list", "", fmt.Sprintf("network %s: nothing wrong", l.name), "")
	}
}

// isList reports whether runtimes read the file as a list of plugins.
func isList(path string) bool { return filepath.Ext(path) == ".conflist" }
