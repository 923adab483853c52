package ipam

import (
	"context"
	"net/netip"
	"time"
)

// Store keeps a pool's state where the process's death does not reach it. A
// store serves one pool at a time. Methods may be called concurrently, but
// never twice at once for the same owner.
type Store interface {
	// Load returns everything that was committed, in any order. A store that
	// nothing was committed to returns the zero State.
	Load(ctx context.Context) (State, error)
	// Commit makes a change durable, whole or not at all, and returns only
	// then. It must not retain the change's slices.
	Commit(ctx context.Context, c Change) error
}

// Change is one atomic step of a store. The parts are applied in the order of
// the fields.
type Change struct {
	// Forget lists freed addresses whose time of freeing no longer matters.
	Forget []netip.Addr
	// ForgetNames lists names whose memory is dropped.
	ForgetNames []string
	// Delete lists leases that end: each owner's lease is removed and each of
	// its addresses is recorded as freed at FreedAt, or, when the lease has a
	// name, as the memory of that name in place of an earlier one. A lease that
	// is not in the store is skipped, and its addresses are recorded all the
	// same.
	Delete []Lease
	// FreedAt is the time for Delete.
	FreedAt time.Time
	// Put lists leases that begin: each is recorded under its owner, its
	// addresses are no longer freed ones, the memory of its name is dropped, and
	// its i-th address becomes the cursor of set i.
	Put []Lease
}

// State is all that a store holds.
type State struct {
	Leases []Lease
	// Freed gives the time at which addresses that are not held were freed.
	Freed map[netip.Addr]time.Time
	// Cursors gives the address last given out of set i at index i; invalid
	// for a set that has given out none.
	Cursors []netip.Addr
	// Names gives what is remembered of names.
	Names map[string]Memory
}
