package policy

import (
	"errors"
	"fmt"
	"net/netip"
)

// Compile checks rules and makes a Table of them, which shares no memory with
// them. The error joins one error per fault, and there is no Table with it.
func Compile(rules Rules) (*Table, error) {
	c := compiler{table: &Table{
		services: make(map[servicePort]netip.AddrPort),
		internal: rules.Internal, ingress: rules.Ingress, portIsolation: rules.PortIsolation, noHairpin: rules.NoHairpin,
	}}
	if int(rules.Ingress) >= len(ingressNames) {
		c.fault("ingress policy %d: want open, same-bridge or isolated", rules.Ingress)
	}
	for _, p := range rules.Network {
		c.network(p)
	}
	for _, a := range rules.Gateways {
		c.gateway(a)
	}
	for _, s := range rules.Services {
		c.service(s)
	}
	for _, p := range rules.Refuse {
		if c.valid("refused prefix", p) {
			c.table.refuse.Insert(p.Masked())
		}
	}
	for _, p := range rules.Allow {
		c.allow(p)
	}
	if len(c.faults) > 0 {
		return nil, fmt.Errorf("compile policy: %w", errors.Join(c.faults...))
	}
	return c.table, nil
}

// compiler fills a table and collects what is wrong with the rules.
type compiler struct {
	table  *Table
	faults []error
}

func (c *compiler) fault(format string, args ...any) {
	c.faults = append(c.faults, fmt.Errorf(format, args...))
}

// valid says whether p is a prefix that a table can hold; what names it.
func (c *compiler) valid(what string, p netip.Prefix) bool {
	switch {
	case !p.IsValid():
		c.fault("%s %v: not a prefix", what, p)
		return false
	case p.Addr().Is4In6():
		c.fault("%s %v: IPv4-mapped; write it as an IPv4 prefix", what, p)
		return false
	}
	return true
}

// notForNetworks are the classes of addresses that no container can have.
func notForNetworks(class Class) bool {
	switch class {
	case ClassLoopback, ClassThisNetwork, ClassMulticast, ClassBroadcast, ClassReserved:
		return true
	}
	return false
}

func (c *compiler) network(p netip.Prefix) {
	const what = "network prefix"
	if !c.valid(what, p) {
		return
	}
	p = p.Masked()
	for _, s := range special {
		if q := netip.MustParsePrefix(s.prefix); notForNetworks(s.class) && q.Overlaps(p) {
			c.fault("%s %v: overlaps %v (%v), whose addresses containers cannot have", what, p, q, s.class)
			return
		}
	}
	c.table.network.Insert(p)
	if p.Addr().Is4() {
		c.table.has4 = true
	} else {
		c.table.has6 = true
	}
	// A subnet of one or two addresses has no first and last to set aside (RFC
	// 3021, RFC 6164).
	if p.Bits() < p.Addr().BitLen()-1 {
		c.table.edges = append(c.table.edges, p.Addr()) // in IPv6: the subnet-router anycast
		if p.Addr().Is4() {
			c.table.edges = append(c.table.edges, last(p))
		}
	}
}

// last is the last address of an IPv4 prefix: its broadcast address.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

func (c *compiler) gateway(a netip.Addr) {
	switch {
	case !a.IsValid() || a.Zone() != "" || a.Is4In6():
		c.fault("gateway address %v: not a plain IPv4 or IPv6 address", a)
	case notForNetworks(Classify(a)):
		c.fault("gateway address %v: is a %v address, which a gateway cannot have", a, Classify(a))
	default:
		c.table.gateways = append(c.table.gateways, a)
	}
}

func (c *compiler) service(s Service) {
	key := servicePort{s.Proto, s.Port}
	_, taken := c.table.services[key]
	switch {
	case s.Proto != protoTCP && s.Proto != protoUDP:
		c.fault("host service to %v: IP protocol %d is neither TCP (6) nor UDP (17)", s.Target, s.Proto)
	case s.Port == 0:
		c.fault("host service to %v: port 0 cannot be reached; choose another", s.Target)
	case s.Port == portDNS:
		c.fault("host service to %v: port 53 of the gateway is the resolver's; choose another", s.Target)
	case !s.Target.IsValid() || s.Target.Port() == 0:
		c.fault("host service on port %d: target %v lacks an address or a port", s.Port, s.Target)
	case taken:
		c.fault("host service to %v: port %d is taken by the service to %v; choose another", s.Target, s.Port, c.table.services[key])
	default:
		c.table.services[key] = s.Target
	}
}

func (c *compiler) allow(p netip.Prefix) {
	const what = "allowed prefix"
	if !c.valid(what, p) {
		return
	}
	p = p.Masked()
	for _, s := range special {
		q := netip.MustParsePrefix(s.prefix)
		if neverAllowed(s.class) && q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			c.fault("%s %v: %v addresses cannot be allowed (%s)", what, p, s.class, classes[s.class].reason.Text())
			return
		}
	}
	c.table.allow.Insert(p)
}

// neverAllowed are the classes that Rules.Allow does not open.
func neverAllowed(class Class) bool {
	switch class {
	case ClassInvalid, ClassLoopback, ClassThisNetwork, ClassMulticast, ClassBroadcast:
		return true
	}
	return false
}
