package cnilint

import (
	"encoding/json"
	"fmt"
	"slices"
)

// chainable are the reference plugins that adjust what an earlier one made.
// Those that need its result fail when they are first.
var chainable = map[string]bool{
	"bandwidth": true, "portmap": true, "firewall": true, "tuning": true, "dnsname": true, "sbr": true, "vrf": true,
}

// makers are the reference plugins that make the container's interface.
var makers = []string{"bridge", "ptp", "macvlan", "ipvlan", "vlan", "host-device", "tap", "dummy"}

// chain judges the plugins around p, which connects the container to usernet.
func (j *judge) chain(p *plugin) {
	for _, q := range p.list.plugins {
		switch {
		case q == p:
		case j.ours(q):
			if j.connects(q) {
				j.at(q, Error, "chain", "type", fmt.Sprintf("ADD fails: plugins[%d] has made the interface already", p.index),
					fmt.Sprintf("delete plugins[%d], or move it to a list of its own", q.index))
			}
		case slices.Contains(makers, q.typ):
			j.at(q, Error, "chain", "type", fmt.Sprintf("ADD fails: %s and %s both make the container's interface, under one name", p.typ, q.typ),
				fmt.Sprintf("delete plugins[%d], or move it to a list of its own", q.index))
		case chainable[q.typ] && q.index < p.index && q.typ != "tuning":
			j.at(q, Error, "chain", "type", fmt.Sprintf("ADD fails: %s works on the result of a plugin before it, and there is none", q.typ),
				fmt.Sprintf("move plugins[%d] to the front of the list", p.index))
		case q.index > p.index:
			j.after(p, q)
		}
	}
}

// strangers judges usernet's plugins in a list whose interface another makes.
func (j *judge) strangers(l *list) {
	for _, q := range l.plugins {
		maker := slices.IndexFunc(l.plugins, func(p *plugin) bool { return slices.Contains(makers, p.typ) })
		if maker < 0 || !j.ours(q) || q.typ == "tuning" || q.typ == "loopback" {
			continue // these work on any interface
		}
		p := l.plugins[maker]
		j.at(q, Error, "chain", "type",
			fmt.Sprintf("ADD fails: %s is usernet's (%s), and amends an interface of usernet's alone; %s is another's (%s)", q.typ, j.facts.Binaries[q.typ].Path, p.typ, j.facts.Binaries[p.typ].Path),
			"put one directory before the other on the runtime's plugin path, so that all are of one kind")
	}
}

// after judges a reference plugin that runs when p has made the interface.
func (j *judge) after(p, q *plugin) {
	rule, known := map[string]func(p, q *plugin){
		"bandwidth": j.bandwidth,
		"portmap":   j.portmap,
		"firewall":  j.firewall,
		"dnsname":   j.dnsname,
		"tuning":    j.tuning,
	}[q.typ]
	switch {
	case known:
		rule(p, q)
	case q.typ == "sbr" || q.typ == "vrf" || q.typ == "loopback":
		j.at(q, OK, "chain", "type", q.typ+" works in the container's namespace alone, and runs after usernet", "")
	default:
		j.at(q, OK, "chain", "type", fmt.Sprintf("%s is not known here and was not judged", q.typ), "")
	}
}

// instead is the edit that lets usernet do what a chained plugin was for.
func (j *judge) instead(p, q *plugin, capability string) string {
	fix := fmt.Sprintf("delete plugins[%d]", q.index)
	switch {
	case !j.honours(capability):
		return fix + fmt.Sprintf("; usernet has nothing in place of it: it does not honour %q", capability)
	case p.declares(capability):
		return fix + "; usernet does it itself"
	}
	return fix + fmt.Sprintf(`; usernet does it itself: add "%s": true to plugins[%d].capabilities`, capability, p.index)
}

func (j *judge) bandwidth(p, q *plugin) {
	what := "ADD fails for every container with a limit: bandwidth shapes the host's end of a veth pair, and there is none (container interface eth0 has no veth peer)"
	static := slices.ContainsFunc([]string{"ingressRate", "egressRate"}, func(key string) bool {
		return len(q.keys[key]) > 0 && string(q.keys[key]) != "0"
	})
	if static {
		what = "ADD fails: bandwidth shapes the host's end of a veth pair, and there is none (container interface eth0 has no veth peer)"
	}
	j.at(q, Error, "chain-bandwidth", "type", what, j.instead(p, q, "bandwidth"))
}

func (j *judge) portmap(p, q *plugin) {
	if !q.declares("portMappings") {
		j.at(q, Warning, "chain-portmap", "capabilities.portMappings",
			"portmap gets no ports, as it does not declare the capability; it does nothing", j.instead(p, q, "portMappings"))
		return
	}
	j.at(q, Error, "chain-portmap", "type",
		"published ports lead nowhere, and ADD succeeds: portmap redirects them to the container's address, to which the host has no route; its rules also take them away from usernet",
		j.instead(p, q, "portMappings"))
}

func (j *judge) firewall(p, q *plugin) {
	if policy := q.text("ingressPolicy"); policy != "" && policy != "open" {
		j.at(q, Error, "chain-firewall", "ingressPolicy",
			fmt.Sprintf("with %q firewall takes the first interface of usernet's result for a bridge of the host, and drops what the host forwards to its own interface of that name (eth0)", policy),
			fmt.Sprintf("delete plugins[%d]; containers of other networks cannot reach usernet's in any case", q.index))
		return
	}
	j.at(q, Warning, "chain-firewall", "type",
		"useless: it lets the host forward packets of the container, and usernet has none forwarded; it costs time on each ADD and leaves rules behind",
		fmt.Sprintf("delete plugins[%d]", q.index))
}

func (j *judge) dnsname(p, q *plugin) {
	j.at(q, Error, "chain-dnsname", "type",
		"ADD fails: dnsname binds its name server to the bridge that it takes the first interface of the result for, and the host has none of that name",
		j.instead(p, q, "aliases"))
}

// tuning is harmless but for what a TUN does not have: an Ethernet address.
func (j *judge) tuning(p, q *plugin) {
	const noMAC = "a TUN has no Ethernet address"
	var args struct {
		CNI struct {
			MAC string `json:"mac"`
		} `json:"cni"`
	}
	if json.Unmarshal(q.keys["args"], &args) != nil {
		args.CNI.MAC = ""
	}
	set := func(key string) bool { return q.text(key) != "" }
	switch {
	case p.typ != Type || p.text("device") == "tap":
		j.at(q, OK, "chain-tuning", "type", "tuning works on usernet's TAP", "")
	case set("mac") || args.CNI.MAC != "":
		key := "mac"
		if !set("mac") {
			key = "args.cni.mac"
		}
		j.at(q, Error, "chain-tuning", key, "ADD fails: tuning cannot set the address: "+noMAC, otherDevice(fmt.Sprintf("delete %q", key)))
	case q.declares("mac"):
		j.at(q, Warning, "chain-tuning", "capabilities.mac", "ADD fails for every container that asks for a MAC address: "+noMAC,
			otherDevice(`delete "mac" from the capabilities`))
	default:
		j.at(q, OK, "chain-tuning", "type", "tuning's sysctls work after usernet; a container with CNI_ARGS MAC= (podman --mac-address) would fail: "+noMAC, "")
	}
}

// otherDevice adds the other way out.
func otherDevice(fix string) string { return fix + `, or give usernet "device": "tap"` }
