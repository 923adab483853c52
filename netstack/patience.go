package netstack

import "time"

// patience is a queue of those who are each given the same time. It costs one that
// needs less no timer: one runs for all of them, while there are any. It belongs to
// a worker.
type patience struct {
	w           *worker
	time        time.Duration
	first, last *place
	ticking     bool
}

// patient is given time.
type patient interface {
	// timeOver is called on the worker, once the patient has left the queue.
	timeOver()
}

// place is a patient's in a patience. The zero place is in none.
type place struct {
	in         *patience
	who        patient
	since      time.Time
	prev, next *place
}

// wait has a patient wait from now on, at a place that is in no patience.
func (p *patience) wait(pl *place, who patient) {
	*pl = place{in: p, who: who, since: time.Now(), prev: p.last}
	if p.last != nil {
		p.last.next = pl
	} else {
		p.first = pl
	}
	p.last = pl
	if !p.ticking {
		p.tick(p.time)
	}
}

// leave ends the waiting, if there is any.
func (pl *place) leave() {
	p := pl.in
	if p == nil {
		return
	}
	if pl.prev != nil {
		pl.prev.next = pl.next
	} else {
		p.first = pl.next
	}
	if pl.next != nil {
		pl.next.prev = pl.prev
	} else {
		p.last = pl.prev
	}
	*pl = place{}
}

func (p *patience) tick(d time.Duration) {
	p.ticking = true
	time.AfterFunc(d, func() { p.w.loop.Post(p) })
}

// Run ends the waiting of those whose time is over.
func (p *patience) Run() {
	p.ticking = false
	for pl := p.first; pl != nil; pl = p.first {
		if left := time.Until(pl.since.Add(p.time)); left > 0 {
			p.tick(left)
			return
		}
		who := pl.who
		pl.leave()
		who.timeOver()
	}
}
