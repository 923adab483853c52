package packet

import (
	"encoding/binary"
	"net/netip"
)

// defaultHopLimit is what packets that the switch itself makes carry (RFC 1700
// recommends 64).
const defaultHopLimit = 64

// AppendIP appends to b an IP header of the version that src and dst have, and
// returns the extended slice: 20 bytes for IPv4 with its checksum, 40 for IPv6.
// l4len is the length of what the caller appends after it; a sum beyond 65535
// bytes does not fit the length field and is the caller's fault. id and df serve
// IPv4 only. IPv4-mapped addresses are written as IPv4; src and dst have one
// family.
func AppendIP(b []byte, proto uint8, src, dst netip.Addr, hopLimit, tos uint8, l4len int, id uint16, df bool) []byte {
	src, dst = src.Unmap(), dst.Unmap()
	start := len(b)
	if !dst.Is4() {
		b = append(b, 0x60|tos>>4, tos<<4, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(l4len))
		b = append(b, proto, hopLimit)
		s, d := src.As16(), dst.As16()
		b = append(b, s[:]...)
		return append(b, d[:]...)
	}
	var flags uint16
	if df {
		flags = ipv4DontFragment
	}
	b = append(b, 0x45, tos)
	b = binary.BigEndian.AppendUint16(b, uint16(ipv4HeaderLen+l4len))
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, hopLimit, proto, 0, 0)
	s, d := as4(src), as4(dst)
	b = append(b, s[:]...)
	b = append(b, d[:]...)
	binary.BigEndian.PutUint16(b[start+10:], ^Checksum(b[start:], 0))
	return b
}

// as4 is a.As4 for IPv4, and 0.0.0.0 for anything else, where As4 would panic:
// no caller may end the process by a mixture of families.
func as4(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}

// AppendUDPHeader appends the 8 bytes of a UDP header for payload, with a
// checksum over all of it, and returns the extended slice. The payload itself
// is not appended, so that it can be sent from where it lies.
func AppendUDPHeader(b []byte, src, dst netip.AddrPort, payload [][]byte) []byte {
	start := len(b)
	length := udpHeaderLen
	for _, p := range payload {
		length += len(p)
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0)
	sum := PseudoHeaderSum(ProtoUDP, src.Addr(), dst.Addr(), length)
	sum = Checksum(b[start:], sum)
	sum = ChecksumSlices(payload, sum)
	if sum != 0xffff {
		sum = ^sum // else 0xffff stands for 0, which would mean "none"
	}
	binary.BigEndian.PutUint16(b[start+6:], sum)
	return b
}

// AppendEcho appends a whole packet with an ICMP or ICMPv6 echo request, or
// reply, and returns the extended slice. hopLimit 0 means 64.
func AppendEcho(b []byte, reply bool, src, dst netip.Addr, id, seq uint16, hopLimit uint8, payload []byte) []byte {
	if hopLimit == 0 {
		hopLimit = defaultHopLimit
	}
	version, proto := family(dst)
	l4len := icmpHeaderLen + len(payload)
	b = AppendIP(b, proto, src, dst, hopLimit, 0, l4len, id, false)
	start := len(b)
	typ := echoRequestType(version)
	if reply {
		typ = echoReplyType(version)
	}
	b = append(b, typ, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, seq)
	b = append(b, payload...)
	putICMPChecksum(b[start:], proto, src, dst)
	return b
}

// family is the IP version of a and the ICMP protocol that goes with it.
func family(a netip.Addr) (version, icmp uint8) {
	if a.Unmap().Is4() {
		return 4, ProtoICMP
	}
	return 6, ProtoICMPv6
}

// putICMPChecksum writes the checksum of the ICMP message that is all of l4 and
// whose checksum field is zero.
func putICMPChecksum(l4 []byte, proto uint8, src, dst netip.Addr) {
	var sum uint16
	if proto == ProtoICMPv6 {
		sum = PseudoHeaderSum(proto, src, dst, len(l4))
	}
	binary.BigEndian.PutUint16(l4[2:], ^Checksum(l4, sum))
}
