package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// begin makes the caller the only one to work on owner until it calls done.
func (p *Pool) begin(ctx context.Context, op string, owner Owner) (done func(), err error) {
	if err := checkOwner(owner); err != nil {
		return nil, &OpError{Op: op, Owner: owner, Err: err}
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, &OpError{Op: op, Owner: owner, Err: err}
		}
		p.mu.Lock()
		other, busy := p.busy[owner]
		if !busy {
			p.busy[owner] = make(chan struct{})
			p.mu.Unlock()
			return func() { p.finish(owner) }, nil
		}
		p.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
		}
	}
}

// finish ends what begin or claim began.
func (p *Pool) finish(owner Owner) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.busy[owner])
	delete(p.busy, owner)
}

// claim is begin for several owners: it takes those that hold a lease and have
// no operation under way, and waits for none. Waiting with some owners in hand
// could meet another claim that waits for these.
func (p *Pool) claim(owners []Owner) (leases []Lease, done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range owners {
		l, held := p.leases[o]
		if _, busy := p.busy[o]; busy || !held {
			continue
		}
		p.busy[o] = make(chan struct{})
		leases = append(leases, l.clone())
	}
	return leases, func() {
		for _, l := range leases {
			p.finish(l.Owner)
		}
	}
}

func checkOwner(owner Owner) error {
	switch {
	case owner == "":
		return fmt.Errorf("%w: the owner is empty", ErrBadRequest)
	case len(owner) > MaxOwnerLen:
		return fmt.Errorf("%w: the owner has %d bytes, at most %d are possible", ErrBadRequest, len(owner), MaxOwnerLen)
	}
	return nil
}

// reserve marks one address per set as owner's, in memory only. It reports
// held when the lease existed before.
func (p *Pool) reserve(req Request) (lease Lease, held bool, err error) {
	owner := req.Owner
	p.mu.Lock()
	defer p.mu.Unlock()
	if l, ok := p.leases[owner]; ok {
		return p.heldLocked(l, req.Want)
	}
	// All that can be refused is refused before anything is taken.
	chosen, err := p.assignLocked(owner, req.Want)
	if err != nil {
		return Lease{}, false, err
	}
	p.stickLocked(chosen, req.Name)
	now := p.now()
	for i, a := range p.alloc {
		if chosen[i].IsValid() {
			continue
		}
		if chosen[i], err = a.next(p.used, now.Add(-p.quarantine)); err != nil {
			return Lease{}, false, &OpError{Op: "acquire", Owner: owner, Err: err}
		}
	}
	// UTC and without the monotonic reading, as it will be read back.
	lease = Lease{Owner: owner, Since: now.UTC().Round(0)}
	for i, addr := range chosen {
		p.takeLocked(addr, owner)
		p.alloc[i].cursor = addr
		r := p.sets[i][rangeOf(p.sets[i], addr)]
		lease.Addrs = append(lease.Addrs, netip.PrefixFrom(addr, r.Subnet.Bits()))
		lease.Gateways = append(lease.Gateways, r.Gateway)
	}
	return lease, false, nil
}

// heldLocked answers a request of an owner that holds l.
func (p *Pool) heldLocked(l Lease, want []netip.Addr) (Lease, bool, error) {
	for _, w := range want {
		if w = w.Unmap(); !l.Holds(w) {
			return Lease{}, false, &OpError{Op: "acquire", Owner: l.Owner, Addr: w,
				Err: fmt.Errorf("%w: the owner holds %v already, release that first", ErrBadRequest, l.Addrs)}
		}
	}
	return l.clone(), true, nil
}

// assignLocked gives each wanted address to the set that holds it. The result
// has one address per set, invalid where the set may choose. All faults are
// joined.
func (p *Pool) assignLocked(owner Owner, want []netip.Addr) ([]netip.Addr, error) {
	chosen := make([]netip.Addr, len(p.sets))
	var faults []error
	for _, w := range want {
		i, err := p.judgeLocked(owner, w.Unmap())
		if err != nil {
			faults = append(faults, err)
			continue
		}
		if w = w.Unmap(); chosen[i].IsValid() && chosen[i] != w {
			faults = append(faults, &OpError{Op: "acquire", Owner: owner, Addr: w,
				Err: fmt.Errorf("%w: %s is wanted of the same range set, which gives one address", ErrBadRequest, chosen[i])})
			continue
		}
		chosen[i] = w
	}
	if len(faults) == 1 {
		return nil, faults[0]
	}
	return chosen, errors.Join(faults...)
}

// judgeLocked finds the set of a wanted address, or says why it cannot be had.
func (p *Pool) judgeLocked(owner Owner, w netip.Addr) (int, error) {
	fault := func(err error) error { return &OpError{Op: "acquire", Owner: owner, Addr: w, Err: err} }
	if !w.IsValid() || w.Zone() != "" {
		return 0, fault(fmt.Errorf("%w: not a plain address: %q", ErrBadRequest, w))
	}
	for i, a := range p.alloc {
		switch {
		case a.reserved[w]:
			return 0, fault(fmt.Errorf("%w: it is a gateway", ErrReserved))
		case rangeOf(a.set, w) >= 0:
			if holder, taken := p.used[w]; taken {
				return 0, &OpError{Op: "acquire", Owner: owner, Addr: w, Holder: holder, Err: ErrInUse}
			}
			return i, nil
		}
	}
	for _, a := range p.alloc {
		for _, r := range a.set {
			if first, last := usable(r.Subnet); r.Subnet.Contains(w) && (w.Less(first) || last.Less(w)) {
				return 0, fault(fmt.Errorf("%w: it is the network or broadcast address of %s", ErrReserved, r.Subnet))
			}
		}
	}
	return 0, fault(fmt.Errorf("%w: the ranges are %s", ErrOutOfRange, p.describe()))
}

func (p *Pool) describe() string {
	return describe(slices.Concat(p.sets...))
}

// unreserve takes back what reserve did, after its commit was refused. The
// cursor stays where it is: moving it back could undo another's move.
func (p *Pool) unreserve(l Lease) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range l.Addrs {
		p.dropLocked(a.Addr())
	}
	p.keepLocked(l.Name, p.names[l.Name]) // an empty name has no memory
}

// end makes the end of leases durable. The caller has begun or claimed their
// owners.
func (p *Pool) end(ctx context.Context, leases []Lease) error {
	now := p.now()
	c := Change{Forget: p.expired(), ForgetNames: p.surplus(leases), FreedAt: now.UTC().Round(0), Delete: leases}
	if err := p.store.Commit(ctx, c); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range c.ForgetNames {
		p.forgetLocked(name, now)
	}
	for _, l := range leases {
		delete(p.leases, l.Owner)
		for _, a := range l.hosts() {
			p.dropLocked(a)
			if l.Name == "" {
				p.freeLocked(a, now)
			}
		}
		if l.Name != "" {
			p.rememberLocked(l, now)
		}
	}
	return nil
}

// expired takes the list of freed addresses whose rest is over, to be dropped
// from the store with its next commit. If that commit is refused they stay in
// the store until the next Open, which is harmless.
func (p *Pool) expired() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []netip.Addr
	limit := p.now().Add(-p.quarantine)
	for _, a := range p.alloc {
		a.expire(limit)
		for _, addr := range a.rested {
			// It may be held again, or resting again, by now.
			if _, taken := p.used[addr]; !taken && a.resting[addr].IsZero() {
				all = append(all, addr)
			}
		}
		a.rested = nil
	}
	for addr, at := range p.strays {
		if !at.After(limit) {
			delete(p.strays, addr)
			all = append(all, addr)
		}
	}
	return all
}

// takeLocked marks addr as owner's.
func (p *Pool) takeLocked(addr netip.Addr, owner Owner) {
	p.used[addr] = owner
	delete(p.strays, addr)
	for _, a := range p.alloc {
		a.took(addr)
	}
}

// dropLocked marks addr as nobody's.
func (p *Pool) dropLocked(addr netip.Addr) {
	delete(p.used, addr)
	for _, a := range p.alloc {
		a.dropped(addr)
	}
}

// freeLocked lets addr, which is nobody's, rest from the given time on.
func (p *Pool) freeLocked(addr netip.Addr, at time.Time) {
	known := false
	for _, a := range p.alloc {
		if a.has(addr) {
			a.rest(addr, at)
			known = true
		}
	}
	if !known {
		p.strays[addr] = at
	}
}
