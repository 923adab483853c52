package netstack

import "time"

const (
	// crowdSize datagrams in crowdTime are a crowd: 80,000 a second. Who waits
	// for each answer before the next question makes fewer.
	crowdSize = 8
	crowdTime = 100 * time.Microsecond

	// crowdNap is how long a worker lets a crowd gather. The kernel's timers
	// add some 50 µs.
	crowdNap = 50 * time.Microsecond

	// crowdTurns read half of what the device's queue holds. When so many in a row left
	// something, the crowd grows faster than the worker carries it with naps between.
	crowdTurns = 16

	// overloadTurns in a row that left something, with no naps between most of them,
	// are more than the worker can carry.
	overloadTurns = 64
)

// crowd tells whether datagrams come one by one, so fast that it pays to let more
// of them gather before the next round: what a batch costs in system calls, and
// its receiver's wake-up, is then shared by more. And a receiver has time to read
// what one turn has given it, which its buffer has room for: the usual 208 KiB hold
// some 90 datagrams of 1,400 bytes, a turn gives maxReads. The device's queue holds
// 2,000. It belongs to a worker.
type crowd struct {
	count  int
	since  time.Time
	behind int // turns since all was read, up to overloadTurns
	hasty  int // turns since the last break, which was too long
}

// add counts datagrams that came one by one.
func (c *crowd) add(n int) { c.count += n }

// there reports whether those that were counted came as a crowd, and begins anew
// when there were enough to say.
func (c *crowd) there() bool {
	if c.count < crowdSize {
		return false
	}
	now := time.Now()
	crowded := now.Sub(c.since) <= time.Duration(c.count)*(crowdTime/crowdSize)
	c.count, c.since = 0, now
	return crowded
}

// breaks are what a worker does between two turns.
type breaks uint8

const (
	noBreak breaks = iota
	napBreak
	asideBreak
)

// next decides on the break after a turn, given whether that has read all and whether
// the last break was too long.
//
// A nap costs a fast sender's datagrams room in the device's queue, so a worker that
// is behind takes none, and one that stays behind stands aside: some will be lost, and
// a receiver on its processor runs only then, for the worker has a priority. Not
// before, for a sender that it makes room for may be the one that has most to do. A
// receiver with megabytes of buffer, or who computes beside it, may keep the processor
// for milliseconds: half a queue is read then before it gets that again.
func (c *crowd) next(all, tooLong bool) breaks {
	if all {
		c.behind, c.hasty = 0, 0
		return napBreak
	}
	c.behind = min(c.behind+1, overloadTurns)
	if tooLong && c.hasty < crowdTurns {
		c.hasty++
		return noBreak
	}
	c.hasty = 0
	switch {
	case c.behind < crowdTurns:
		return napBreak
	case c.behind < overloadTurns:
		return noBreak
	default:
		return asideBreak
	}
}

// rest lets a crowd gather at the end of a descriptor's turn, or its receiver read.
func (w *worker) rest(all bool) {
	b := w.crowd.next(all, w.loop.Overslept())
	switch {
	case b == noBreak || !w.crowd.there():
	case b == napBreak:
		w.loop.Nap(crowdNap)
	default:
		w.loop.StandAside()
	}
}
