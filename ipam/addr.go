package ipam

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
	"strings"
)

// unmapPrefix turns a prefix of IPv4-in-IPv6 addresses into the IPv4 one. A
// shorter prefix than ::ffff:0:0/96 stays, as it holds IPv6 addresses too.
func unmapPrefix(p netip.Prefix) netip.Prefix {
	if p.IsValid() && p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// lastAddr gives the highest address of a masked prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// usable gives the first and last address of a masked prefix that a host may
// have: without the network address (in IPv6 the routers' anycast address, RFC
// 4291 §2.6.1) and without the broadcast address of IPv4.
func usable(p netip.Prefix) (first, last netip.Addr) {
	first, last = p.Addr().Next(), lastAddr(p)
	if last.Is4() {
		last = last.Prev()
	}
	return first, last
}

// count gives the number of addresses from start to end, both included, or
// the largest uint64 when there are more. Start must not be after end.
func count(start, end netip.Addr) uint64 {
	s, e := start.As16(), end.As16()
	low, borrow := bits.Sub64(binary.BigEndian.Uint64(e[8:]), binary.BigEndian.Uint64(s[8:]), 0)
	high, _ := bits.Sub64(binary.BigEndian.Uint64(e[:8]), binary.BigEndian.Uint64(s[:8]), borrow)
	if high != 0 || low == math.MaxUint64 {
		return math.MaxUint64
	}
	return low + 1
}

// capacity gives the number of addresses that a set can give out, saturated.
func capacity(set []Range, reserved map[netip.Addr]bool) uint64 {
	var total uint64
	for _, r := range set {
		n := count(r.Start, r.End)
		if n > math.MaxUint64-total {
			return math.MaxUint64
		}
		total += n
	}
	for a := range reserved {
		if rangeOf(set, a) >= 0 && total != math.MaxUint64 {
			total--
		}
	}
	return total
}

// gatewaySet collects the gateways of all ranges. A gateway is reserved in
// every range and not only in its own: two ranges may share a subnet.
func gatewaySet(sets [][]Range) map[netip.Addr]bool {
	m := make(map[netip.Addr]bool)
	for _, set := range sets {
		for _, r := range set {
			m[r.Gateway] = true
		}
	}
	return m
}

// rangeOf gives the index of the range that holds a, or -1.
func rangeOf(set []Range, a netip.Addr) int {
	for i, r := range set {
		if !a.Less(r.Start) && !r.End.Less(a) {
			return i
		}
	}
	return -1
}

// describe names a set's ranges for messages.
func describe(set []Range) string {
	parts := make([]string, len(set))
	for i, r := range set {
		parts[i] = r.Start.String() + "-" + r.End.String()
	}
	return strings.Join(parts, ", ")
}

func minAddr(a, b netip.Addr) netip.Addr {
	if b.Less(a) {
		return b
	}
	return a
}

func maxAddr(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}
