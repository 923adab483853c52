package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Pool gives out the addresses of one network. Open makes one; there is
// nothing to close, since the store belongs to the caller.
type Pool struct {
	sets       [][]Range
	quarantine time.Duration
	now        func() time.Time
	store      Store

	// mu guards what follows. It is never held during a call of the store.
	mu     sync.Mutex
	leases map[Owner]Lease
	used   map[netip.Addr]Owner // every address of leases, and those being acquired
	alloc  []*allocator         // one per set
	names  map[string]Memory    // of names that hold no lease
	// strays has the addresses freed outside the present ranges, with the time:
	// they rest, too, should the ranges come to hold them again.
	strays map[netip.Addr]time.Time
	// busy has the owners with an operation under way. The channel is closed
	// when that operation ends.
	busy map[Owner]chan struct{}
}

// Open checks the configuration, loads what the store remembers and returns a
// pool over both. Leases whose addresses lie outside the configured ranges are
// kept. The store may be used by nobody else while the pool is in use. All
// faults of a configuration are reported at once.
func Open(ctx context.Context, cfg Config, store Store) (*Pool, error) {
	cfg, err := cfg.Normalize()
	if err != nil {
		return nil, &OpError{Op: "open", Err: err}
	}
	state, err := store.Load(ctx)
	if err != nil {
		return nil, &OpError{Op: "open", Err: err}
	}
	p := &Pool{
		sets:       cfg.Sets,
		quarantine: max(cfg.Quarantine, 0),
		now:        cfg.Now,
		store:      store,
		leases:     make(map[Owner]Lease, len(state.Leases)),
		used:       make(map[netip.Addr]Owner),
		busy:       make(map[Owner]chan struct{}),
		names:      state.Names,
	}
	if p.names == nil {
		p.names = make(map[string]Memory)
	}
	p.divide()
	if err := p.restore(state); err != nil {
		return nil, &OpError{Op: "open", Err: err}
	}
	return p, nil
}

// divide gives every set an allocator that has given out nothing.
func (p *Pool) divide() {
	reserved := gatewaySet(p.sets)
	p.alloc, p.strays = nil, make(map[netip.Addr]time.Time)
	for _, set := range p.sets {
		p.alloc = append(p.alloc, newAllocator(set, reserved))
	}
}

// Redefine changes the ranges that addresses are given out of, from the next
// request on. What is held stays held; what rests goes on resting, and what is
// kept for a name is kept, as far as the ranges have it; set i continues after
// the address that set i gave out last. The store learns of none of this: it is
// for the caller to open the pool with the same ranges. A faulty configuration
// changes nothing.
func (p *Pool) Redefine(sets [][]Range) error {
	cfg, err := Config{Sets: sets}.Normalize()
	if err != nil {
		return &OpError{Op: "redefine", Err: err}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old, freed := p.alloc, p.strays
	p.sets = cfg.Sets
	p.divide()
	for addr := range p.used {
		for _, a := range p.alloc {
			a.took(addr)
		}
	}
	for i, a := range old {
		maps.Copy(freed, a.resting)
		if i < len(p.alloc) {
			p.alloc[i].cursor = a.cursor
		}
		p.alloc[0].rested = append(p.alloc[0].rested, a.rested...)
	}
	p.restoreFreed(freed)
	p.restoreNames()
	return nil
}

// restore takes over what the store remembers.
func (p *Pool) restore(state State) error {
	var faults []error
	for _, l := range state.Leases {
		for _, a := range l.Addrs {
			if other, taken := p.used[a.Addr()]; taken {
				faults = append(faults, fmt.Errorf("the store gives %s to both %q and %q: release one of them from it", a.Addr(), other, l.Owner))
				continue
			}
			p.takeLocked(a.Addr(), l.Owner)
		}
		p.leases[l.Owner] = l.clone()
	}
	for i, a := range p.alloc {
		if i < len(state.Cursors) {
			a.cursor = state.Cursors[i]
		}
	}
	p.restoreFreed(state.Freed)
	p.restoreNames()
	return errors.Join(faults...)
}

// restoreFreed puts the freed addresses into quarantine in the order in which
// they were freed. A time in the future means that the clock was set back; it
// counts as now, so that nothing rests longer than the quarantine.
func (p *Pool) restoreFreed(freed map[netip.Addr]time.Time) {
	now := p.now()
	addrs := make([]netip.Addr, 0, len(freed))
	for a := range freed {
		if _, taken := p.used[a]; !taken {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, func(a, b netip.Addr) int {
		if c := freed[a].Compare(freed[b]); c != 0 {
			return c
		}
		return a.Compare(b)
	})
	for _, a := range addrs {
		at := freed[a]
		if at.After(now) {
			at = now
		}
		p.freeLocked(a, at)
	}
}

// Acquire gives the owner one address of every set and makes that durable
// before it returns. The addresses that the request wants are taken as they
// are, each for the set that holds it; the other sets take what sticks to the
// name, or choose. If the owner holds a lease already, it keeps the addresses,
// unless the request wants one that is not among them (ErrBadRequest).
//
// Errors: ErrExhausted, ErrInUse, ErrReserved, ErrOutOfRange, ErrBadRequest,
// ctx's or the store's. On error the owner holds what it held before.
//
// Acquire waits for another operation on the same owner until ctx ends; a
// commit that has begun is not broken off.
func (p *Pool) Acquire(ctx context.Context, req Request) (Lease, error) {
	owner := req.Owner
	if len(req.Name) > MaxOwnerLen {
		return Lease{}, &OpError{Op: "acquire", Owner: owner, Err: fmt.Errorf("%w: the name has %d bytes, at most %d are possible", ErrBadRequest, len(req.Name), MaxOwnerLen)}
	}
	if len(req.Note) > MaxNoteLen {
		return Lease{}, &OpError{Op: "acquire", Owner: owner, Err: fmt.Errorf("%w: the note has %d bytes, at most %d are possible", ErrBadRequest, len(req.Note), MaxNoteLen)}
	}
	done, err := p.begin(ctx, "acquire", owner)
	if err != nil {
		return Lease{}, err
	}
	defer done()

	lease, held, err := p.reserve(req)
	if err != nil {
		return Lease{}, err
	}
	if held && lease.BootID == req.BootID && lease.Netns == req.Netns && lease.Name == req.Name && lease.Note == req.Note {
		return lease, nil
	}
	lease.BootID, lease.Netns, lease.Name, lease.Note = req.BootID, req.Netns, req.Name, req.Note
	if err := p.store.Commit(ctx, Change{Put: []Lease{lease.clone()}, Forget: p.expired()}); err != nil {
		if !held {
			p.unreserve(lease)
		}
		return Lease{}, &OpError{Op: "acquire", Owner: owner, Err: err}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leases[owner] = lease.clone()
	p.recallLocked(lease)
	return lease, nil
}

// Release ends owner's lease, and its addresses begin their rest. It is
// durable when Release returns. An owner without a lease is no error.
func (p *Pool) Release(ctx context.Context, owner Owner) error {
	done, err := p.begin(ctx, "release", owner)
	if err != nil {
		return err
	}
	defer done()

	p.mu.Lock()
	lease, ok := p.leases[owner]
	p.mu.Unlock()
	if !ok {
		return nil
	}
	if err := p.end(ctx, []Lease{lease}); err != nil {
		return &OpError{Op: "release", Owner: owner, Err: err}
	}
	return nil
}

// Retain releases every lease that live denies, all in one step, and returns
// them ordered by owner. Owners with another operation under way are
// left alone: they are alive, or about to be released. live is called without
// a lock held and may use the pool's other methods for reading.
func (p *Pool) Retain(ctx context.Context, live func(Lease) bool) ([]Lease, error) {
	var doomed []Owner
	for _, l := range p.Leases() {
		if !live(l) {
			doomed = append(doomed, l.Owner)
		}
	}
	leases, done := p.claim(doomed)
	defer done()
	if len(leases) == 0 {
		return nil, nil
	}
	if err := p.end(ctx, leases); err != nil {
		return nil, &OpError{Op: "retain", Err: err}
	}
	return leases, nil
}

// Leases returns all leases, ordered by owner.
func (p *Pool) Leases() []Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Lease, 0, len(p.leases))
	for _, l := range p.leases {
		all = append(all, l.clone())
	}
	slices.SortFunc(all, func(a, b Lease) int { return strings.Compare(string(a.Owner), string(b.Owner)) })
	return all
}

// Lookup returns the lease of owner, if it holds one.
func (p *Pool) Lookup(owner Owner) (Lease, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.leases[owner]
	return l.clone(), ok
}

// Gateways returns the gateways of all ranges with their subnets' lengths, in
// the order of the sets and each once.
func (p *Pool) Gateways() []netip.Prefix {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []netip.Prefix
	for _, set := range p.sets {
		for _, r := range set {
			if g := netip.PrefixFrom(r.Gateway, r.Subnet.Bits()); !slices.Contains(all, g) {
				all = append(all, g)
			}
		}
	}
	return all
}

// Usage says how much of a set is in use.
type Usage struct {
	Ranges string // "10.88.0.1-10.88.255.254", several separated by ", "
	Size   uint64 // addresses that can be given out, at most the largest uint64
	Used   uint64 // of these, held or being acquired
	Rest   uint64 // of these, free but in quarantine
	Kept   uint64 // of these, free but kept for a name
}

// Usage returns the usage of every set, in the order of the sets.
func (p *Pool) Usage() []Usage {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Usage, len(p.alloc))
	for i, a := range p.alloc {
		a.expire(p.now().Add(-p.quarantine))
		all[i] = Usage{Ranges: describe(a.set), Size: a.size, Used: a.used, Rest: uint64(len(a.resting)), Kept: uint64(len(a.kept))}
	}
	return all
}
