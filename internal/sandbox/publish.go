package sandbox

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// DefaultHostAddr is where a published port listens when the specification
// names no address: reachable from this machine only, never from its network.
var DefaultHostAddr = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// maxPublishedPorts bounds one specification. Every port costs a listener, and
// a mistyped range should end in an error and not in a machine without
// descriptors. 4096 is a fifth of the usual hard limit of 20480 descriptors.
const maxPublishedPorts = 4096

// Publish is one port of the host that leads to one port of a sandbox.
type Publish struct {
	Proto string         // "tcp" or "udp"
	Host  netip.AddrPort // where the host listens; port 0: any free port
	Port  uint16         // the port inside the sandbox
}

// String writes p in the grammar that [ParsePublish] reads.
func (p Publish) String() string {
	return fmt.Sprintf("%s:%d/%s", p.Host, p.Port, p.Proto)
}

// PublishError says which specification of published ports is not understood
// and why.
type PublishError struct {
	Spec   string // what was given
	Reason string // what is wrong with it and how to write it
}

// Error implements error.
func (e *PublishError) Error() string {
	return fmt.Sprintf("publish %q: %s", e.Spec, e.Reason)
}

// ParsePublish reads the argument of -p. One specification is a list of items
// divided by commas, each of the form
//
//	[HOSTIP:]PORT[-END][:PORT[-END]][/tcp|/udp]
//
// The first port or range is the host's, the second the sandbox's; the second
// may be left out and is then the same as the first. Two ranges must be of the
// same length. HOSTIP is an address, IPv6 in brackets; without one the host
// listens on [DefaultHostAddr]. "HOSTIP::PORT" and a host port of 0 let the
// kernel choose a free port.
//
// Pasta's way of writing the address, "HOSTIP/PORTS", is understood too; such
// an address goes for the rest of its list. Errors are [*PublishError].
func ParsePublish(spec string) ([]Publish, error) {
	p := publishParser{spec: spec}
	rest := spec
	if addr, ports, ok := p.cutListAddr(spec); ok {
		host, err := p.addr(addr)
		if err != nil {
			return nil, err
		}
		p.listAddr, rest = host, ports
	}
	var all []Publish
	for _, item := range strings.Split(rest, ",") {
		some, err := p.item(item)
		if err != nil {
			return nil, err
		}
		if all = append(all, some...); len(all) > maxPublishedPorts {
			return nil, p.fault("more than %d ports in one specification", maxPublishedPorts)
		}
	}
	if err := p.noRepeats(all); err != nil {
		return nil, err
	}
	return all, nil
}

// publishParser holds what every part of one specification's parsing needs.
type publishParser struct {
	spec     string
	listAddr netip.Addr // from "ADDR/PORTS"; the zero Addr: none
}

func (p *publishParser) fault(format string, args ...any) error {
	return &PublishError{Spec: p.spec, Reason: fmt.Sprintf(format, args...)}
}

// cutListAddr divides pasta's ADDR/PORTS. A slash that is followed by a letter
// starts a protocol instead, as in 80/udp.
func (p *publishParser) cutListAddr(spec string) (addr, ports string, ok bool) {
	addr, ports, ok = strings.Cut(spec, "/")
	if !ok || addr == "" || ports == "" || strings.Contains(addr, ",") {
		return "", "", false
	}
	// "[::1]:8080:80/udp" has its slash behind a letter too; only a digit or
	// a colon (any free host port) can open PORTS.
	if c := ports[0]; c != ':' && (c < '0' || c > '9') {
		return "", "", false
	}
	return addr, ports, true
}

// item reads one element of the list.
func (p *publishParser) item(item string) ([]Publish, error) {
	if strings.TrimSpace(item) == "" {
		return nil, p.fault("no port given; write it as 8080, 8080:80 or 127.0.0.1:8080:80/udp")
	}
	rest, proto, err := p.proto(item)
	if err != nil {
		return nil, err
	}
	host, ports, err := p.hostAddr(rest)
	if err != nil {
		return nil, err
	}
	outer, inner, two := strings.Cut(ports, ":")
	if !two {
		inner = outer
	}
	if outer == "" && two { // docker's HOSTIP::PORT
		outer = "0"
	}
	hostPorts, err := p.portRange(outer, two)
	if err != nil {
		return nil, err
	}
	boxPorts, err := p.portRange(inner, false)
	if err != nil {
		return nil, err
	}
	if hostPorts.first == 0 { // one free port for each port of the sandbox
		hostPorts.last = 0
		hostPorts.count = boxPorts.count
	}
	if hostPorts.count != boxPorts.count {
		return nil, p.fault("%s is %d ports and %s is %d: both ranges must be of the same length",
			outer, hostPorts.count, inner, boxPorts.count)
	}
	if hostPorts.count > maxPublishedPorts {
		return nil, p.fault("more than %d ports in one specification", maxPublishedPorts)
	}
	return expand(host, proto, hostPorts, boxPorts), nil
}

func expand(host netip.Addr, proto string, outer, inner portRange) []Publish {
	list := make([]Publish, 0, outer.count)
	for i := range outer.count {
		hostPort := uint16(0)
		if outer.first != 0 {
			hostPort = outer.first + uint16(i)
		}
		list = append(list, Publish{
			Proto: proto,
			Host:  netip.AddrPortFrom(host, hostPort),
			Port:  inner.first + uint16(i),
		})
	}
	return list
}

// proto cuts "/tcp" or "/udp" off the end of an item.
func (p *publishParser) proto(item string) (rest, proto string, err error) {
	rest, proto, ok := strings.Cut(item, "/")
	if !ok {
		return item, "tcp", nil
	}
	switch proto {
	case "tcp", "udp":
		return rest, proto, nil
	case "":
		return "", "", p.fault("no protocol behind the slash; write /tcp or /udp")
	}
	if c := proto[0]; c >= '0' && c <= '9' {
		return "", "", p.fault("an address before a slash goes for the whole list and is written once, at its start")
	}
	return "", "", p.fault("protocol %q is not known; write /tcp or /udp", proto)
}

// hostAddr cuts the host's address off the start of an item and returns the
// ports behind it.
func (p *publishParser) hostAddr(item string) (netip.Addr, string, error) {
	if strings.HasPrefix(item, "[") {
		inside, behind, ok := strings.Cut(item[1:], "]")
		if !ok {
			return netip.Addr{}, "", p.fault("the bracket before %q is not closed", item[1:])
		}
		ports, ok := strings.CutPrefix(behind, ":")
		if !ok {
			return netip.Addr{}, "", p.fault("after the address [%s] comes a colon and a port", inside)
		}
		addr, err := p.addr(inside)
		return addr, ports, err
	}
	first, behind, ok := strings.Cut(item, ":")
	switch {
	case ok && first == "" && !strings.Contains(behind, ":"):
		return netip.Addr{}, "", p.fault("a port is missing before the colon; write 0%s for any free port", item)
	case !ok, first != "" && isPorts(first):
		return p.defaultAddr(), item, nil
	case strings.Count(item, ":") > 2, first == "":
		return netip.Addr{}, "", p.fault("an IPv6 address goes in brackets, as in [::1]:8080:80")
	}
	addr, err := p.addr(first)
	return addr, behind, err
}

func (p *publishParser) defaultAddr() netip.Addr {
	if p.listAddr.IsValid() {
		return p.listAddr
	}
	return DefaultHostAddr
}

// isPorts reports whether s can only be meant as a port or a range of ports.
func isPorts(s string) bool {
	return strings.Trim(s, "0123456789-") == ""
}

func (p *publishParser) addr(s string) (netip.Addr, error) {
	if p.listAddr.IsValid() {
		return netip.Addr{}, p.fault("%s is a second address; %s/ at the start goes for the whole list", s, p.listAddr)
	}
	unbracketed := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		unbracketed = s[1 : len(s)-1]
	}
	addr, err := netip.ParseAddr(unbracketed)
	if err != nil {
		return netip.Addr{}, p.fault("%q is not an address of this host; write one as 127.0.0.1, 0.0.0.0 or [::1]", s)
	}
	if addr.Zone() != "" {
		return netip.Addr{}, p.fault("%s: an address with a zone cannot be published on; use an address that is valid on all interfaces", s)
	}
	if addr.IsMulticast() {
		return netip.Addr{}, p.fault("%s is a multicast address; a port is published on an address of this host", s)
	}
	return addr.Unmap(), nil
}

// portRange is count ports from first on. first 0: any free port.
type portRange struct {
	first, last uint16
	count       int
}

func (p *publishParser) portRange(s string, zeroAllowed bool) (portRange, error) {
	from, to, isRange := strings.Cut(s, "-")
	first, err := p.port(from, s)
	if err != nil {
		return portRange{}, err
	}
	last := first
	if isRange {
		if last, err = p.port(to, s); err != nil {
			return portRange{}, err
		}
	}
	if first == 0 && (!zeroAllowed || isRange) {
		return portRange{}, p.fault("port 0 stands for any free port and is understood only before the colon, as in 0:80")
	}
	if last < first {
		return portRange{}, p.fault("the range %s ends before it starts; write %s-%s", s, to, from)
	}
	return portRange{first: first, last: last, count: int(last) - int(first) + 1}, nil
}

func (p *publishParser) port(s, whole string) (uint16, error) {
	switch whole {
	case "":
		return 0, p.fault("a port is missing; write it as 8080, 8080:80 or 127.0.0.1:8080:80")
	case "all", "auto", "none":
		return 0, p.fault("%q is not understood; name the ports, as in 8000-8010", whole)
	}
	if strings.HasPrefix(s, "~") {
		return 0, p.fault("ports cannot be left out with ~; name the ports that are wanted")
	}
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, p.fault("%q is not a port; ports are numbers from 1 to 65535, ranges are written 8000-8010", whole)
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, p.fault("port %s is out of range; ports are numbers from 1 to 65535", s)
	}
	return uint16(n), nil
}

// noRepeats refuses two items that want the same listener, which would
// otherwise fail later as a conflict of this command with itself.
func (p *publishParser) noRepeats(all []Publish) error {
	type listener struct {
		proto string
		host  netip.AddrPort
	}
	seen := make(map[listener]bool, len(all))
	for _, one := range all {
		key := listener{one.Proto, one.Host}
		if one.Host.Port() != 0 && seen[key] {
			return p.fault("%s/%s is given twice", one.Host, one.Proto)
		}
		seen[key] = true
	}
	return nil
}
