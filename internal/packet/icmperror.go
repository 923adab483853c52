package packet

import (
	"encoding/binary"
	"net/netip"
)

// ErrorKind names an ICMP error without regard to the IP version. The zero
// value names none.
type ErrorKind uint8

// The errors that the switch sends, with their type and code in ICMP (RFC 792,
// RFC 1122, RFC 1812 §5.2.7) and ICMPv6 (RFC 4443 §3).
const (
	ErrNetUnreachable    ErrorKind = iota + 1 // 3/0; 1/0 no route
	ErrHostUnreachable                        // 3/1; 1/3 address unreachable
	ErrPortUnreachable                        // 3/3; 1/4
	ErrProtoUnreachable                       // 3/2; 4/1 unrecognized next header
	ErrAdminProhibited                        // 3/13; 1/1
	ErrTooBig                                 // 3/4 fragmentation needed, with the MTU (RFC 1191); 2/0
	ErrTimeExceeded                           // 11/0; 3/0 hop limit used up
	ErrReassemblyTimeout                      // 11/1; 3/1

	numErrorKinds
)

// errorKinds is each kind's name and its type and code per family.
var errorKinds = [numErrorKinds]struct {
	name                     string
	type4, code4, typ6, cod6 uint8
}{
	{name: "none"},
	ErrNetUnreachable:    {"net_unreachable", icmp4Unreachable, 0, icmp6Unreachable, 0},
	ErrHostUnreachable:   {"host_unreachable", icmp4Unreachable, 1, icmp6Unreachable, 3},
	ErrPortUnreachable:   {"port_unreachable", icmp4Unreachable, 3, icmp6Unreachable, 4},
	ErrProtoUnreachable:  {"proto_unreachable", icmp4Unreachable, 2, icmp6ParameterProblem, 1},
	ErrAdminProhibited:   {"admin_prohibited", icmp4Unreachable, 13, icmp6Unreachable, 1},
	ErrTooBig:            {"too_big", icmp4Unreachable, 4, icmp6TooBig, 0},
	ErrTimeExceeded:      {"time_exceeded", icmp4TimeExceeded, 0, icmp6TimeExceeded, 0},
	ErrReassemblyTimeout: {"reassembly_timeout", icmp4TimeExceeded, 1, icmp6TimeExceeded, 1},
}

// String is a stable snake_case name, usable as a metric label.
func (k ErrorKind) String() string {
	if k >= numErrorKinds {
		return "unknown"
	}
	return errorKinds[k].name
}

// How long a packet with an ICMP error may be: RFC 1812 §4.3.2.3 and RFC 4443
// §2.4(c). Both fit any path without fragmentation.
const (
	maxICMP4Error = 576
	maxICMP6Error = 1280
)

// errorTOS is the precedence "internetwork control" of ICMP errors in IPv4 (RFC
// 1812 §4.3.2.5).
const errorTOS = 0xc0

// AppendICMPError appends to b a whole packet that reports kind about the packet
// orig to orig's source, coming from the address from, and returns the extended
// slice. orig may be just the first bytes of a packet; as much of it is quoted
// as there is and as fits: 576 bytes in all for IPv4, 1280 for IPv6. mtu serves
// ErrTooBig only.
//
// b is returned unchanged when orig must not be answered: it is malformed, an
// ICMP error or redirect itself, a fragment but the first, or its source or
// destination is not one host (RFC 1122 §3.2.2, RFC 4443 §2.4(e); the exception
// for a too big multicast packet is not made, since the switch routes none).
// The same when from is of the other family. The caller limits the rate.
//
// To count before sending, compare lengths: a result as long as b says "no".
func AppendICMPError(b []byte, kind ErrorKind, from netip.Addr, mtu int, orig []byte) []byte {
	from = from.Unmap()
	var h Header
	if kind == 0 || kind >= numErrorKinds || !parseAny(&h, orig) || !mayReport(&h) {
		return b
	}
	if version, _ := family(from); !from.IsValid() || version != h.Version {
		return b
	}
	if h.Version == 6 {
		return appendICMP6Error(b, kind, from, mtu, &h, orig)
	}
	quote := orig[:min(len(orig), h.Len, maxICMP4Error-ipv4HeaderLen-icmpHeaderLen)]
	// An atomic datagram (RFC 6864): DF is set, and so the ID means nothing.
	b = AppendIP(b, ProtoICMP, from, h.Src, defaultHopLimit, errorTOS, icmpHeaderLen+len(quote), 0, true)
	start := len(b)
	b = append(b, errorKinds[kind].type4, errorKinds[kind].code4, 0, 0, 0, 0, 0, 0)
	if kind == ErrTooBig {
		binary.BigEndian.PutUint16(b[start+6:], uint16(min(max(mtu, 0), maxIPLen)))
	}
	b = append(b, quote...)
	putICMPChecksum(b[start:], ProtoICMP, from, h.Src)
	return b
}

func appendICMP6Error(b []byte, kind ErrorKind, from netip.Addr, mtu int, h *Header, orig []byte) []byte {
	quote := orig[:min(len(orig), h.Len, maxICMP6Error-ipv6HeaderLen-icmpHeaderLen)]
	b = AppendIP(b, ProtoICMPv6, from, h.Src, defaultHopLimit, 0, icmpHeaderLen+len(quote), 0, true)
	start := len(b)
	b = append(b, errorKinds[kind].typ6, errorKinds[kind].cod6, 0, 0, 0, 0, 0, 0)
	switch kind {
	case ErrTooBig:
		binary.BigEndian.PutUint32(b[start+4:], uint32(max(mtu, 0)))
	case ErrProtoUnreachable:
		// The pointer names the field that was not understood.
		binary.BigEndian.PutUint32(b[start+4:], uint32(lastNextHeader(orig, h.L4)))
	}
	b = append(b, quote...)
	putICMPChecksum(b[start:], ProtoICMPv6, from, h.Src)
	return b
}

// parseAny parses a packet of which pkt may be only the first bytes: the length
// is taken from its IP header.
func parseAny(h *Header, pkt []byte) bool {
	total := len(pkt)
	switch {
	case len(pkt) >= ipv4HeaderLen && pkt[0]>>4 == 4:
		total = int(binary.BigEndian.Uint16(pkt[2:]))
	case len(pkt) >= ipv6HeaderLen && pkt[0]>>4 == 6:
		total = ipv6HeaderLen + int(binary.BigEndian.Uint16(pkt[4:]))
	}
	return h.Parse(pkt, total) == FaultNone
}

// mayReport says whether an ICMP error about the packet is allowed.
func mayReport(h *Header) bool {
	switch {
	case h.FragOffset > 0 || h.IsICMPError():
		return false
	case h.Version == 6 && h.hasICMP() && h.ICMPType == icmp6Redirect:
		return false
	}
	return isOneHost(h.Src) && (isOneHost(h.Dst) || h.Dst.IsLoopback())
}

// isOneHost says whether a is an address that belongs to a single machine and
// means the same on both sides of the link.
func isOneHost(a netip.Addr) bool {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Is4In6() {
		return false
	}
	if a.Is4() {
		b := a.As4()
		return b[0] != 0 && b[0] < 240 // 240/4 holds the limited broadcast
	}
	return true
}

// lastNextHeader is the offset of the next-header field that names the header
// at offset l4 of an IPv6 packet that Parse has accepted.
func lastNextHeader(pkt []byte, l4 int) int {
	field, off := 6, ipv6HeaderLen
	for off < l4 {
		size := fragHeaderLen
		if pkt[field] != nextFragment {
			size = 8 + 8*int(pkt[off+1])
		}
		field = off
		off += size
	}
	return field
}
