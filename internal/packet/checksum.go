package packet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Checksum adds b to initial in one's complement arithmetic (RFC 1071) and
// returns the folded sum, NOT inverted: a header field takes ^sum, and a region
// with its right checksum in place sums to 0xffff. b counts as if it began at
// an even offset of the checksummed region, and an odd last byte as if a zero
// followed.
func Checksum(b []byte, initial uint16) uint16 {
	// The sum of 16-bit words may be taken in words of any width, and in either
	// byte order as long as the result is swapped back (RFC 1071 §2). Little
	// endian 64-bit loads are single instructions on what we run on, and
	// bits.Add64 compiles to add-with-carry. sum += carry never overflows: a
	// sum that carried is at most 2⁶⁴-2, by induction along the chain.
	var sum, carry uint64
	sum = uint64(bits.ReverseBytes16(initial))
	for len(b) >= 64 {
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[0:8]), 0)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[8:16]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[16:24]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[24:32]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[32:40]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[40:48]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[48:56]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[56:64]), carry)
		sum += carry
		b = b[64:]
	}
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b), 0)
		sum += carry
		b = b[8:]
	}
	if len(b) >= 4 {
		sum, carry = bits.Add64(sum, uint64(binary.LittleEndian.Uint32(b)), 0)
		sum += carry
		b = b[4:]
	}
	if len(b) >= 2 {
		sum, carry = bits.Add64(sum, uint64(binary.LittleEndian.Uint16(b)), 0)
		sum += carry
		b = b[2:]
	}
	if len(b) == 1 {
		sum, carry = bits.Add64(sum, uint64(b[0]), 0)
		sum += carry
	}
	return bits.ReverseBytes16(fold(sum))
}

// fold brings a one's complement sum down to 16 bits.
func fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}

// addSums adds two folded sums.
func addSums(a, b uint16) uint16 {
	sum := uint32(a) + uint32(b)
	return uint16(sum>>16 + sum&0xffff)
}

// ChecksumSlices is Checksum over the concatenation of bufs, wherever its
// borders fall.
func ChecksumSlices(bufs [][]byte, initial uint16) uint16 {
	return checksumFrom(bufs, 0, initial)
}

// checksumFrom is ChecksumSlices without the first skip bytes.
func checksumFrom(bufs [][]byte, skip int, initial uint16) uint16 {
	sum, odd := initial, false
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b = b[skip:]
		skip = 0
		part := Checksum(b, 0)
		if odd {
			// This slice's bytes stand in the other halves of the words.
			part = bits.ReverseBytes16(part)
		}
		sum = addSums(sum, part)
		odd = odd != (len(b)&1 == 1)
	}
	return sum
}

// PseudoHeaderSum is the folded sum of the pseudo header that TCP, UDP and
// ICMPv6 checksums cover besides the packet (RFC 9293 §3.1, RFC 8200 §8.1).
// l4len is the length of transport header and payload. A device that finishes
// checksums expects this very value, not inverted, in the checksum field.
// IPv4-mapped addresses count as IPv4.
func PseudoHeaderSum(proto uint8, src, dst netip.Addr, l4len int) uint16 {
	// The length is a 32-bit field in IPv6 and a 16-bit one in IPv4; the upper
	// half is zero for every packet that we handle, and adding it is right for
	// both.
	sum := addSums(uint16(l4len>>16), uint16(l4len))
	sum = addSums(sum, uint16(proto))
	return addAddr(addAddr(sum, src), dst)
}

func addAddr(sum uint16, a netip.Addr) uint16 {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return Checksum(b[:], sum)
	}
	b := a.As16()
	return Checksum(b[:], sum)
}

// ValidL4Checksum says whether the checksum of the packet's transport is right.
// pkt is the whole packet in pieces, from the IP header on, and h was parsed
// from it. A UDP checksum of 0 means "none" in IPv4, which is valid, and is
// invalid in IPv6 (RFC 8200 §8.1). True for transports whose checksum we do not
// know, and for fragments, whose datagram can only be judged as a whole.
//
// Not for packets of a device with checksum offload that still lack their
// checksum: they would be judged wrong.
func ValidL4Checksum(h *Header, pkt [][]byte) bool {
	if h.Fragment {
		return true
	}
	var initial uint16
	switch {
	case h.Proto == ProtoTCP:
		initial = PseudoHeaderSum(h.Proto, h.Src, h.Dst, h.Len-h.L4)
	case h.Proto == ProtoUDP:
		if byteAt(pkt, h.L4+6) == 0 && byteAt(pkt, h.L4+7) == 0 {
			return h.Version == 4
		}
		initial = PseudoHeaderSum(h.Proto, h.Src, h.Dst, h.Len-h.L4)
	case h.hasICMP():
		if h.Version == 6 {
			initial = PseudoHeaderSum(h.Proto, h.Src, h.Dst, h.Len-h.L4)
		}
	default:
		return true
	}
	return checksumFrom(pkt, h.L4, initial) == 0xffff
}

// byteAt is byte i of the concatenation of bufs; 0 beyond its end.
func byteAt(bufs [][]byte, i int) byte {
	for _, b := range bufs {
		if i < len(b) {
			return b[i]
		}
		i -= len(b)
	}
	return 0
}
