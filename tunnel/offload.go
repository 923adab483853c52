package tunnel

import (
	"encoding/binary"

	"github.com/usernet/usernet/internal/packet"
)

// splitter turns one frame into the packets that it stands for, each complete
// in itself: it does in software what the kernel does for a frame whose
// receiver has no offloads (net/ipv4/tcp_offload.c and udp_offload.c). It keeps
// no memory of its own.
//
// Use: start once per frame, then next until it returns 0.
type splitter struct {
	hdr Header
	ip  packet.Header
	pkt []byte // the whole packet

	size   int // payload bytes per segment; the whole payload if not a superframe
	offset int // of the next segment's payload
	index  int // of the next segment
	done   bool
}

// start takes a frame apart. It refuses hostile and malformed frames with an
// error that matches ErrFrame, before anything is read by the offsets in them.
// pkt must stay unchanged until the last next.
func (s *splitter) start(hdr Header, pkt []byte) error {
	s.hdr, s.pkt = hdr, pkt
	if fault := s.ip.Parse(pkt, len(pkt)); fault != packet.FaultNone {
		return ErrFrame
	}
	if err := s.hdr.Check(&s.ip); err != nil {
		return err
	}
	s.offset, s.index, s.done = 0, 0, false
	s.size = len(pkt) - s.ip.Payload
	if s.hdr.Superframe() {
		s.size = int(s.hdr.GSOSize)
	}
	return nil
}

// nextLen returns the length of the packet that the next call of next writes, 0
// when there is none.
func (s *splitter) nextLen() int {
	if s.done {
		return 0
	}
	return s.ip.Payload + min(s.size, len(s.pkt)-s.ip.Payload-s.offset)
}

// next writes the next packet into dst, which must have room for nextLen bytes,
// and returns its length, 0 when there is no more.
func (s *splitter) next(dst []byte) int {
	length := s.nextLen()
	if length == 0 {
		return 0
	}
	seg := dst[:length]
	begin := s.ip.Payload + s.offset
	payload := length - s.ip.Payload
	copy(seg, s.pkt[:s.ip.Payload])
	copy(seg[s.ip.Payload:], s.pkt[begin:begin+payload])
	last := begin+payload == len(s.pkt)
	switch {
	case s.hdr.Superframe():
		s.patchIP(seg)
		s.patchTransport(seg, last)
	case s.hdr.Flags&FlagNeedsCsum != 0:
		s.completeChecksum(seg)
	}
	s.offset += payload
	s.index++
	s.done = last
	return length
}

// patchIP makes the network header that of one segment.
func (s *splitter) patchIP(seg []byte) {
	if s.ip.Version == 6 {
		binary.BigEndian.PutUint16(seg[4:], uint16(len(seg)-ipv6HeaderLen))
		return
	}
	binary.BigEndian.PutUint16(seg[2:], uint16(len(seg)))
	// Each segment has an identification of its own, one above the last: some
	// receivers and middleboxes need that even with DF.
	id := binary.BigEndian.Uint16(seg[4:]) + uint16(s.index)
	binary.BigEndian.PutUint16(seg[4:], id)
	binary.BigEndian.PutUint16(seg[10:], 0)
	headerLen := int(seg[0]&0x0f) * 4
	binary.BigEndian.PutUint16(seg[10:], ^packet.Checksum(seg[:headerLen], 0))
}

const ipv6HeaderLen = 40

// TCP flag byte, and the flags that not every segment may carry.
const (
	tcpFlagsAt = 13
	tcpCWR     = 0x80
)

// patchTransport makes the transport header that of one segment and sums it
// anew, without trust in the sum that was there.
func (s *splitter) patchTransport(seg []byte, last bool) {
	l4 := seg[s.ip.L4:]
	sumAt := udpCsumOffset
	if s.ip.Proto == packet.ProtoTCP {
		sumAt = tcpCsumOffset
		seq := binary.BigEndian.Uint32(l4[4:]) + uint32(s.offset)
		binary.BigEndian.PutUint32(l4[4:], seq)
		if !last { // the stream ends, and is pushed, with its last byte
			l4[tcpFlagsAt] &^= packet.FlagFIN | packet.FlagPSH
		}
		if s.index > 0 { // RFC 3168 §6.1.2: the window is reduced once
			l4[tcpFlagsAt] &^= tcpCWR
		}
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	}
	binary.BigEndian.PutUint16(l4[sumAt:], 0)
	pseudo := packet.PseudoHeaderSum(s.ip.Proto, s.ip.Src, s.ip.Dst, len(l4))
	s.putChecksum(l4[sumAt:], ^packet.Checksum(l4, pseudo))
}

// completeChecksum sums what the virtio header left to the receiver. The field
// holds the pseudo-header's sum, which is thereby counted in.
func (s *splitter) completeChecksum(seg []byte) {
	start := int(s.hdr.CsumStart)
	sum := ^packet.Checksum(seg[start:], 0)
	s.putChecksum(seg[start+int(s.hdr.CsumOffset):], sum)
}

// putChecksum writes a transport checksum. UDP cannot say 0, which stands for
// "none"; the other zero of one's complement says the same (RFC 768).
func (s *splitter) putChecksum(field []byte, sum uint16) {
	if sum == 0 && s.ip.Proto == packet.ProtoUDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
}
