package cnilint

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// reference are the types that containernetworking-plugins has.
var reference = append([]string{"bandwidth", "portmap", "firewall", "tuning", "sbr", "vrf", "loopback", "host-local", "static", "dhcp"}, makers...)

// machine judges what the lists need of the machine.
func (j *judge) machine(lists []*list) {
	var ours []*plugin  // that connect
	var ports []*plugin // that publish
	for _, l := range lists {
		p := j.first(l)
		if p == nil {
			continue
		}
		ours = append(ours, p)
		for _, q := range l.plugins {
			if j.ours(q) && q.declares("portMappings") {
				ports = append(ports, q)
			}
		}
	}
	j.binaries(lists)
	j.sockets(ours)
	j.dhcp(ours)
	if len(ours) == 0 {
		return
	}
	j.device()
	j.podman(ports)
}

// add adds a finding about the machine.
func (j *judge) add(severity Severity, check, key, what, fix string) {
	j.found = append(j.found, Finding{Severity: severity, Check: check, Key: key, What: what, Fix: fix})
}

// binaries looks for the executable of each type, and tells each once.
func (j *judge) binaries(lists []*list) {
	if j.facts.Binaries == nil {
		return
	}
	dirs := strings.Join(j.facts.BinDirs, ", ")
	seen := make(map[string]bool)
	check := func(p *plugin, key, typ string) {
		if typ == "" || seen[typ] {
			return
		}
		seen[typ] = true
		b, found := j.facts.Binaries[typ]
		switch {
		case !found:
			j.at(p, Error, "binary", key, fmt.Sprintf("ADD fails, and podman refuses the file: there is no plugin %q in %s", typ, dirs), j.install(typ))
		case b.NotExecutable:
			j.at(p, Error, "binary", key, fmt.Sprintf("ADD fails: %s is not an executable file", b.Path), "chmod 0755 "+b.Path)
		case typ == Type && !b.Ours:
			j.at(p, Error, "binary", key, fmt.Sprintf("runtimes start %s, which is not usernet's plugin", b.Path), "move it away; then "+j.install(typ))
		default:
			j.at(p, OK, "binary", key, fmt.Sprintf("%s is %s", typ, b.Path), "")
		}
	}
	for _, l := range lists {
		for _, p := range l.plugins {
			check(p, "type", p.typ)
			if j.delegates(p) {
				check(p, "ipam.type", p.ipam.Type)
			}
		}
	}
}

// install is the command that brings a type's executable.
func (j *judge) install(typ string) string {
	dir := ""
	if len(j.facts.BinDirs) > 0 {
		dir = " --bin-dir " + j.facts.BinDirs[0]
	}
	switch {
	case typ == Type:
		return "usernet cni install" + dir
	case slices.Contains(reference, typ):
		return "apt-get install containernetworking-plugins, or name its directory with --bin-dir"
	case typ == "dnsname":
		return "apt-get install golang-github-containernetworking-plugin-dnsname, or name its directory with --bin-dir"
	}
	return "install it, or name its directory with --bin-dir"
}

// sockets judges the daemons that the plugins would talk to, each once.
func (j *judge) sockets(ours []*plugin) {
	seen := make(map[string]bool)
	for _, p := range ours {
		path := p.socket()
		d, looked := j.facts.Sockets[path]
		if !looked || seen[path] || len(path) > maxSocket {
			continue // one that is too long was told
		}
		seen[path] = true
		autostart := true
		if raw, ok := p.keys["autostart"]; ok && json.Unmarshal(raw, &autostart) != nil {
			continue // the plugin's own judgement tells it
		}
		start := "usernet daemon --socket " + d.Path
		switch {
		case len(d.Path) > maxSocket:
			j.at(p, Error, "daemon", "socket", fmt.Sprintf("the default socket %s is %d bytes long, the kernel allows %d (unix(7))", d.Path, len(d.Path), maxSocket),
				`add "socket": "/run/usernet/usernet.sock"`)
		case d.Problem != "":
			j.at(p, Error, "daemon", "socket", fmt.Sprintf("ADD fails: %s: %s", d.Path, d.Problem), "stop what serves the socket, then "+start)
		case d.Running:
			j.at(p, OK, "daemon", "socket", fmt.Sprintf("%s: %s", d.Path, d.About), "")
		case !autostart:
			j.at(p, Error, "daemon", "autostart", fmt.Sprintf("ADD fails: no daemon serves %s, and the plugin may not start one", d.Path), start)
		case j.facts.NoProgram:
			j.at(p, Warning, "daemon", "socket", fmt.Sprintf("no daemon serves %s, and the plugin finds no usernet in $PATH to start one", d.Path), "put usernet into $PATH, or run "+start)
		default:
			j.at(p, OK, "daemon", "socket", fmt.Sprintf("no daemon serves %s; the plugin starts one when it is needed", d.Path), "")
		}
	}
}

// dhcp looks for the daemons of the IPAM plugin dhcp, each once.
func (j *judge) dhcp(ours []*plugin) {
	seen := make(map[string]bool)
	for _, p := range ours {
		path := p.dhcpSocket()
		serves, looked := j.facts.DHCP[path]
		if !looked || seen[path] {
			continue
		}
		seen[path] = true
		if serves {
			j.at(p, OK, "dhcp", "ipam", "the daemon of the IPAM plugin dhcp serves "+path, "")
			continue
		}
		program, option := "dhcp", ""
		if b, found := j.facts.Binaries["dhcp"]; found {
			program = b.Path
		}
		if path != defaultDHCPSocket {
			option = " -socketpath " + path
		}
		j.at(p, Error, "dhcp", "ipam", fmt.Sprintf("ADD fails: the IPAM plugin dhcp asks its daemon, and none serves %s", path), program+" daemon"+option)
	}
}

func (j *judge) device() {
	const name = "/dev/net/tun"
	d := j.facts.TUN
	switch {
	case d == nil:
	case d.Missing:
		j.add(Error, "device", name, "ADD fails: the device is not there", "modprobe tun")
	case !d.ForAll:
		j.add(Warning, "device", name, fmt.Sprintf("its mode is %s: only plugins run by root can open it; those of rootless podman and nerdctl fail", d.Mode), "chmod 0666 "+name)
	default:
		j.add(OK, "device", name, "everybody may open it: "+d.Mode, "")
	}
}

// publishMode returns how p publishes ports.
func (j *judge) publishMode(p *plugin) string {
	var object struct {
		Mode string `json:"mode"`
	}
	if json.Unmarshal(p.keys["publish"], &object) == nil && object.Mode != "" {
		return object.Mode
	}
	return j.facts.PublishMode
}

// podman judges its reservation of ports: as root its monitor process listens
// on each published port after ADD, where usernet listens already.
func (j *judge) podman(ports []*plugin) {
	conf := j.facts.Podman
	if conf == nil {
		return
	}
	listens := slices.IndexFunc(ports, func(p *plugin) bool { return j.publishMode(p) == "listen" })
	if listens < 0 {
		return
	}
	p, where := ports[listens], "by default"
	if conf.File != "" {
		where = "by " + conf.File
	}
	if !conf.Reserves {
		j.at(p, OK, "podman-ports", "", "podman leaves published ports to the plugin, "+where, "")
		return
	}
	file := "/etc/containers/containers.conf"
	if conf.File != "" {
		file = conf.File
	}
	j.at(p, Warning, "podman-ports", "",
		fmt.Sprintf("rootful podman reserves published ports (%s), so podman run -p fails where usernet listens: bind: address already in use", where),
		fmt.Sprintf(`write "publish": {"mode": "auto"}, or into %s, below [engine]: enable_port_reservation = false`, file))
}
