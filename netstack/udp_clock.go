package netstack

import (
	"sync"
	"sync/atomic"
	"time"
)

// natClock is the coarse time of every natTable, in seconds, and the janitor
// that sweeps them. It runs only while there is something to sweep: its owner
// is the switch's UDP NAT, which stops it.
type natClock struct {
	seconds atomic.Int64

	mu    sync.Mutex // guards what follows
	links map[*Link]struct{}
	timer *time.Timer
	start time.Time
	done  bool
}

// watch makes the janitor look after a link.
func (c *natClock) watch(l *Link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.links == nil {
		c.links = map[*Link]struct{}{}
	}
	if _, known := c.links[l]; known || c.done {
		return
	}
	c.links[l] = struct{}{}
	if c.timer == nil {
		c.setLocked()
		c.timer = time.AfterFunc(time.Second, c.tick)
	}
}

// setLocked brings the clock up to date. It begins at wheelSlots so that no
// slot number is ever negative.
func (c *natClock) setLocked() {
	if c.start.IsZero() {
		c.start = time.Now()
	}
	c.seconds.Store(wheelSlots + int64(time.Since(c.start)/time.Second))
}

// tick is the janitor. watch starts the timer that runs it; it ends itself when
// no link has anything to sweep, and stop ends it.
func (c *natClock) tick() {
	c.mu.Lock()
	c.setLocked()
	now := c.seconds.Load()
	links := make([]*Link, 0, len(c.links))
	for l := range c.links {
		links = append(links, l)
	}
	c.mu.Unlock()
	var idle []*Link
	for _, l := range links {
		if !l.sweepNAT(now) {
			idle = append(idle, l)
		}
	}
	c.forget(idle)
	for _, l := range idle {
		// What came between the sweep and forget found the link watched still.
		if l.natHolds() {
			c.watch(l)
		}
	}
}

// forget lets links go and decides whether there is a next tick.
func (c *natClock) forget(idle []*Link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range idle {
		delete(c.links, l)
	}
	c.timer = nil
	if len(c.links) > 0 && !c.done {
		c.timer = time.AfterFunc(time.Second, c.tick)
	}
}

func (c *natClock) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}

// sweepNAT ends what is over on a link and reports whether anything is left.
func (l *Link) sweepNAT(now int64) bool {
	for _, t := range []*natTable{&l.nat.udp, &l.nat.published, &l.nat.ping} {
		for _, p := range t.sweep(now) {
			p.end("idle")
		}
	}
	l.nat.fragments.expire(l, time.Now())
	return l.natHolds()
}

// natHolds reports whether anything of the link is to be swept some day.
func (l *Link) natHolds() bool {
	return l.nat.udp.size()+l.nat.published.size()+l.nat.ping.size() > 0 || l.nat.fragments.held()
}
