package policy

import "net/netip"

// Prefixes whose IPv6 addresses carry an IPv4 address. A translator or a tunnel
// on the way would take the packet to that address, so it is judged as well.
var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052 §2.1
	nat64Here = netip.MustParsePrefix("64:ff9b:1::/48")  // RFC 8215: any length from /48 on
	sixToFour = netip.MustParsePrefix("2002::/16")       // RFC 3056
	teredo    = netip.MustParsePrefix("2001::/32")       // RFC 4380
	siit      = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765: IPv4-translated
	compat    = netip.MustParsePrefix("::/96")           // RFC 4291 §2.5.5.1: IPv4-compatible
)

// embedded is the IPv4 addresses that one IPv6 address may carry, without an
// allocation.
type embedded struct {
	addrs [4]netip.Addr
	n     int
}

func (e *embedded) add(a, b, c, d byte) {
	e.addrs[e.n] = netip.AddrFrom4([4]byte{a, b, c, d})
	e.n++
}

// embeddedIn finds the IPv4 addresses in a, which is neither mapped nor zoned.
// Where the place of the IPv4 address depends on a prefix length that we do not
// know, each reading counts.
func embeddedIn(a netip.Addr) (e embedded) {
	if !a.Is6() {
		return e
	}
	b := a.As16()
	switch {
	case nat64.Contains(a), siit.Contains(a), compat.Contains(a):
		e.add(b[12], b[13], b[14], b[15])
	case nat64Here.Contains(a):
		e.addLocalNAT64(b)
	case sixToFour.Contains(a):
		e.add(b[2], b[3], b[4], b[5])
	case teredo.Contains(a):
		e.add(b[4], b[5], b[6], b[7])         // the server
		e.add(^b[12], ^b[13], ^b[14], ^b[15]) // the client, inverted (§4)
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe:
		e.add(b[12], b[13], b[14], b[15]) // ISATAP under any prefix (RFC 5214 §6.1)
	}
	return e
}

// addLocalNAT64 adds the readings that RFC 6052 §2.2 knows. Under a prefix
// shorter than 96 the bits after the IPv4 address and the byte b[8] are zero,
// which tells whether the reading is possible.
func (e *embedded) addLocalNAT64(b [16]byte) {
	if b[13] != 0 || b[14] != 0 || b[15] != 0 || b[8] != 0 {
		e.add(b[12], b[13], b[14], b[15]) // /96
		return
	}
	e.add(b[9], b[10], b[11], b[12]) // /64
	if b[12] != 0 {
		e.add(b[12], 0, 0, 0) // /96 of a network's first address
		return
	}
	e.add(b[7], b[9], b[10], b[11]) // /56
	if b[11] == 0 {
		e.add(b[6], b[7], b[9], b[10]) // /48
	}
}
