package cnilint

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// ipam is the part of the key "ipam" that usernet's and host-local's schema
// have in common.
type ipam struct {
	Type   string `json:"type"`
	Ranges [][]struct {
		Subnet string `json:"subnet"`
	} `json:"ranges"`
	Subnet string `json:"subnet"` // the older form
	// DaemonSocketPath is of the IPAM plugin dhcp.
	DaemonSocketPath string `json:"daemonSocketPath"`
}

// subnets returns what can be understood of them.
func (i ipam) subnets() []netip.Prefix {
	texts := []string{i.Subnet}
	for _, set := range i.Ranges {
		for _, r := range set {
			texts = append(texts, r.Subnet)
		}
	}
	var all []netip.Prefix
	for _, t := range texts {
		if p, err := netip.ParsePrefix(t); err == nil {
			all = append(all, p.Masked())
		}
	}
	return all
}

// Parse reads configurations. What is wrong with their form is told by
// [Set.Lint], where the rest is still judged as far as it can be read.
func Parse(files []File) *Set {
	s := &Set{}
	for _, f := range files {
		s.lists = append(s.lists, parseList(f))
	}
	return s
}

func (l *list) unreadable(key, what, fix string) {
	l.unreadables = append(l.unreadables, Finding{
		Severity: Error, Check: "form", File: l.path, Key: key, What: what, Fix: fix,
	})
}

func parseList(f File) *list {
	l := &list{path: f.Path, dir: f.Dir}
	if err := json.Unmarshal(f.Data, &l.keys); err != nil || l.keys == nil {
		why := "it is null"
		if err != nil {
			why = position(f.Data, err)
		}
		l.unreadable("", "no runtime can load it: not a JSON object: "+why, "mend the JSON there")
		return l
	}
	l.read("name", &l.name)
	l.read("cniVersion", &l.version)
	l.read("cniVersions", &l.versions)
	_, hasPlugins := l.keys["plugins"]
	_, hasType := l.keys["type"]
	switch {
	case isList(f.Path) && !hasPlugins && hasType:
		l.unreadable("plugins", "it is one plugin, which runtimes read from *.conf only", `put it into "plugins": [ … ], with cniVersion and name outside`)
	case !isList(f.Path) && hasPlugins:
		l.unreadable("plugins", "it is a list, which runtimes read from *.conflist only", fmt.Sprintf("mv %[1]s %[1]s.conflist", f.Path))
	}
	raw := []json.RawMessage{f.Data}
	if hasPlugins || !hasType {
		raw = nil
		l.read("plugins", &raw)
		if len(raw) == 0 {
			l.unreadable("plugins", "no runtime can load it: there are no plugins in it", "usernet cni conflist prints one that works")
		}
	}
	if l.name == "" {
		l.unreadable("name", "no runtime can load it: the network has no name", `add "name": "usernet"`)
	}
	for i, r := range raw {
		l.addPlugin(i, r)
	}
	return l
}

// read decodes one of the list's keys.
func (l *list) read(key string, into any) {
	raw, ok := l.keys[key]
	if !ok {
		return
	}
	if err := json.Unmarshal(raw, into); err != nil {
		l.unreadable(key, fmt.Sprintf("no runtime can load it: %s: %v", short(raw), err), "correct the value's type")
	}
}

func (l *list) addPlugin(index int, raw json.RawMessage) {
	p := &plugin{list: l, index: index}
	fault := func(key, what, fix string) {
		l.unreadable(key, what, fix)
		l.unreadables[len(l.unreadables)-1].Plugin = &p.index
	}
	if err := json.Unmarshal(raw, &p.keys); err != nil || p.keys == nil {
		fault("", "no runtime can load the list: the entry is not an object: "+short(raw), "write an object with a type")
		return
	}
	if err := json.Unmarshal(p.keys["type"], &p.typ); err != nil || p.typ == "" {
		fault("type", "no runtime can load the list: the entry has no type", `add "type": the name of the plugin's executable`)
	}
	if strings.ContainsRune(p.typ, '/') {
		fault("type", fmt.Sprintf("no runtime finds %q: a type is a file name, not a path", p.typ), "write the name alone, and give its directory to the runtime")
		return
	}
	if c, ok := p.keys["capabilities"]; ok {
		if err := json.Unmarshal(c, &p.capabilities); err != nil {
			fault("capabilities", fmt.Sprintf("no runtime can load the list: %v", err), `write {"portMappings": true, …}`)
		}
	}
	if i, ok := p.keys["ipam"]; ok && json.Unmarshal(i, &p.ipam) != nil {
		p.ipam = ipam{} // another plugin's schema, or a fault that ours will tell
	}
	l.plugins = append(l.plugins, p)
}

// text returns the value of a key that is a string, else "".
func (p *plugin) text(key string) string {
	var s string
	if json.Unmarshal(p.keys[key], &s) != nil {
		return ""
	}
	return s
}

// socket returns the daemon's socket, "" for the default.
func (p *plugin) socket() string { return p.text("socket") }

// defaultDHCPSocket is where the daemon of the IPAM plugin dhcp serves unless
// it is told otherwise.
const defaultDHCPSocket = "/run/cni/dhcp.sock"

// dhcpSocket returns the socket of the daemon that the IPAM plugin dhcp asks;
// "" when that is not the plugin's.
func (p *plugin) dhcpSocket() string {
	switch {
	case p.ipam.Type != "dhcp":
		return ""
	case p.ipam.DaemonSocketPath != "":
		return p.ipam.DaemonSocketPath
	}
	return defaultDHCPSocket
}

// declares reports whether runtimes give the plugin this capability's argument.
func (p *plugin) declares(capability string) bool { return p.capabilities[capability] }

// position says where in the text a fault of JSON is.
func position(data []byte, err error) string {
	offset := int64(-1)
	switch e := err.(type) { //nolint:errorlint // json.Unmarshal returns these bare
	case *json.SyntaxError:
		offset = e.Offset
	case *json.UnmarshalTypeError:
		offset = e.Offset
	}
	if offset < 0 || offset > int64(len(data)) {
		return err.Error()
	}
	head := string(data[:offset])
	return fmt.Sprintf("line %d: %v", strings.Count(head, "\n")+1, err)
}

// short gives a value for a message.
func short(raw json.RawMessage) string {
	const most = 60
	s := strings.Join(strings.Fields(string(raw)), " ")
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
