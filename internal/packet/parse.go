package packet

import (
	"encoding/binary"
	"net/netip"
)

// Sizes of fixed headers, in bytes.
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	udpHeaderLen  = 8
	icmpHeaderLen = 8
	fragHeaderLen = 8
	maxIPLen      = 65535 // what a 16-bit length field can say
)

// HeadLen is how many first bytes of a packet Parse asks for: what fits in a
// 128-byte first read buffer behind the 10-byte virtio header. It holds the
// longest IPv4 header (60) with a TCP header (20), and an IPv6 header (40) with
// a TCP header and 58 bytes of extension headers; longer chains are refused.
const HeadLen = 118

// Parse reads the packet whose first bytes are head and whose whole length is
// total bytes, and overwrites all of h. head holds at least min(total, HeadLen)
// bytes; bytes of head beyond total are not looked at. Parse neither retains
// head nor allocates.
//
// On FaultNone every offset in h lies within the packet, and Len == total. On
// any other fault h holds what had been read before the fault was seen, which
// serves messages only.
//
// A superframe is a packet like another: the kernel writes the length of the
// whole into its IP header, and so it is checked the same way. An IPv6
// superframe longer than a 16-bit payload length (a jumbogram, RFC 2675) is
// FaultLength.
//
// Transport checksums are not looked at: a device with checksum offload hands
// over packets whose checksum is not yet there. See ValidL4Checksum.
func (h *Header) Parse(head []byte, total int) Fault {
	*h = Header{}
	if len(head) > total {
		head = head[:max(total, 0)]
	}
	if len(head) == 0 {
		return FaultTruncated
	}
	h.Version = head[0] >> 4
	switch h.Version {
	case 4:
		return h.parseIPv4(head, total)
	case 6:
		return h.parseIPv6(head, total)
	}
	return FaultVersion
}

func (h *Header) parseIPv4(b []byte, total int) Fault {
	if len(b) < ipv4HeaderLen {
		return FaultTruncated
	}
	h.TOS = b[1]
	h.Len = int(binary.BigEndian.Uint16(b[2:]))
	h.FragID = uint32(binary.BigEndian.Uint16(b[4:]))
	flags := binary.BigEndian.Uint16(b[6:])
	h.DontFragment = flags&ipv4DontFragment != 0
	h.MoreFragments = flags&ipv4MoreFragments != 0
	h.FragOffset = int(flags&ipv4OffsetMask) * 8
	h.Fragment = h.MoreFragments || h.FragOffset > 0
	h.HopLimit = b[8]
	h.Proto = b[9]
	h.Src = netip.AddrFrom4([4]byte(b[12:16]))
	h.Dst = netip.AddrFrom4([4]byte(b[16:20]))
	if h.Len != total {
		return FaultLength
	}
	ihl := int(b[0]&0x0f) * 4
	if ihl < ipv4HeaderLen || ihl > total {
		return FaultHeaderLength
	}
	if ihl > len(b) {
		return FaultTruncated
	}
	if Checksum(b[:ihl], 0) != 0xffff {
		return FaultChecksum
	}
	if ihl > ipv4HeaderLen {
		if f := checkOptions(b[ipv4HeaderLen:ihl]); f != FaultNone {
			return f
		}
	}
	h.L4, h.Payload = ihl, ihl
	if h.Fragment {
		// The reassembled packet's header is the first fragment's, as long as
		// this one's unless the sender plays games; the Reassembler looks again.
		if f := h.checkFragment(h.FragOffset + total); f != FaultNone {
			return f
		}
	}
	return h.parseTransport(b)
}

// IPv4 options (RFC 791 §3.1, RFC 2113).
const (
	optionEnd         = 0
	optionNop         = 1
	optionRouterAlert = 148
)

// checkOptions refuses every IPv4 option but padding and router alert.
//
// Source routes let a container choose a way around the switch's decision,
// record route and timestamp make every hop write into the packet, and what is
// left is obsolete (RFC 7126 says which). Router alert asks routers to look at
// the packet and nothing else; container kernels set it in every IGMP report,
// which would otherwise be counted as malformed.
func checkOptions(b []byte) Fault {
	for len(b) > 0 {
		switch b[0] {
		case optionEnd:
			return FaultNone
		case optionNop:
			b = b[1:]
		case optionRouterAlert:
			if len(b) < 4 || b[1] != 4 {
				return FaultOptions
			}
			b = b[4:]
		default:
			return FaultOptions
		}
	}
	return FaultNone
}

// checkFragment judges a fragment that, by its offset, ends at byte end of a
// packet with a 16-bit length.
func (h *Header) checkFragment(end int) Fault {
	data := h.Len - h.L4
	switch {
	case data <= 0:
		return FaultFragment
	case end > maxIPLen:
		return FaultFragment // "ping of death"
	case h.MoreFragments && data%8 != 0:
		return FaultFragment
	case h.Proto == ProtoTCP && h.FragOffset > 0 && h.FragOffset < tcpHeaderLen:
		// RFC 1858 §4.2: it can only be meant to overwrite the TCP header that
		// the first fragment showed.
		return FaultFragment
	}
	return FaultNone
}

// parseTransport reads the transport header at L4. Reading ends at the bytes
// that head holds; the checks against the packet's length use Len.
func (h *Header) parseTransport(b []byte) Fault {
	if h.FragOffset > 0 {
		return FaultNone
	}
	// A first fragment that does not hold the whole transport header is tiny
	// (RFC 1858, RFC 7112).
	short := FaultTransport
	if h.Fragment {
		short = FaultFragment
	}
	switch {
	case h.Proto == ProtoTCP:
		return h.parseTCP(b, short)
	case h.Proto == ProtoUDP:
		return h.parseUDP(b, short)
	case h.hasICMP():
		return h.parseICMP(b, short)
	}
	return FaultNone
}

// transport returns the first n bytes of the transport header, and nil when the
// packet has no such bytes.
func (h *Header) transport(b []byte, n int) []byte {
	if h.Len-h.L4 < n || len(b)-h.L4 < n {
		return nil
	}
	return b[h.L4 : h.L4+n]
}

func (h *Header) parseTCP(b []byte, short Fault) Fault {
	t := h.transport(b, tcpHeaderLen)
	if t == nil {
		return short
	}
	h.SrcPort = binary.BigEndian.Uint16(t[0:])
	h.DstPort = binary.BigEndian.Uint16(t[2:])
	h.TCPFlags = t[13] & (FlagFIN | FlagSYN | FlagRST | FlagPSH | FlagACK)
	offset := int(t[12]>>4) * 4
	if offset < tcpHeaderLen {
		return FaultTransport
	}
	if h.L4+offset > h.Len {
		return short
	}
	h.Payload = h.L4 + offset
	return FaultNone
}

func (h *Header) parseUDP(b []byte, short Fault) Fault {
	t := h.transport(b, udpHeaderLen)
	if t == nil {
		return short
	}
	h.SrcPort = binary.BigEndian.Uint16(t[0:])
	h.DstPort = binary.BigEndian.Uint16(t[2:])
	length := int(binary.BigEndian.Uint16(t[4:]))
	// Bytes between the end that UDP tells and the end that IP tells would be
	// seen by some readers of the packet and not by others; nothing that we
	// serve sends them.
	if length < udpHeaderLen || !h.Fragment && length != h.Len-h.L4 {
		return FaultTransport
	}
	h.Payload = h.L4 + udpHeaderLen
	return FaultNone
}

func (h *Header) parseICMP(b []byte, short Fault) Fault {
	t := h.transport(b, icmpHeaderLen)
	if t == nil {
		return short
	}
	h.ICMPType, h.ICMPCode = t[0], t[1]
	if h.IsEchoRequest() || h.IsEchoReply() {
		h.SrcPort = binary.BigEndian.Uint16(t[4:])
		h.DstPort = h.SrcPort
		h.ICMPSeq = binary.BigEndian.Uint16(t[6:])
	}
	h.Payload = h.L4 + icmpHeaderLen
	return FaultNone
}
