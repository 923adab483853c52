package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// MaxNames is how many names a pool remembers that hold no lease. Runtimes that
// name every container differently would fill the store otherwise; beyond it
// the names that were released first are forgotten.
const MaxNames = 4096

// stickLocked fills in, for the sets that may still choose, the addresses that
// are kept for a name.
func (p *Pool) stickLocked(chosen []netip.Addr, name string) {
	if name == "" {
		return
	}
	for _, addr := range p.names[name].Addrs {
		for i, a := range p.alloc {
			if k, ok := a.kept[addr]; ok && k.name == name && !chosen[i].IsValid() {
				chosen[i] = addr
			}
		}
	}
}

// recallLocked drops the memory of a lease's name, as the lease itself is the
// memory now. What the name had and did not get again begins to rest.
func (p *Pool) recallLocked(l Lease) {
	if l.Name != "" {
		p.forgetLocked(l.Name, p.now())
	}
}

// rememberLocked keeps a lease's addresses, which nobody holds any more, for
// its name, instead of those of an earlier lease of that name.
func (p *Pool) rememberLocked(l Lease, at time.Time) {
	p.forgetLocked(l.Name, at)
	m := Memory{Addrs: l.hosts(), At: at}
	p.names[l.Name] = m
	p.keepLocked(l.Name, m)
}

// keepLocked keeps the addresses of a memory that the pool gives out and that
// nobody holds. The first name to claim an address has it.
func (p *Pool) keepLocked(name string, m Memory) {
	for _, addr := range m.Addrs {
		if _, taken := p.used[addr]; taken {
			continue
		}
		for _, a := range p.alloc {
			if _, claimed := a.kept[addr]; a.has(addr) && !claimed {
				a.keep(addr, name, m.At)
			}
		}
	}
}

// restoreNames keeps what the store remembers. An address that was given to
// another name later is that one's.
func (p *Pool) restoreNames() {
	names := slices.SortedFunc(maps.Keys(p.names), func(a, b string) int {
		return p.names[b].At.Compare(p.names[a].At)
	})
	for _, name := range names {
		p.keepLocked(name, p.names[name])
	}
}

// forgetLocked drops the memory of a name.
func (p *Pool) forgetLocked(name string, at time.Time) {
	for _, addr := range p.names[name].Addrs {
		for _, a := range p.alloc {
			a.unkeep(addr, name, at)
		}
	}
	delete(p.names, name)
}

// surplus lists the names that are to be forgotten when leases end, so that no
// more than MaxNames remain: the ones that were released first.
func (p *Pool) surplus(leases []Lease) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	coming := 0
	for _, l := range leases {
		if l.Name != "" {
			coming++
		}
	}
	over := len(p.names) + coming - MaxNames
	if coming == 0 || over <= 0 {
		return nil
	}
	names := slices.SortedFunc(maps.Keys(p.names), func(a, b string) int {
		return p.names[a].At.Compare(p.names[b].At)
	})
	return names[:min(over, len(names))]
}
