package packet

import "encoding/binary"

// DecrementHopLimit takes 1 from the TTL or hop limit of the packet that begins
// at pkt[0], and mends the IPv4 header checksum without a look at the rest of
// the header (RFC 1141, with RFC 1624's correction). The caller has parsed the
// packet and has seen a hop limit above 1; pkt needs to hold only the first 12
// bytes.
func DecrementHopLimit(pkt []byte) {
	if pkt[0]>>4 == 6 {
		pkt[7]--
		return
	}
	pkt[8]--
	// The 16-bit word of TTL and protocol fell by 0x0100, so the inverted sum
	// grows by as much. 0xffff is negative zero: a header's sum is never zero,
	// so a full computation would have written 0x0000.
	sum := uint32(binary.BigEndian.Uint16(pkt[10:])) + 0x0100
	if sum >= 0xffff {
		sum -= 0xffff
	}
	binary.BigEndian.PutUint16(pkt[10:], uint16(sum))
}
