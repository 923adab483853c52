package packet

import (
	"encoding/binary"
	"net/netip"
)

// IPv4's flags-and-offset word (RFC 791 §3.1).
const (
	ipv4DontFragment  = 0x4000
	ipv4MoreFragments = 0x2000
	ipv4OffsetMask    = 0x1fff
)

// IPv6 next headers that Parse walks over (RFC 8200 §4). Every other value ends
// the chain and is the packet's Proto: AH and ESP too, since policy knows no
// ports behind them.
const (
	nextHopByHop = 0
	nextRouting  = 43
	nextFragment = 44
	nextDestOpts = 60
)

// IPv6 options that are refused wherever they stand.
const (
	optionPad1        = 0
	optionJumbo       = 0xc2 // RFC 2675: a length that the 16-bit field does not tell
	optionHomeAddress = 0xc9 // RFC 6275: replaces the source address that was checked
)

// maxL4 is where an IPv6 packet's transport header may begin at the latest, so
// that a TCP header behind it still lies within HeadLen.
const maxL4 = HeadLen - tcpHeaderLen

func (h *Header) parseIPv6(b []byte, total int) Fault {
	h.DontFragment = true
	if len(b) < ipv6HeaderLen {
		return FaultTruncated
	}
	h.TOS = b[0]<<4 | b[1]>>4
	h.Len = ipv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	h.HopLimit = b[7]
	h.Src = netip.AddrFrom16([16]byte(b[8:24]))
	h.Dst = netip.AddrFrom16([16]byte(b[24:40]))
	if h.Len != total {
		return FaultLength
	}
	if f := h.parseExtensions(b); f != FaultNone {
		return f
	}
	if h.Fragment {
		// RFC 8200 §4.5: offset and data together may not pass a payload
		// length of 65535; the unfragmentable headers count as well.
		if f := h.checkFragment(h.FragOffset + h.Len - ipv6HeaderLen - fragHeaderLen); f != FaultNone {
			return f
		}
	}
	return h.parseTransport(b)
}

// parseExtensions walks the chain of extension headers and sets Proto, L4, and
// the fragment fields. Each kind of header is taken once, destination options
// twice (RFC 8200 §4.1), and hop-by-hop options only in front. Routing headers
// of any type are refused: type 0 is an amplifier (RFC 5095), and the others
// name a way that policy has not judged.
func (h *Header) parseExtensions(b []byte) Fault {
	next, off, fragments, dests := b[6], ipv6HeaderLen, 0, 0
	for n := 0; ; n++ {
		h.Proto, h.L4, h.Payload = next, off, off
		switch next {
		case nextHopByHop:
			if n > 0 {
				return FaultExtension
			}
		case nextDestOpts:
			dests++
		case nextFragment:
			fragments++
		case nextRouting:
			return FaultExtension
		default:
			return FaultNone
		}
		if fragments > 1 || dests > 2 || off+8 > len(b) {
			return FaultExtension
		}
		size := fragHeaderLen
		if next == nextFragment {
			h.readFragmentHeader(b[off : off+fragHeaderLen])
		} else {
			size = 8 + 8*int(b[off+1])
			if off+size > len(b) || !validOptions(b[off+2:off+size]) {
				return FaultExtension
			}
		}
		next = b[off]
		off += size
		if off > maxL4 {
			return FaultExtension
		}
		if h.FragOffset > 0 {
			// What follows is data from the middle of a packet.
			h.Proto, h.L4, h.Payload = next, off, off
			return FaultNone
		}
	}
}

// readFragmentHeader takes the fields of an IPv6 fragment header (RFC 8200
// §4.5). The reserved bits are not looked at, as the RFC asks.
func (h *Header) readFragmentHeader(b []byte) {
	word := binary.BigEndian.Uint16(b[2:])
	h.FragOffset = int(word &^ 7)
	h.MoreFragments = word&1 != 0
	h.Fragment = h.MoreFragments || h.FragOffset > 0
	h.FragID = binary.BigEndian.Uint32(b[4:])
}

// validOptions says whether the options of a hop-by-hop or destination options
// header fill it exactly and hold none that is refused.
func validOptions(b []byte) bool {
	for len(b) > 0 {
		if b[0] == optionPad1 {
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[0] == optionJumbo || b[0] == optionHomeAddress {
			return false
		}
		size := 2 + int(b[1])
		if size > len(b) {
			return false
		}
		b = b[size:]
	}
	return true
}
