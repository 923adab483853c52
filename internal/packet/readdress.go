package packet

import (
	"encoding/binary"
	"net/netip"
)

// Readdress gives a TCP or UDP packet other ends and mends its checksums without
// a look at the payload (RFC 1624). head begins with the IP header and holds the
// transport header too; h was parsed from it, and is not changed. src and dst
// are of the packet's family. partial says that the transport checksum is the
// pseudo-header's sum, which a device is to complete.
func Readdress(head []byte, h *Header, src, dst netip.AddrPort, partial bool) {
	addrs := addAddr(addAddr(0, src.Addr()), dst.Addr())
	addrs = addSums(addrs, ^addAddr(addAddr(0, h.Src), h.Dst))
	ports := addSums(addSums(src.Port(), dst.Port()), ^addSums(h.SrcPort, h.DstPort))
	if h.Version == 4 {
		s, d := src.Addr().As4(), dst.Addr().As4()
		copy(head[12:], s[:])
		copy(head[16:], d[:])
		sum := ^binary.BigEndian.Uint16(head[10:])
		binary.BigEndian.PutUint16(head[10:], ^addSums(sum, addrs))
	} else {
		s, d := src.Addr().As16(), dst.Addr().As16()
		copy(head[8:], s[:])
		copy(head[24:], d[:])
	}
	l4 := head[h.L4:]
	binary.BigEndian.PutUint16(l4, src.Port())
	binary.BigEndian.PutUint16(l4[2:], dst.Port())
	at := 16 // of TCP's checksum
	if h.Proto == ProtoUDP {
		at = 6
	}
	field := l4[at : at+2]
	sum := binary.BigEndian.Uint16(field)
	switch {
	case partial:
		sum = addSums(sum, addrs)
	case h.Proto == ProtoUDP && sum == 0: // none
	default:
		sum = ^addSums(addSums(^sum, addrs), ports)
		if h.Proto == ProtoUDP && sum == 0 {
			sum = 0xffff // zero would mean none (RFC 768)
		}
	}
	binary.BigEndian.PutUint16(field, sum)
}
