package tunneltest

import (
	"encoding/binary"
	"net/netip"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

// Addresses of built frames, from the ranges for documentation (RFC 5737, RFC
// 3849).
var (
	src4, dst4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.2")
	src6, dst6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::2")
)

// FrameSpec describes a frame to build. The zero value is a UDP datagram over
// IPv4 without payload.
type FrameSpec struct {
	IPv6 bool
	TCP  bool
	// Payload is what follows the transport header.
	Payload []byte
	// SegmentSize is the payload of each segment; with it the frame is a
	// superframe.
	SegmentSize int
	// Partial leaves the checksum to the receiver; superframes always do.
	Partial bool
	// TCPFlags are the TCP flag bits; Seq the sequence number.
	TCPFlags uint8
	Seq      uint32
	// ID is IPv4's identification, and for both families the source port, so
	// that tests can tell frames apart.
	ID uint16
}

// Frame builds a frame.
func (s FrameSpec) Frame() []byte {
	src, dst, proto := src4, dst4, packet.ProtoUDP
	if s.IPv6 {
		src, dst = src6, dst6
	}
	var hdr tunnel.Header
	l4 := []byte{byte(s.ID >> 8), byte(s.ID), 0x1f, 0x90}
	sumAt := 6
	if s.TCP {
		proto, sumAt = packet.ProtoTCP, 16
		l4 = binary.BigEndian.AppendUint32(l4, s.Seq)
		l4 = append(l4, 0, 0, 0, 1, 5<<4, s.TCPFlags, 0xff, 0xff, 0, 0, 0, 0)
	} else {
		l4 = append(l4, byte((8+len(s.Payload))>>8), byte(8+len(s.Payload)), 0, 0)
	}
	headers := len(l4)
	l4 = append(l4, s.Payload...)
	b := packet.AppendIP(make([]byte, tunnel.HeaderLen), proto, src, dst, 64, 0, len(l4), s.ID, true)
	hdr.CsumStart, hdr.CsumOffset = uint16(len(b)-tunnel.HeaderLen), uint16(sumAt)
	hdr.HdrLen = hdr.CsumStart + uint16(headers)
	sum := packet.PseudoHeaderSum(proto, src, dst, len(l4))
	if s.Partial || s.SegmentSize > 0 {
		hdr.Flags = tunnel.FlagNeedsCsum
	} else {
		hdr = tunnel.Header{}
		if sum = ^packet.Checksum(l4, sum); sum == 0 && !s.TCP {
			sum = 0xffff
		}
	}
	binary.BigEndian.PutUint16(l4[sumAt:], sum)
	if s.SegmentSize > 0 {
		hdr.GSOSize = uint16(s.SegmentSize)
		hdr.GSOType = s.gsoType()
	}
	hdr.Encode(b)
	return append(b, l4...)
}

func (s FrameSpec) gsoType() uint8 {
	switch {
	case !s.TCP:
		return tunnel.GSOUDPL4
	case s.IPv6:
		return tunnel.GSOTCPv6
	default:
		return tunnel.GSOTCPv4
	}
}

// Payload returns n bytes that differ with their place and with seed.
func Payload(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) + byte(i>>8)*31 + seed
	}
	return b
}
