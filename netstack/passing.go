package netstack

import (
	"encoding/binary"

	"github.com/usernet/usernet/internal/packet"
)

// passingACKs are bare acknowledgements of one container on their way to others
// while a run of its frames is read. An acknowledgement says all that an earlier
// one of its flow said, so of those that lie in the device together only the last
// need be written (RFC 3449 §5.2.1): a write costs more than all else that the
// switch does for one, and has the far kernel do its part of the work. It belongs
// to a worker; nothing is held between two calls of its readers.
type passingACKs struct {
	held  [maxPassing]passingACK
	count int
	bufs  [1][]byte // of one frame
}

type passingACK struct {
	flow   *flow
	to     *Link
	number uint32 // the acknowledgement's
	length int
	bytes  [maxACK]byte
}

// maxPassing is how many flows may have an acknowledgement held. Those of more
// are written at once.
const maxPassing = 16

// passing is what is to become of a frame.
type passing uint8

const (
	passNow   passing = iota // it is written
	passLater                // it is held
	passNever                // it is held in the place of another, which is superseded
)

// pass says what is to become of a frame to a peer. It may wait only where the
// end of its reader's turn is certain to follow, and is worth its copy only where
// others are likely to come in this turn.
func (l *Link) pass(fl *flow, to *Link, f *frame) passing {
	if f.pkt.Proto != packet.ProtoTCP || !l.reader.hot() {
		return passNow
	}
	return l.worker.passing.take(fl, to, f)
}

// take decides about a frame of a flow, and keeps what is to be held. What was
// held of the flow, and is not superseded, is sent before.
func (p *passingACKs) take(fl *flow, to *Link, f *frame) passing {
	number, bare := acknowledges(f)
	at := 0
	for at < p.count && p.held[at].flow != fl {
		at++
	}
	if at < p.count {
		h := &p.held[at]
		if bare && h.length == f.length && int32(number-h.number) > 0 {
			h.keep(number, f)
			return passNever
		}
		p.send(h)
		p.count--
		*h = p.held[p.count]
		p.held[p.count] = passingACK{}
	}
	if !bare || p.count == maxPassing {
		return passNow
	}
	h := &p.held[p.count]
	h.flow, h.to = fl, to
	h.keep(number, f)
	p.count++
	return passLater
}

func (h *passingACK) keep(number uint32, f *frame) {
	h.number, h.length = number, copy(h.bytes[:], f.raw[0])
}

// flush sends all that is held.
func (p *passingACKs) flush() {
	for i := range p.held[:p.count] {
		h := &p.held[i]
		p.send(h)
		h.flow, h.to = nil, nil
	}
	p.count = 0
}

func (p *passingACKs) send(h *passingACK) {
	p.bufs[0] = h.bytes[:h.length]
	h.to.send(p.bufs[:])
}

// timestampsOnly is how the options begin of a segment that has no others, as
// RFC 7323 Appendix A lays them out.
const timestampsOnly = 0x0101080a

// acknowledges reports whether a TCP segment does nothing but acknowledge, and what: it has
// no data, no other flag, and no option that says more than one after it could,
// as a selective acknowledgement does.
func acknowledges(f *frame) (number uint32, bare bool) {
	p := &f.pkt
	if p.Payload != p.Len || p.Fragment || f.length > maxACK {
		return 0, false
	}
	segment := f.bufs[0][p.L4:]
	if segment[12]&0xf != 0 || segment[13] != packet.FlagACK { // congestion flags too (RFC 3168, AccECN)
		return 0, false
	}
	switch p.Payload - p.L4 {
	case 20:
	case 32:
		if binary.BigEndian.Uint32(segment[20:]) != timestampsOnly {
			return 0, false
		}
	default:
		return 0, false
	}
	return binary.BigEndian.Uint32(segment[8:]), true
}
