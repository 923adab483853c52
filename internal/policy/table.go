package policy

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// Transport protocols and the port that Decide itself knows. The numbers are
// IANA's; this package imports nothing of ours.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	portDNS     = 53
)

// Service is a host service: a port of the gateway's addresses, in each family
// that the network has, that leads to an address on the host.
type Service struct {
	Proto  uint8          // 6 (TCP) or 17 (UDP)
	Port   uint16         // the port on the gateway; not 0, and not 53, the resolver's
	Target netip.AddrPort // what the host dials; may be loopback
}

// Rules are the plain form of a Table. The zero Rules compile to a Table that
// forwards nothing.
type Rules struct {
	// Network is this network's prefixes. A family without a prefix here is
	// one that the network does not have.
	Network []netip.Prefix
	// Gateways are the addresses of the gateway, on which the resolver and the
	// host services are reached.
	Gateways []netip.Addr
	// Internal says that nothing outside the network may be reached. Host
	// services and the resolver, opened by name, still may.
	Internal bool
	// Ingress says from where flows may come to this network's links.
	Ingress Ingress
	// PortIsolation keeps the links of this network apart from each other, as
	// Ingress isolated does as well.
	PortIsolation bool
	// NoHairpin closes published ports to this network's containers.
	NoHairpin bool
	// Services are the host services: the only way to the host's loopback.
	Services []Service
	// Refuse is prefixes that may not be reached: those of other networks.
	// Allow does not override it.
	Refuse []netip.Prefix
	// Allow is what was opened by name. It overrides the refusal of the host's
	// addresses, link-local, metadata and reserved ones, and of none else.
	Allow []netip.Prefix
}

// Table is a compiled set of Rules. It is immutable, and any number of
// goroutines may ask it at once. The zero Table and a nil one forward nothing.
type Table struct {
	network  bart.Lite
	edges    []netip.Addr // first and last addresses of the prefixes
	gateways []netip.Addr // few, like edges: a scan beats a map
	services map[servicePort]netip.AddrPort
	refuse   bart.Lite
	allow    bart.Lite
	has4     bool
	has6     bool
	internal bool

	ingress       Ingress
	portIsolation bool
	noHairpin     bool
}

type servicePort struct {
	proto uint8
	port  uint16
}

// HostAddrs is an immutable set of the host's own addresses. A nil one is empty.
// Its owner follows the host's interfaces and swaps the whole set.
type HostAddrs struct {
	addrs      map[netip.Addr]struct{}
	broadcasts map[netip.Addr]struct{}
}

// NewHostAddrs makes a set of the addresses that the host has and of the
// broadcast addresses of its interfaces. Zones and IPv4-mapping are taken off;
// invalid addresses are passed over.
func NewHostAddrs(addrs []netip.Addr, broadcasts []netip.Addr) *HostAddrs {
	return &HostAddrs{addrs: addrSet(addrs), broadcasts: addrSet(broadcasts)}
}

func addrSet(addrs []netip.Addr) map[netip.Addr]struct{} {
	set := make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		if a.IsValid() {
			set[plain(a)] = struct{}{}
		}
	}
	return set
}

// Contains says whether a is one of the host's addresses.
func (h *HostAddrs) Contains(a netip.Addr) bool {
	if h == nil {
		return false
	}
	_, ok := h.addrs[plain(a)]
	return ok
}

// isBroadcast says whether a, plain, is the broadcast address of an interface.
func (h *HostAddrs) isBroadcast(a netip.Addr) bool {
	if h == nil {
		return false
	}
	_, ok := h.broadcasts[a]
	return ok
}
