package policy

import "net/netip"

// Service is a host service that containers reach on the gateway's addresses.
type Service struct {
	Proto  uint8  // packet.ProtoTCP or packet.ProtoUDP
	Port   uint16 // port on the gateway; not 53, which is the resolver's
	Target netip.AddrPort
}

// Rules are the plain form of a Table.
type Rules struct {
	Network  []netip.Prefix // this network's prefixes
	Gateways []netip.Addr   // the gateway's addresses
	Internal bool           // nothing outside the network may be reached
	Services []Service      // host services: the only way to the host's loopback
	Refuse   []netip.Prefix // other networks' prefixes
	Allow    []netip.Prefix // opened by name: overrides the baseline except loopback, multicast, broadcast
}

// Table is a compiled, immutable set of Rules. The zero Table drops everything.
type Table struct{}

// Compile checks rules and makes a Table of them.
func Compile(rules Rules) (*Table, error) { return &Table{}, nil }

// Decide gives the verdict on f. host are the host's own addresses; isLink says
// whether an address of this network is leased to a link.
func (t *Table) Decide(f Flow, host *HostAddrs, isLink func(netip.Addr) bool) Verdict {
	return Verdict{}
}

// CheckDial judges the final address of an egress socket; ReasonNone allows it.
func (t *Table) CheckDial(final netip.Addr, host *HostAddrs) Reason { return ReasonInvalid }

// HostAddrs is an immutable set of the host's own addresses.
type HostAddrs struct{}

// NewHostAddrs makes a set of the host's addresses and broadcast addresses.
func NewHostAddrs(addrs, broadcasts []netip.Addr) *HostAddrs { return &HostAddrs{} }
