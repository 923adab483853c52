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

	// crowdTurns in which not all was read are a crowd that grows faster than the
	// worker carries it when it rests after each: half of the device's queue.
	crowdTurns = 16
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
	behind int // turns since all was read, up to crowdTurns
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

// restful reports whether a turn leaves time for a rest, given whether all was read
// and whether the last rest was too long.
//
// After one that read all it does. Before that only while rests end in time, for a
// receiver with a buffer of megabytes takes the processor for milliseconds, and while
// the turns catch up: the device's queue would not last.
func (c *crowd) restful(all, overslept bool) bool {
	if all {
		c.behind = 0
		return true
	}
	c.behind = min(c.behind+1, crowdTurns)
	return c.behind < crowdTurns && !overslept
}

// rest lets a crowd gather at the end of a descriptor's turn.
func (w *worker) rest(all bool) {
	if w.crowd.restful(all, w.loop.Overslept()) && w.crowd.there() {
		w.loop.Nap(crowdNap)
	}
}
