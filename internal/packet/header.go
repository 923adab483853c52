package packet

import "net/netip"

// IP protocol numbers (IANA) that the switch treats specially.
const (
	ProtoICMP   uint8 = 1
	ProtoTCP    uint8 = 6
	ProtoUDP    uint8 = 17
	ProtoICMPv6 uint8 = 58
)

// TCP flag bits as they lie in byte 13 of the TCP header (RFC 9293 §3.1).
const (
	FlagFIN uint8 = 1
	FlagSYN uint8 = 2
	FlagRST uint8 = 4
	FlagPSH uint8 = 8
	FlagACK uint8 = 16
)

// Header is what Parse read of one IP packet. It is plain data without
// pointers into the packet; one Header is reused for packet after packet.
// The zero Header stands for no packet.
type Header struct {
	// Version is 4 or 6.
	Version uint8
	// Proto is the transport protocol: IPv4's protocol field, or the last next
	// header of IPv6's extension chain. In a non-first IPv6 fragment it is the
	// fragment header's next header, which may still name an extension header.
	Proto uint8
	// HopLimit is IPv4's TTL or IPv6's hop limit.
	HopLimit uint8
	// TOS is IPv4's type of service or IPv6's traffic class (DSCP and ECN).
	TOS uint8
	// Fragment says that the packet is a part of a larger one: MoreFragments or
	// FragOffset > 0. An IPv6 atomic fragment (RFC 6946) is not a Fragment.
	Fragment bool
	// MoreFragments says that fragments with higher offsets follow.
	MoreFragments bool
	// FragOffset is the offset of this fragment's data, in bytes.
	FragOffset int
	// FragID is the identification: 16 bits in IPv4, 32 in IPv6 (0 when the
	// packet carries no fragment header).
	FragID uint32
	// DontFragment is IPv4's DF flag; always true for IPv6.
	DontFragment bool
	// Src and Dst are the addresses as they stand in the header. An
	// IPv4-mapped address in an IPv6 header stays mapped.
	Src, Dst netip.Addr
	// SrcPort and DstPort are the ports of TCP and UDP. In ICMP echo requests
	// and replies both hold the identifier. 0 for every other packet and for
	// non-first fragments.
	SrcPort, DstPort uint16
	// TCPFlags are the TCP flag bits (Flag…); 0 for other protocols.
	TCPFlags uint8
	// ICMPType and ICMPCode are set for ICMP in IPv4 and ICMPv6 in IPv6.
	ICMPType, ICMPCode uint8
	// ICMPSeq is the sequence number of an ICMP echo.
	ICMPSeq uint16
	// L4 is the offset of the transport header from the IP header's start. In a
	// non-first fragment it is where the fragment's data begins.
	L4 int
	// Payload is the offset of the transport payload from the IP header's start.
	Payload int
	// Len is the length of the whole packet, in bytes.
	Len int
}

// SrcAddrPort is the source address and port.
func (h *Header) SrcAddrPort() netip.AddrPort { return netip.AddrPortFrom(h.Src, h.SrcPort) }

// DstAddrPort is the destination address and port.
func (h *Header) DstAddrPort() netip.AddrPort { return netip.AddrPortFrom(h.Dst, h.DstPort) }

// IsEchoRequest says whether the packet is an ICMP or ICMPv6 echo request.
func (h *Header) IsEchoRequest() bool {
	return h.hasICMP() && h.ICMPType == echoRequestType(h.Version)
}

// IsEchoReply says whether the packet is an ICMP or ICMPv6 echo reply.
func (h *Header) IsEchoReply() bool {
	return h.hasICMP() && h.ICMPType == echoReplyType(h.Version)
}

// IsICMPError says whether the packet is an ICMP or ICMPv6 error message. For
// IPv4 these are the types that RFC 1122 §3.2.2 lists, redirect among them.
func (h *Header) IsICMPError() bool {
	if !h.hasICMP() {
		return false
	}
	if h.Version == 6 {
		return h.ICMPType < 128 // RFC 4443 §2.1
	}
	switch h.ICMPType {
	case icmp4Unreachable, icmp4SourceQuench, icmp4Redirect, icmp4TimeExceeded, icmp4ParameterProblem:
		return true
	}
	return false
}

// hasICMP says whether ICMPType and ICMPCode were read from the packet: the
// ICMP of the packet's own family, and not a later fragment of it.
func (h *Header) hasICMP() bool {
	if h.FragOffset > 0 {
		return false
	}
	return h.Version == 4 && h.Proto == ProtoICMP || h.Version == 6 && h.Proto == ProtoICMPv6
}
