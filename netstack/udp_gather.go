package netstack

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/tunnel"
)

// gatherFlows is how many flows a worker gathers datagrams of at a time. With one
// more, the one that began first goes out.
const gatherFlows = 8

// gatherings are those of a worker. They are empty between the turns of its links:
// who reads a link flushes them.
type gatherings struct {
	all  [gatherFlows]gathering
	next int // the place that was taken longest ago, or is free
}

// of returns what is gathered of a flow, or nil.
func (gs *gatherings) of(p *natPeer) *gathering {
	for i := range gs.all {
		if gs.all[i].peer == p {
			return &gs.all[i]
		}
	}
	return nil
}

// place returns the next place, which may be taken.
func (gs *gatherings) place() *gathering {
	g := &gs.all[gs.next]
	gs.next = (gs.next + 1) % gatherFlows
	return g
}

// gathering holds datagrams of one flow, read one after another, that go to the
// host's kernel by one system call.
//
// It keeps copies: of 1,400 bytes that costs a twentieth of what a call does.
type gathering struct {
	link  *Link
	peer  *natPeer // nil: nothing is gathered
	frame frame    // stands for the datagrams, as a superframe of the kernel's would
	count int
	full  bool // a shorter datagram was the last, or there is no room
	head  [viewHead]byte
	data  *[maxUDPPayload]byte // pooled: idle workers hold none
	bufs  [2][]byte
}

var gatherBuffers = sync.Pool{New: func() any { return new([maxUDPPayload]byte) }}

// gather takes a datagram that may go together with the next ones of its flow,
// and sends what it cannot go with. It reports false for what is to be sent at
// once, before which nothing of its flow waits.
func (u *udpNAT) gather(l *Link, p *natPeer, f *frame) bool {
	if !l.reader.hot() {
		return false
	}
	gs := &l.worker.gatherings
	g := gs.of(p)
	size := f.pkt.Len - f.pkt.Payload
	if g != nil {
		if g.takes(f, size) {
			g.add(f, size)
			return true
		}
		u.flush(g)
	}
	if size == 0 || 2*size > maxUDPPayload || f.hdr.Superframe() || p.single {
		return false
	}
	if g == nil {
		g = gs.place()
		u.flush(g)
	}
	g.begin(l, p, f, size)
	g.add(f, size)
	return true
}

// takes reports whether a datagram of the flow goes with those that are there: one
// size but for a shorter last one, and nothing that the kernel is told of differs.
func (g *gathering) takes(f *frame, size int) bool {
	have := &g.frame.pkt
	return !g.full && size > 0 && size <= int(g.frame.hdr.GSOSize) && !f.hdr.Superframe() &&
		f.pkt.TOS == have.TOS && f.pkt.HopLimit == have.HopLimit && f.pkt.DontFragment == have.DontFragment
}

// begin makes the datagram the first.
func (g *gathering) begin(l *Link, p *natPeer, f *frame, size int) {
	g.link, g.peer, g.full, g.count = l, p, false, 0
	g.data = gatherBuffers.Get().(*[maxUDPPayload]byte)
	g.frame.hdr = tunnel.Header{GSOSize: uint16(size)}
	g.frame.pkt = f.pkt
	g.frame.pkt.Len = f.pkt.Payload
	g.bufs[0] = f.copyRange(g.head[:0], 0, f.pkt.Payload)
	g.bufs[1] = g.data[:0]
	g.frame.bufs = g.bufs[:]
}

func (g *gathering) add(f *frame, size int) {
	g.bufs[1] = f.copyRange(g.bufs[1], f.pkt.Payload, size)
	g.count++
	g.link.worker.crowd.add(1)
	g.frame.pkt.Len += size
	segment := int(g.frame.hdr.GSOSize)
	g.full = size < segment || g.count == maxSegments || len(g.bufs[1])+segment > maxUDPPayload
}

// flushAll sends what a worker has gathered.
func (u *udpNAT) flushAll(w *worker) {
	gs := &w.gatherings
	for range gatherFlows { // in the order in which they began
		u.flush(gs.place())
	}
}

// flush sends what is gathered of a flow, if anything is.
func (u *udpNAT) flush(g *gathering) {
	if g.peer == nil {
		return
	}
	l, p := g.link, g.peer
	if g.count > 1 {
		u.sendGathered(l, p, g)
	} else {
		u.transmit(l, p, &g.frame)
	}
	gatherBuffers.Put(g.data)
	g.link, g.peer, g.data, g.bufs = nil, nil, nil, [2][]byte{}
}

// sendGathered sends datagrams as one superframe, or one by one where the way
// out cannot split it: each of them is then what the kernel says of it.
func (u *udpNAT) sendGathered(l *Link, p *natPeer, g *gathering) {
	f, data := &g.frame, g.bufs[1]
	errno := sendDatagram(l, p, f, f.pkt.Payload, len(data), int(f.hdr.GSOSize))
	switch {
	case errno == 0:
		u.noteSent(p)
		p.flow.add(fromContainer, g.count, g.count*f.pkt.Payload+len(data))
	case unsegmentable(errno) || errno == unix.EMSGSIZE:
		p.single = true
		for len(data) > 0 {
			n := min(len(data), int(f.hdr.GSOSize))
			g.bufs[1], f.pkt.Len = data[:n], f.pkt.Payload+n
			u.transmit(l, p, f)
			data = data[n:]
		}
	default:
		u.sendFailed(l, p, f, errno)
		l.dropMany(DropHostSend, g.count-1)
	}
}
