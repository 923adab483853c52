package packet

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

var (
	a4 = netip.MustParseAddr("10.5.0.2")
	b4 = netip.MustParseAddr("192.0.2.80")
	a6 = netip.MustParseAddr("fd05::2")
	b6 = netip.MustParseAddr("2001:db8::80")
)

// naiveSum is RFC 1071 word by word: the reference for everything faster.
func naiveSum(b []byte, initial uint16) uint16 {
	sum := uint32(initial)
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		sum += word
		if sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}

// ip4 makes an IPv4 packet without help from the code under test. word is the
// flags-and-offset word; options are padded to four bytes by the caller.
func ip4(proto uint8, word uint16, options, l4 []byte) []byte {
	total := 20 + len(options) + len(l4)
	b := []byte{
		0x40 | byte(5+len(options)/4), 0, // version, header length; TOS
		byte(total >> 8), byte(total), // total length
		0x12, 0x34, // identification
		byte(word >> 8), byte(word), // flags, offset
		64, proto, // TTL, protocol
		0, 0, // checksum
		10, 5, 0, 2, // source
		192, 0, 2, 80, // destination
	}
	b = append(b, options...)
	binary.BigEndian.PutUint16(b[10:], ^naiveSum(b, 0))
	return append(b, l4...)
}

// ip6 makes an IPv6 packet; next is the first next header, body all after the
// fixed header.
func ip6(next uint8, body ...[]byte) []byte {
	var all []byte
	for _, b := range body {
		all = append(all, b...)
	}
	b := []byte{0x60, 0, 0, 0, byte(len(all) >> 8), byte(len(all)), next, 64}
	s, d := a6.As16(), b6.As16()
	b = append(b, s[:]...)
	b = append(b, d[:]...)
	return append(b, all...)
}

// tcp is a TCP header of 20 bytes from port 40000 to 443 with payload.
func tcp(flags uint8, payload ...byte) []byte {
	return append([]byte{
		0x9c, 0x40, 0x01, 0xbb, // ports
		0, 0, 0x10, 0, // sequence number
		0, 0, 0x20, 0, // acknowledgment number
		0x50, flags, // data offset; flags
		0xff, 0xff, // window
		0, 0, // checksum
		0, 0, // urgent pointer
	}, payload...)
}

// udp is a UDP header from port 5353 to 53 with payload.
func udp(payload ...byte) []byte {
	n := 8 + len(payload)
	return append([]byte{0x14, 0xe9, 0x00, 0x35, byte(n >> 8), byte(n), 0, 0}, payload...)
}

// echo is an ICMP message of the type with identifier 0x0102, sequence 0x0304.
func echo(typ uint8, payload ...byte) []byte {
	return append([]byte{typ, 0, 0, 0, 1, 2, 3, 4}, payload...)
}

// frag6 is an IPv6 fragment header.
func frag6(next uint8, offset int, more bool, id uint32) []byte {
	word := uint16(offset)
	if more {
		word |= 1
	}
	return binary.BigEndian.AppendUint32([]byte{next, 0, byte(word >> 8), byte(word)}, id)
}

// opts6 is a hop-by-hop or destination options header of 8 bytes that holds one
// PadN.
func opts6(next uint8) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

// parse parses a whole packet that must be without fault.
func parse(t testing.TB, pkt []byte) Header {
	t.Helper()
	var h Header
	if f := h.Parse(pkt, len(pkt)); f != FaultNone {
		t.Fatalf("packet of %d bytes: fault %v\n% x", len(pkt), f, pkt)
	}
	return h
}

// seal writes the right transport checksum into a packet.
func seal(t testing.TB, pkt []byte) []byte {
	t.Helper()
	h := parse(t, pkt)
	at := map[uint8]int{ProtoTCP: 16, ProtoUDP: 6, ProtoICMP: 2, ProtoICMPv6: 2}[h.Proto]
	var pseudo []byte
	if h.Proto != ProtoICMP {
		s, d := h.Src.AsSlice(), h.Dst.AsSlice()
		pseudo = append(append(pseudo, s...), d...)
		n := len(pkt) - h.L4
		pseudo = append(pseudo, 0, 0, byte(n>>8), byte(n), 0, 0, 0, h.Proto)
	}
	field := pkt[h.L4+at:]
	field[0], field[1] = 0, 0
	sum := ^naiveSum(append(pseudo, pkt[h.L4:]...), 0)
	if sum == 0 && h.Proto == ProtoUDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
	return pkt
}

// scatter cuts b into pieces of n bytes.
func scatter(b []byte, n int) (bufs [][]byte) {
	for len(b) > n {
		bufs = append(bufs, b[:n])
		b = b[n:]
	}
	return append(bufs, b)
}

// pattern is n bytes that differ from their neighbours.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}
