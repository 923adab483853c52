package netstack

import "time"

// patience is a queue of relays that are each given the same time. It costs a
// relay that needs less no timer: one runs for all of them, while there are any.
// It belongs to a worker.
type patience struct {
	w           *worker
	time        time.Duration
	over        func(*relay) // called on the worker when a relay's time is over
	first, last *relay
	ticking     bool
}

// place is a relay's in a patience. The zero place is in none.
type place struct {
	in         *patience
	since      time.Time
	prev, next *relay
}

// wait has a relay wait from now on.
func (p *patience) wait(r *relay) {
	r.place = place{in: p, since: time.Now(), prev: p.last}
	if p.last != nil {
		p.last.place.next = r
	} else {
		p.first = r
	}
	p.last = r
	if !p.ticking {
		p.tick(p.time)
	}
}

// leave ends a relay's waiting, if it waits.
func (r *relay) leave() {
	p, prev, next := r.place.in, r.place.prev, r.place.next
	if p == nil {
		return
	}
	if prev != nil {
		prev.place.next = next
	} else {
		p.first = next
	}
	if next != nil {
		next.place.prev = prev
	} else {
		p.last = prev
	}
	r.place = place{}
}

func (p *patience) tick(d time.Duration) {
	p.ticking = true
	time.AfterFunc(d, func() { p.w.loop.Post(p) })
}

// Run ends the waiting of those whose time is over.
func (p *patience) Run() {
	p.ticking = false
	for r := p.first; r != nil; r = p.first {
		if left := time.Until(r.place.since.Add(p.time)); left > 0 {
			p.tick(left)
			return
		}
		r.leave()
		p.over(r)
	}
}
