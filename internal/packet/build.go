package packet

import "net/netip"

// AppendIP appends an IPv4 or IPv6 header.
func AppendIP(b []byte, proto uint8, src, dst netip.Addr, hopLimit, tos uint8, l4len int, id uint16, df bool) []byte {
	return b
}

// AppendUDPHeader appends the 8 bytes of a UDP header with a full checksum.
func AppendUDPHeader(b []byte, src, dst netip.AddrPort, payload [][]byte) []byte { return b }

// AppendEcho appends a whole ICMP or ICMPv6 echo packet.
func AppendEcho(b []byte, reply bool, src, dst netip.Addr, id, seq uint16, hopLimit uint8, payload []byte) []byte {
	return b
}
