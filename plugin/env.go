package plugin

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"
)

// The verbs, as CNI_COMMAND spells them; upper case only.
const (
	cmdAdd     = "ADD"
	cmdDel     = "DEL"
	cmdCheck   = "CHECK"
	cmdGC      = "GC"
	cmdStatus  = "STATUS"
	cmdVersion = "VERSION"
)

// parameters are what one invocation gets by its environment (SPEC.md
// "Parameters").
type parameters struct {
	Command     string
	ContainerID string
	Netns       string
	IfName      string
	Args        string // CNI_ARGS as it came
	Path        string // CNI_PATH as it came
	// NetnsOverride allows CNI_NETNS to be the plugin's own namespace. It is
	// not in the specification; the reference plugins share it.
	NetnsOverride bool
}

// required says which variables a verb cannot do without. CNI_NETNS is
// optional for DEL: containerd deletes without on every start. CNI_PATH is
// needed only to run an IPAM plugin, and is missed there.
var required = map[string][]string{
	cmdAdd:     {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
	cmdCheck:   {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
	cmdDel:     {"CNI_CONTAINERID", "CNI_IFNAME"},
	cmdGC:      {},
	cmdStatus:  {},
	cmdVersion: {},
}

// nameChars is the alphabet of container IDs and network names (SPEC.md).
var nameChars = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

// readParameters judges the environment. All that is wrong is named in one
// error of code 4. loopback says that the interface may be called "lo".
func readParameters(env environ, loopback bool) (parameters, error) {
	p := parameters{
		Command:     env.get("CNI_COMMAND"),
		ContainerID: env.get("CNI_CONTAINERID"),
		Netns:       env.get("CNI_NETNS"),
		IfName:      env.get("CNI_IFNAME"),
		Args:        env.get("CNI_ARGS"),
		Path:        env.get("CNI_PATH"),
	}
	if v := env.get("CNI_NETNS_OVERRIDE"); v == "1" || strings.EqualFold(v, "true") {
		p.NetnsOverride = true
	}
	need, known := required[p.Command]
	if !known {
		return p, fail(types.ErrInvalidEnvironmentVariables,
			"invalid environment: CNI_COMMAND=%q: want one of ADD, DEL, CHECK, GC, STATUS, VERSION", p.Command)
	}
	var faults []string
	for _, name := range need {
		if env.get(name) == "" {
			faults = append(faults, name+" is missing")
		}
	}
	if len(need) > 0 {
		faults = append(faults, p.faults(loopback)...)
	}
	if len(faults) > 0 {
		return p, fail(types.ErrInvalidEnvironmentVariables,
			"invalid environment for %s: %s", p.Command, strings.Join(faults, "; "))
	}
	return p, nil
}

// faults lists what is wrong with the values that are there.
func (p *parameters) faults(loopback bool) []string {
	var faults []string
	if p.ContainerID != "" && !nameChars.MatchString(p.ContainerID) {
		faults = append(faults, fmt.Sprintf(
			"CNI_CONTAINERID=%q: want letters, digits, '_', '.' and '-', starting with a letter or digit", p.ContainerID))
	}
	if p.IfName != "" {
		if why := ifNameFault(p.IfName); why != "" && !(loopback && p.IfName == "lo") {
			faults = append(faults, fmt.Sprintf("CNI_IFNAME=%q: %s", p.IfName, why))
		}
	}
	return faults
}

// ifNameFault says why the kernel would refuse an interface name (dev_valid_name
// in net/core/dev.c), or "".
func ifNameFault(name string) string {
	switch {
	case len(name) > 15:
		return fmt.Sprintf("%d bytes long, the kernel allows 15", len(name))
	case name == "." || name == "..":
		return "not a name for an interface"
	case strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) }):
		return "contains '/', ':' or white space"
	case name == "lo" || name == "all" || name == "default":
		return "reserved by the kernel"
	}
	return ""
}

// environ is a process environment in the form of os.Environ.
type environ []string

// get returns the last value of a variable, or "".
func (e environ) get(name string) string {
	for _, v := range slices.Backward(e) {
		if v, ok := strings.CutPrefix(v, name+"="); ok {
			return v
		}
	}
	return ""
}

// with returns a copy in which the variable has the value.
func (e environ) with(name, value string) environ {
	out := make(environ, 0, len(e)+1)
	for _, kv := range e {
		if !strings.HasPrefix(kv, name+"=") {
			out = append(out, kv)
		}
	}
	return append(out, name+"="+value)
}
