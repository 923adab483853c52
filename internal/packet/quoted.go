package packet

import (
	"encoding/binary"
	"net/netip"
)

// Quoted is what an ICMP error tells of the packet that it is about, as far as
// that names a flow.
type Quoted struct {
	Proto uint8
	// Src and Dst are the quoted packet's ends. Ports are 0 for protocols
	// without; in an ICMP echo both hold the identifier.
	Src, Dst netip.AddrPort
}

// quotedL4 is how much of the quoted transport header is read: what every ICMP
// error holds at least (RFC 792).
const quotedL4 = 8

// Quoted reads the packet that the ICMP error h quotes. head begins with h's IP
// header and holds at least min(Len, HeadLen) bytes of the packet; the flow's
// names lie within. False when h is no ICMP error, or its quote is too short,
// is a later fragment, or has IPv6 extension headers other than a fragment's.
//
// Lengths and checksums of the quote are not checked: errors quote a part, and
// what routers have changed on the way.
func (h *Header) Quoted(head []byte) (q Quoted, ok bool) {
	if !h.IsICMPError() || len(head) < h.Payload {
		return q, false
	}
	b := head[h.Payload:min(len(head), h.Len)]
	var src, dst netip.Addr
	if h.Version == 4 {
		ihl := 0
		if len(b) >= ipv4HeaderLen {
			ihl = int(b[0]&0x0f) * 4
		}
		if ihl < ipv4HeaderLen || len(b) < ihl+quotedL4 || b[0]>>4 != 4 || binary.BigEndian.Uint16(b[6:])&ipv4OffsetMask != 0 {
			return q, false
		}
		q.Proto = b[9]
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		b = b[ihl:]
	} else {
		if len(b) < ipv6HeaderLen+quotedL4 || b[0]>>4 != 6 {
			return q, false
		}
		q.Proto = b[6]
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		b = b[ipv6HeaderLen:]
		if q.Proto == nextFragment {
			if len(b) < fragHeaderLen+quotedL4 || binary.BigEndian.Uint16(b[2:])&^7 != 0 {
				return q, false
			}
			q.Proto, b = b[0], b[fragHeaderLen:]
		}
		switch q.Proto {
		case nextHopByHop, nextRouting, nextFragment, nextDestOpts:
			return q, false
		}
	}
	sport, dport := quotedPorts(h.Version, q.Proto, b)
	q.Src, q.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return q, true
}

// quotedPorts reads the ports as Parse names them, of a transport header's first
// quotedL4 bytes.
func quotedPorts(version, proto uint8, b []byte) (src, dst uint16) {
	h := Header{Version: version, Proto: proto}
	switch {
	case proto == ProtoTCP, proto == ProtoUDP:
		return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case h.hasICMP():
		if b[0] == echoRequestType(version) || b[0] == echoReplyType(version) {
			id := binary.BigEndian.Uint16(b[4:])
			return id, id
		}
	}
	return 0, 0
}
