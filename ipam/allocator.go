package ipam

import (
	"fmt"
	"net/netip"
	"time"
)

// allocator chooses addresses of one set. The pool's mu guards it.
type allocator struct {
	set      []Range
	reserved map[netip.Addr]bool // gateways of all sets
	size     uint64              // addresses that can be given out, saturated
	used     uint64              // of these, taken
	cursor   netip.Addr          // address given out last; invalid or foreign: begin at the start

	// resting has the free addresses in quarantine with the time of freeing.
	resting map[netip.Addr]time.Time
	// queue has resting's entries, oldest first, and dead entries: those whose
	// time differs from resting's, because the address was taken meanwhile.
	queue []freed
	// rested lists addresses whose rest is over but which the store still
	// knows as freed.
	rested []netip.Addr
}

type freed struct {
	addr netip.Addr
	at   time.Time
}

func newAllocator(set []Range, reserved map[netip.Addr]bool) *allocator {
	return &allocator{
		set:      set,
		reserved: reserved,
		size:     capacity(set, reserved),
		resting:  make(map[netip.Addr]time.Time),
	}
}

// has reports whether addr is one that the set can give out.
func (a *allocator) has(addr netip.Addr) bool {
	return !a.reserved[addr] && rangeOf(a.set, addr) >= 0
}

// took notes that addr, which was free, is taken. An address that the set does
// not give out is of no concern.
func (a *allocator) took(addr netip.Addr) {
	if a.has(addr) {
		a.used++
		delete(a.resting, addr)
	}
}

// dropped undoes took.
func (a *allocator) dropped(addr netip.Addr) {
	if a.has(addr) {
		a.used--
	}
}

// rest begins the quarantine of an address of the set that is not taken.
func (a *allocator) rest(addr netip.Addr, at time.Time) {
	a.resting[addr] = at
	a.queue = append(a.queue, freed{addr, at})
}

// expire ends the rest of addresses freed at limit or before.
func (a *allocator) expire(limit time.Time) {
	for len(a.queue) > 0 {
		f := a.queue[0]
		at, ok := a.resting[f.addr]
		live := ok && at.Equal(f.at)
		if live && f.at.After(limit) {
			return
		}
		if live {
			delete(a.resting, f.addr)
			a.rested = append(a.rested, f.addr)
		}
		a.queue = a.queue[1:]
	}
}

// next chooses a free address without taking it: the first after the cursor
// that does not rest, or else the one that has rested longest. Addresses freed
// at limit or before do not rest any longer.
func (a *allocator) next(used map[netip.Addr]Owner, limit time.Time) (netip.Addr, error) {
	a.expire(limit)
	switch {
	case a.used >= a.size:
		return netip.Addr{}, fmt.Errorf("%w: %d of %d in use in %s", ErrExhausted, a.used, a.size, describe(a.set))
	case a.used+uint64(len(a.resting)) >= a.size:
		return a.queue[0].addr, nil // expire left a live entry in front
	}
	// Fewer addresses are taken or resting than the set has, so this ends, and
	// after at most as many steps as there are such addresses.
	for addr := a.after(a.cursor); ; addr = a.after(addr) {
		_, taken := used[addr]
		_, rests := a.resting[addr]
		if !taken && !rests && !a.reserved[addr] {
			return addr, nil
		}
	}
}

// after gives the address that follows addr in the set, the first one after
// the last and for an address outside the set.
func (a *allocator) after(addr netip.Addr) netip.Addr {
	i := rangeOf(a.set, addr)
	switch {
	case i < 0:
		return a.set[0].Start
	case addr != a.set[i].End:
		return addr.Next()
	}
	return a.set[(i+1)%len(a.set)].Start
}
