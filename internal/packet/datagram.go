package packet

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"
)

// datagram is what has come of one fragmented packet.
type datagram struct {
	key          datagramKey
	older, newer *datagram
	since        time.Time       // when the first fragment to come came
	dead         ReassemblyFault // not none: discard what still comes
	version      uint8
	header       []byte // headers of the fragment with offset 0, as they came
	data         []byte // data of all fragments, in the order of arrival
	parts        []part // the fragments, by offset
	total        int    // length of the data; -1 until the last fragment came
}

// part is one fragment: length bytes at offset of the datagram, which lie at
// data[at:].
type part struct {
	offset, length uint16
	at             uint32
}

// Memory of a datagram beside its buffers (struct, map entry), and of a part.
const (
	datagramCharge = 256
	partCharge     = 8
)

// reset makes d an empty datagram and keeps its buffers.
func (d *datagram) reset(key datagramKey, now time.Time) {
	*d = datagram{key: key, since: now, total: -1, header: d.header[:0], data: d.data[:0], parts: d.parts[:0]}
}

// charge is the memory that d counts for. Buffers count with their capacity, so
// that many small fragments are as dear as they are.
func (d *datagram) charge() int {
	return datagramCharge + cap(d.header) + cap(d.data) + cap(d.parts)*partCharge
}

// add takes one fragment. After a fault d must not be used but for its parts.
func (d *datagram) add(h *Header, pkt [][]byte) ReassemblyFault {
	start := h.L4
	if h.Version == 6 {
		_, at := fragmentHeader(pkt[0])
		start = at + fragHeaderLen
	}
	offset, length := h.FragOffset, h.Len-start
	end := offset + length
	if length <= 0 || end > maxIPLen {
		return ReassemblyLength
	}
	i, _ := slices.BinarySearchFunc(d.parts, offset, func(p part, offset int) int {
		return int(p.offset) - offset
	})
	if i < len(d.parts) && int(d.parts[i].offset) < end {
		if d.repeats(d.parts[i], offset, length, pkt, start) {
			return ReassemblyNone
		}
		return ReassemblyOverlap
	}
	if i > 0 && d.parts[i-1].end() > offset {
		return ReassemblyOverlap
	}
	if d.total >= 0 && (end > d.total || end == d.total && h.MoreFragments) {
		return ReassemblyLength
	}
	if !h.MoreFragments {
		if d.total >= 0 || i < len(d.parts) {
			return ReassemblyLength // a second last fragment, or one that lies before others
		}
		d.total = end
	}
	d.version = h.Version
	if offset == 0 {
		d.header = appendRange(d.header[:0], pkt, 0, start)
	}
	p := part{offset: uint16(offset), length: uint16(length), at: uint32(len(d.data))}
	d.data = appendRange(d.data, pkt, start, length)
	if len(d.data) != int(p.at)+length {
		return ReassemblyLength // pkt is shorter than h says
	}
	d.parts = slices.Insert(d.parts, i, p)
	if d.complete() && d.wholeLen() > maxIPLen {
		return ReassemblyLength
	}
	return ReassemblyNone
}

func (p part) end() int { return int(p.offset) + int(p.length) }

// bytes is the part's data.
func (d *datagram) bytes(p part) []byte {
	return d.data[p.at : int(p.at)+int(p.length)]
}

// repeats says whether a fragment is p once more, byte by byte.
func (d *datagram) repeats(p part, offset, length int, pkt [][]byte, start int) bool {
	if int(p.offset) != offset || int(p.length) != length {
		return false
	}
	have := d.bytes(p)
	for _, b := range pkt {
		if start >= len(b) {
			start -= len(b)
			continue
		}
		b = b[start:]
		start = 0
		n := min(len(b), len(have))
		if !bytes.Equal(b[:n], have[:n]) {
			return false
		}
		have = have[n:]
	}
	return len(have) == 0
}

// complete says whether all of the datagram is there. Parts do not overlap and
// end at total, so the sum of their lengths tells.
func (d *datagram) complete() bool { return d.total >= 0 && len(d.data) == d.total }

// wholeLen is what the length field of the complete packet has to say: IPv4
// counts the header, IPv6 only the extension headers that stay.
func (d *datagram) wholeLen() int {
	if d.version == 6 {
		return len(d.header) - ipv6HeaderLen - fragHeaderLen + d.total
	}
	return len(d.header) + d.total
}

// hasFirst says whether the fragment with offset 0 is there.
func (d *datagram) hasFirst() bool { return len(d.parts) > 0 && d.parts[0].offset == 0 }

// appendFirst appends the fragment with offset 0 as it came.
func (d *datagram) appendFirst(b []byte) []byte {
	return append(append(b, d.header...), d.bytes(d.parts[0])...)
}

// appendWhole appends the packet that the parts make.
func (d *datagram) appendWhole(b []byte) []byte {
	b = slices.Grow(b, len(d.header)+d.total)
	b = append(b, d.header...)
	if d.version == 6 {
		field, at := fragmentHeader(b)
		b[field] = b[at]
		b = b[:at]
		binary.BigEndian.PutUint16(b[4:], uint16(at-ipv6HeaderLen+d.total))
	} else {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)+d.total))
		binary.BigEndian.PutUint16(b[6:], binary.BigEndian.Uint16(b[6:])&ipv4DontFragment)
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], ^Checksum(b, 0))
	}
	for _, p := range d.parts {
		b = append(b, d.bytes(p)...)
	}
	return b
}
