package plugin

import (
	"context"
	"path/filepath"
	"strings"
)

// Names of the reference plugins under which the executable can be installed
// (see the package comment).
const (
	nameBandwidth = "bandwidth"
	nameBridge    = "bridge"
	nameDNSName   = "dnsname"
	nameFirewall  = "firewall"
	nameHostLocal = "host-local"
	nameLoopback  = "loopback"
	namePortmap   = "portmap"
	nameTuning    = "tuning"
	nameNative    = "usernet"
)

// DropInNames are the names of reference plugins that the executable answers
// to, sorted. Under any other name it is the plugin of type "usernet".
var DropInNames = []string{
	nameBandwidth, nameBridge, nameDNSName, nameFirewall, nameHostLocal, nameLoopback, namePortmap, nameTuning,
}

// referenceVersion is the release of the reference plugins whose behaviour the
// drop-in names have. Runtimes read it to learn what they may ask for: nerdctl
// of firewall (1.1.0 same-bridge, 1.7.1 isolated), Nomad of bridge (1.3.0).
const referenceVersion = "v1.9.1"

// verb carries out one verb of an invocation whose configuration was judged.
type verb func(*invocation, context.Context) error

// program is what the executable is under one name.
type program struct {
	name     string
	schema   *schema
	verbs    map[string]verb // all but VERSION
	loopback bool            // CNI_IFNAME may be "lo"
}

// attachVerbs are those of the plugins that make an interface.
var attachVerbs = map[string]verb{
	cmdAdd: (*invocation).add, cmdDel: (*invocation).del, cmdCheck: (*invocation).check,
	cmdGC: (*invocation).gc, cmdStatus: (*invocation).status,
}

// programOf returns what the executable is when it was started as argv0.
func programOf(argv0 string) *program {
	switch filepath.Base(argv0) {
	case nameBandwidth:
		return bandwidthProgram()
	case nameBridge:
		return &program{name: nameBridge, schema: bridgeSchema(), verbs: attachVerbs}
	case nameDNSName:
		return dnsnameProgram()
	case nameFirewall:
		return firewallProgram()
	case nameHostLocal:
		return hostLocalProgram()
	case nameLoopback:
		return loopbackProgram()
	case namePortmap:
		return portmapProgram()
	case nameTuning:
		return tuningProgram()
	}
	return &program{name: nameNative, schema: &nativeSchema, verbs: attachVerbs}
}

// about is the first line that a start by hand prints, in the shape that
// nerdctl and Nomad parse.
func (p *program) about(release string) string {
	line := "CNI " + p.name + " plugin "
	if p.name == nameNative {
		return line + release + "\n"
	}
	return line + referenceVersion + "\n"
}

// provenance is the last line that a start by hand prints: whose plugin it is.
func (p *program) provenance(release string) string {
	if p.name == nameNative {
		return ""
	}
	return strings.Join([]string{"Served by usernet", release + ",", "in place of the reference plugin"}, " ") + "\n"
}
