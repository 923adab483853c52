package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Interface says what a container's interface is to look like.
type Interface struct {
	// Name in the target namespace, honoured exactly; at most 15 bytes,
	// without white space and without any of "/:%".
	Name string
	// Addrs are the interface's addresses, each with its subnet's length. The
	// subnet becomes an on-link route, and for IPv4 its last address the
	// broadcast address.
	Addrs []netip.Prefix
	// Routes lead through the interface. One whose destination another
	// interface holds already is left to that interface.
	Routes []Route
	// MTU in bytes; 0 leaves the device's own.
	MTU int
	// MAC is the interface's address on its link, which a TUN has not. Empty
	// leaves the device's own.
	MAC net.HardwareAddr
	// Unpaced has TCP of the whole namespace send as fast as its window allows,
	// where its default algorithm, BBR, would pace it. It is for namespaces
	// whose connections end at the other end of the interface, microseconds
	// away. Programs that choose an algorithm by TCP_CONGESTION have theirs.
	Unpaced bool
}

// Route is a route through an Interface.
type Route struct {
	// Dst is where the route leads; of length 0 for a default route.
	Dst netip.Prefix
	// Gateway is the next hop; it need not be in a subnet of the interface.
	// Zero: none, the destination is on the link.
	Gateway netip.Addr
	// MTU in bytes; 0 is the interface's, but at most 1,500 through a Gateway.
	MTU int
	// AdvMSS in bytes; 0 leaves the kernel's default.
	AdvMSS int
	// Priority is the metric; 0 means the kernel's default (0 for IPv4, 1024
	// for IPv6).
	Priority int
	// Table is the routing table; 0 means main.
	Table int
	// Scope as in rtnetlink, for IPv4 only; 0 means universe with a gateway
	// and link without.
	Scope int
}

// String is the route as ip-route(8) would write it.
func (r Route) String() string {
	s := r.Dst.String()
	if r.Gateway.IsValid() {
		s += " via " + r.Gateway.String()
	}
	if r.Table != 0 {
		s += fmt.Sprintf(" table %d", r.Table)
	}
	return s
}

// ErrExists says that the wanted interface name is taken.
var ErrExists = errors.New("an interface of this name exists already")

// ErrInvalid says that an Interface asks for what no interface can have.
var ErrInvalid = errors.New("invalid interface configuration")

// minMTU4 and minMTU6 are the least MTUs of IPv4 (RFC 791) and IPv6 (RFC 8200
// §5), in bytes.
const (
	minMTU4 = 68
	minMTU6 = 1280
	maxMTU  = 65535
)

// outsideMTU is what a packet that leaves the network can count on, in bytes.
const outsideMTU = 1500

// mtu is the MTU to give the route through an interface of a given one; 0 for
// the interface's. A large MTU is for the network's own links: a datagram that
// goes further is best cut to Ethernet's size by the container's kernel, which
// then need not learn of the path by losing its first (RFC 1191 §3, RFC 8201
// §4).
func (r Route) mtu(iface int) int {
	if r.MTU == 0 && r.Gateway.IsValid() && iface > outsideMTU {
		return outsideMTU
	}
	return r.MTU
}

// Validate reports everything that is wrong with i; the error matches
// [ErrInvalid].
func (i Interface) Validate() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...))
	}
	if !validName(i.Name) {
		fault("interface name %q: want 1 to %d bytes without white space or any of \"/:%%\"", i.Name, unix.IFNAMSIZ-1)
	}
	least := minMTU4
	if i.hasIPv6() {
		least = minMTU6
	}
	if i.MTU != 0 && (i.MTU < least || i.MTU > maxMTU) {
		fault("MTU %d: want %d to %d, or 0 for the device's own", i.MTU, least, maxMTU)
	}
	if len(i.MAC) > 0 && (len(i.MAC) != 6 || i.MAC[0]&1 != 0 || [6]byte(i.MAC) == [6]byte{}) {
		fault("MAC address %q: want six bytes that name one interface, not a group", i.MAC)
	}
	for _, p := range i.Addrs {
		a := p.Addr()
		if !p.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() {
			fault("address %v: want one host's address with its subnet's length", p)
		}
	}
	for _, r := range i.Routes {
		if !r.Dst.IsValid() || r.Dst.Masked() != r.Dst || r.Dst.Addr().Is4In6() {
			fault("route to %v: want a subnet whose host bits are zero", r.Dst)
		}
		if r.Gateway.IsValid() && r.Gateway.Is4() != r.Dst.Addr().Is4() {
			fault("route to %v: gateway %v is of the other address family", r.Dst, r.Gateway)
		}
	}
	return errors.Join(faults...)
}

// validName reports whether the kernel takes name as it is: dev_valid_name of
// net/core/dev.c, and no "%", which would make it a template.
func validName(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) >= unix.IFNAMSIZ {
		return false
	}
	return !slices.ContainsFunc([]byte(name), func(c byte) bool {
		return strings.IndexByte("/:% \t\n\v\f\r\xa0", c) >= 0
	})
}

func (i Interface) hasIPv6() bool {
	for _, p := range i.Addrs {
		if p.Addr().Is6() {
			return true
		}
	}
	return false
}
