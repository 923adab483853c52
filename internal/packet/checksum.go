package packet

import "net/netip"

// Checksum adds b to initial in one's complement arithmetic (RFC 1071) and
// returns the folded sum, NOT inverted.
func Checksum(b []byte, initial uint16) uint16 { return 0 }

// ChecksumSlices is Checksum over the concatenation of bufs.
func ChecksumSlices(bufs [][]byte, initial uint16) uint16 { return 0 }

// PseudoHeaderSum is the folded sum of the transport pseudo header.
func PseudoHeaderSum(proto uint8, src, dst netip.Addr, l4len int) uint16 { return 0 }

// ValidL4Checksum says whether the transport checksum of the packet is right.
func ValidL4Checksum(h *Header, pkt [][]byte) bool { return false }
