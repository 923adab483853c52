package netstack

import (
	"sync"
	"time"

	"github.com/usernet/usernet/internal/packet"
)

// fragments puts a link's fragmented packets to the gateway and to the outside
// together: sockets carry whole datagrams, and policy judges whole ones. The
// janitor expires them, beside the link's reader; hence the lock.
type fragments struct {
	whole frame // what reassemble returned last; the reader's own
	bufs  [1][]byte

	mu      sync.Mutex // guards what follows
	r       *packet.Reassembler
	dropped uint64 // fragments that were counted as dropped
	gone    bool
}

// reassemble takes one fragment and returns the packet that it completes, or
// nil. It runs on the link's reader; the frame is valid until the next call.
func (u *udpNAT) reassemble(l *Link, f *frame) *frame {
	fr := &l.nat.fragments
	whole := fr.add(l, f)
	u.clock.watch(l)
	if whole == nil {
		return nil
	}
	g := &fr.whole
	fr.bufs[0] = whole
	g.bufs = fr.bufs[:]
	if fault := g.pkt.Parse(whole, len(whole)); fault != packet.FaultNone {
		l.drop(dropForFault(fault))
		return nil
	}
	// Who fragments lets others fragment: what was too large for the link may
	// be too large for the way out as well. IPv6 parses as never to be
	// fragmented, which is about routers; here the host is the sender.
	g.pkt.DontFragment = false
	return g
}

func (fr *fragments) add(l *Link, f *frame) []byte {
	fr.mu.Lock()
	defer fr.mu.Unlock()
	if l.limits.FragmentBytes < 0 || fr.gone {
		l.drop(DropReassembly)
		return nil
	}
	if fr.r == nil {
		fr.r = packet.NewReassembler(packet.ReassemblyLimits{Bytes: l.limits.FragmentBytes})
	}
	whole, _ := fr.r.Add(&f.pkt, f.bufs, time.Now())
	fr.countLocked(l)
	return whole
}

// countLocked counts what the reassembler has discarded since the last time,
// fragment by fragment.
func (fr *fragments) countLocked(l *Link) {
	var sum uint64
	for _, n := range fr.r.Discarded() {
		sum += n
	}
	for ; fr.dropped < sum; fr.dropped++ {
		l.drop(DropReassembly)
	}
}

// held reports whether any fragment waits for others.
func (fr *fragments) held() bool {
	fr.mu.Lock()
	defer fr.mu.Unlock()
	if fr.r == nil {
		return false
	}
	n, _ := fr.r.Held()
	return n > 0
}

// expire gives up what is incomplete for too long at now and tells the container
// (RFC 792, RFC 8200 §4.5). Without anything left it gives the memory back.
func (fr *fragments) expire(l *Link, now time.Time) {
	for _, first := range fr.expired(l, now) {
		l.rejectPacket(first, packet.ErrReassemblyTimeout, l.s.gateway(first[0]>>4 == 4), 0)
	}
}

func (fr *fragments) expired(l *Link, now time.Time) (firsts [][]byte) {
	fr.mu.Lock()
	defer fr.mu.Unlock()
	if fr.r == nil {
		return nil
	}
	fr.r.Expire(now, func(first []byte) { firsts = append(firsts, append([]byte(nil), first...)) })
	fr.countLocked(l)
	return firsts
}

// drop forgets everything, for good.
func (fr *fragments) drop() {
	fr.mu.Lock()
	defer fr.mu.Unlock()
	fr.r, fr.gone = nil, true
}

// copyRange appends n bytes of the packet from at on to into.
func (f *frame) copyRange(into []byte, at, n int) []byte {
	for _, b := range f.bufs {
		if at >= len(b) {
			at -= len(b)
			continue
		}
		part := b[at:min(len(b), at+n)]
		into = append(into, part...)
		at = 0
		if n -= len(part); n == 0 {
			break
		}
	}
	return into
}
