package packet

import "encoding/binary"

// AppendTCPReset appends to b a whole packet that refuses or ends the connection
// of orig, a TCP segment from a container, as if orig's destination had sent
// it, and returns the extended slice. orig may be just the first bytes of the
// packet (Parse's head). RFC 9293 §3.10.7.1 says which numbers the reset
// carries. b is returned unchanged when orig is no segment that can be answered:
// not TCP, malformed, a fragment, from or to no single host, or a reset itself.
func AppendTCPReset(b []byte, orig []byte) []byte {
	var h Header
	if !parseAny(&h, orig) || h.Proto != ProtoTCP || h.Fragment || h.TCPFlags&FlagRST != 0 {
		return b
	}
	if !isOneHost(h.Src) || !isOneHost(h.Dst) {
		return b
	}
	segment := orig[h.L4:]
	var seq, ack uint32
	flags := FlagRST
	if h.TCPFlags&FlagACK != 0 {
		seq = binary.BigEndian.Uint32(segment[8:])
	} else {
		flags |= FlagACK
		length := h.Len - h.Payload // SYN and FIN take a number each
		if h.TCPFlags&FlagSYN != 0 {
			length++
		}
		if h.TCPFlags&FlagFIN != 0 {
			length++
		}
		ack = binary.BigEndian.Uint32(segment[4:]) + uint32(length)
	}
	b = AppendIP(b, ProtoTCP, h.Dst, h.Src, defaultHopLimit, 0, tcpHeaderLen, 0, true)
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, h.DstPort)
	b = binary.BigEndian.AppendUint16(b, h.SrcPort)
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, ack)
	b = append(b, tcpHeaderLen/4<<4, flags, 0, 0, 0, 0, 0, 0)
	sum := Checksum(b[start:], PseudoHeaderSum(ProtoTCP, h.Dst, h.Src, tcpHeaderLen))
	binary.BigEndian.PutUint16(b[start+16:], ^sum)
	return b
}
