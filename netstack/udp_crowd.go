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
)

// crowd tells whether datagrams come one by one, so fast that it pays to let more
// of them gather before the next round: what a batch costs in system calls, and
// its receiver's wake-up, is then shared by more. And a receiver has time to read
// what one turn has given it, which its buffer has room for: the usual 208 KiB hold
// some 90 datagrams of 1,400 bytes, a turn gives maxReads. The device's queue holds
// 2,000. It belongs to a worker.
type crowd struct {
	count int
	since time.Time
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

// rest lets a crowd gather at the end of a descriptor's turn. When not all was read it
// does so only while naps end in time: a receiver with a buffer of megabytes takes the
// processor for milliseconds, and the device's queue would not last until the worker
// has caught up.
func (w *worker) rest(all bool) {
	if (all || !w.loop.Overslept()) && w.crowd.there() {
		w.loop.Nap(crowdNap)
	}
}
