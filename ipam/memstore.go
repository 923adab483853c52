package ipam

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// MemStore is a [Store] in memory, for networks that end with their process.
// The zero value is not usable; see [NewMemStore].
type MemStore struct {
	// mu guards the state.
	mu      sync.Mutex
	leases  map[Owner]Lease
	freed   map[netip.Addr]time.Time
	cursors []netip.Addr
	names   map[string]Memory
}

// NewMemStore returns an empty store.
func NewMemStore() *MemStore {
	return &MemStore{leases: make(map[Owner]Lease), freed: make(map[netip.Addr]time.Time), names: make(map[string]Memory)}
}

// Load implements [Store]. It fails only when ctx has ended.
func (s *MemStore) Load(ctx context.Context) (State, error) {
	if err := ctx.Err(); err != nil {
		return State{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	state := State{Freed: maps.Clone(s.freed), Cursors: slices.Clone(s.cursors), Names: maps.Clone(s.names)}
	for _, l := range s.leases {
		state.Leases = append(state.Leases, l.clone())
	}
	return state, nil
}

// Commit implements [Store]. It fails only when ctx has ended.
func (s *MemStore) Commit(ctx context.Context, c Change) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range c.Forget {
		delete(s.freed, a)
	}
	for _, name := range c.ForgetNames {
		delete(s.names, name)
	}
	for _, l := range c.Delete {
		delete(s.leases, l.Owner)
		if l.Name != "" {
			s.names[l.Name] = Memory{Addrs: l.hosts(), At: c.FreedAt}
			continue
		}
		for _, a := range l.Addrs {
			s.freed[a.Addr()] = c.FreedAt
		}
	}
	for _, l := range c.Put {
		s.leases[l.Owner] = l.clone()
		delete(s.names, l.Name)
		for i, a := range l.Addrs {
			delete(s.freed, a.Addr())
			for len(s.cursors) <= i {
				s.cursors = append(s.cursors, netip.Addr{})
			}
			s.cursors[i] = a.Addr()
		}
	}
	return nil
}
