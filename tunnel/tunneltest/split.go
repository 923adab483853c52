package tunneltest

import (
	"encoding/binary"
	"fmt"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

// Packets returns the IP packets that a frame stands for, each with all its
// checksums complete. It is the slow and obvious way to split a superframe,
// which tests hold the fast ones against. It fails on a frame that no kernel
// would make.
func Packets(frame []byte) ([][]byte, error) {
	if len(frame) <= tunnel.HeaderLen {
		return nil, fmt.Errorf("frame of %d bytes has no packet", len(frame))
	}
	var hdr tunnel.Header
	hdr.Decode(frame)
	pkt := frame[tunnel.HeaderLen:]
	var ip packet.Header
	if fault := ip.Parse(pkt, len(pkt)); fault != packet.FaultNone {
		return nil, fmt.Errorf("packet in frame: %v", fault)
	}
	if err := hdr.Check(&ip); err != nil {
		return nil, err
	}
	if hdr.Flags&tunnel.FlagNeedsCsum == 0 {
		return [][]byte{append([]byte(nil), pkt...)}, nil
	}
	head, payload := pkt[:ip.Payload], pkt[ip.Payload:]
	size := len(payload)
	if hdr.Superframe() {
		size = int(hdr.GSOSize)
	}
	var all [][]byte
	for i := 0; i == 0 || len(payload) > 0; i++ {
		n := min(size, len(payload))
		p := append(append([]byte(nil), head...), payload[:n]...)
		payload = payload[n:]
		rewrite(p, &ip, i, i*size, len(payload) == 0)
		all = append(all, p)
	}
	return all, nil
}

// rewrite makes p, a copy of the headers with one segment's payload, the
// segment with the given number, payload offset and place.
func rewrite(p []byte, ip *packet.Header, number, offset int, last bool) {
	if ip.Version == 4 {
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[4:], binary.BigEndian.Uint16(p[4:])+uint16(number))
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], ^onesSum(p[:int(p[0]&15)*4]))
	} else {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	}
	l4 := p[ip.L4:]
	field := l4[6:8]
	if ip.Proto == packet.ProtoTCP {
		field = l4[16:18]
		binary.BigEndian.PutUint32(l4[4:], binary.BigEndian.Uint32(l4[4:])+uint32(offset))
		if number > 0 {
			l4[13] &^= 0x80 // CWR
		}
		if !last {
			l4[13] &^= 0x01 | 0x08 // FIN, PSH
		}
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	}
	field[0], field[1] = 0, 0
	pseudo := append(ip.Src.AsSlice(), ip.Dst.AsSlice()...)
	pseudo = append(pseudo, 0, ip.Proto, byte(len(l4)>>8), byte(len(l4)))
	sum := ^onesSum(append(pseudo, l4...))
	if sum == 0 && ip.Proto == packet.ProtoUDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
}

// onesSum is the one's complement sum of RFC 1071, byte pair by byte pair.
func onesSum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
