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

	// kept has the free addresses that stick to a name. Others get them last
	// of all.
	kept map[netip.Addr]keeping
}

// keeping is why a free address is kept.
type keeping struct {
	name string
	at   time.Time // of freeing
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
		kept:     make(map[netip.Addr]keeping),
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
		delete(a.kept, addr)
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

// keep lets a free address of the set wait for a name.
func (a *allocator) keep(addr netip.Addr, name string, at time.Time) {
	delete(a.resting, addr) // it is in one of the two
	a.kept[addr] = keeping{name, at}
}

// unkeep lets an address that waits for name rest like any other.
func (a *allocator) unkeep(addr netip.Addr, name string, at time.Time) {
	if k, ok := a.kept[addr]; ok && k.name == name {
		delete(a.kept, addr)
		a.rest(addr, at)
	}
}

// oldestKept gives the kept address that was freed first; there must be one.
// The pool bounds the number of names, so that looking at all is cheap.
func (a *allocator) oldestKept() netip.Addr {
	var oldest netip.Addr
	for addr, k := range a.kept {
		if o := a.kept[oldest]; !oldest.IsValid() || k.at.Before(o.at) || k.at.Equal(o.at) && addr.Less(oldest) {
			oldest = addr
		}
	}
	return oldest
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
// that neither rests nor is kept for a name, or else the one that has rested
// longest, or else the one that has been kept longest. Addresses freed at limit
// or before do not rest any longer.
func (a *allocator) next(used map[netip.Addr]Owner, limit time.Time) (netip.Addr, error) {
	a.expire(limit)
	switch {
	case a.used >= a.size:
		return netip.Addr{}, fmt.Errorf("%w: %d of %d in use in %s", ErrExhausted, a.used, a.size, describe(a.set))
	case a.used+uint64(len(a.resting)+len(a.kept)) < a.size:
		return a.walk(used), nil
	case len(a.resting) > 0:
		return a.queue[0].addr, nil // expire left a live entry in front
	}
	return a.oldestKept(), nil
}

// walk gives the first address after the cursor that is not taken, resting or
// kept. There must be one; it is found after at most as many steps as there are
// others.
func (a *allocator) walk(used map[netip.Addr]Owner) netip.Addr {
	for addr := a.after(a.cursor); ; addr = a.after(addr) {
		_, taken := used[addr]
		_, rests := a.resting[addr]
		_, waits := a.kept[addr]
		if !taken && !rests && !waits && !a.reserved[addr] {
			return addr
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
