package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// TestParallelAcquires is the promise that matters most: no address twice.
func TestParallelAcquires(t *testing.T) {
	const owners = 10_000
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		cfg := Config{Sets: sets([]Range{subnet("10.0.0.0/16")}, []Range{subnet("fd00::/64")})}
		p := open(t, cfg, s)
		leases := make([]Lease, owners)
		var wg sync.WaitGroup
		for i := range owners {
			wg.Go(func() {
				var err error
				if leases[i], err = p.Acquire(t.Context(), Request{Owner: Owner(fmt.Sprint(i))}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		holders := make(map[netip.Addr]Owner)
		for _, l := range leases {
			for _, a := range l.Addrs {
				if other, taken := holders[a.Addr()]; taken {
					t.Errorf("%s is held by %q and by %q", a, other, l.Owner)
				}
				holders[a.Addr()] = l.Owner
			}
		}
		if len(holders) != 2*owners {
			t.Errorf("%d addresses, want %d", len(holders), 2*owners)
		}
		// What was handed out is what a new process reads.
		p = open(t, cfg, reopen())
		for _, l := range p.Leases() {
			for _, a := range l.Addrs {
				if holders[a.Addr()] != l.Owner {
					t.Errorf("the store gives %s to %q, handed out to %q", a, l.Owner, holders[a.Addr()])
				}
			}
		}
		if n := len(p.Leases()); n != owners {
			t.Errorf("%d leases in the store, want %d", n, owners)
		}
	})
}

// TestEverythingAtOnce runs all operations against each other on a pool that
// is too small, and watches each address for a second holder.
func TestEverythingAtOnce(t *testing.T) {
	const workers, rounds = 16, 100
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		cfg := Config{Sets: sets([]Range{span("10.0.0.0/24", "10.0.0.1", "10.0.0.11")})} // ten for sixteen
		p := open(t, cfg, s)
		var holders [256]atomic.Int32
		var got, refused atomic.Int32
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for r := range rounds {
					o := Owner(fmt.Sprint("owner ", w))
					req := Request{Owner: o, Name: []string{"", "web", "db"}[w%3], Netns: uint64(r)}
					l, err := p.Acquire(t.Context(), req)
					if errors.Is(err, ErrExhausted) {
						refused.Add(1)
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					got.Add(1)
					n := &holders[l.Addrs[0].Addr().As4()[3]]
					if !n.CompareAndSwap(0, 1) {
						t.Errorf("%s has a second holder", l.Addrs[0])
					}
					if again, err := p.Acquire(t.Context(), req); err != nil || again.Addrs[0] != l.Addrs[0] {
						t.Errorf("again: %v, %v, want %s", again.Addrs, err, l.Addrs[0])
					}
					n.Store(0)
					if r%5 == 0 {
						if _, err := p.Retain(t.Context(), func(l Lease) bool { return l.Owner != o }); err != nil {
							t.Error(err)
						}
					}
					if err := p.Release(t.Context(), o); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		t.Logf("%d leases given, %d refused", got.Load(), refused.Load())
		if u := p.Usage()[0]; u.Used != 0 || u.Kept > 2 || u.Rest+u.Kept > u.Size || len(p.Leases()) != 0 {
			t.Errorf("left over: %+v, %v", u, p.Leases())
		}
		if left := open(t, cfg, reopen()).Leases(); len(left) != 0 {
			t.Errorf("left in the store: %v", left)
		}
	})
}

// gateStore lets a commit begin and wait.
type gateStore struct {
	Store
	begun, goOn chan struct{}
}

func (g *gateStore) Commit(ctx context.Context, c Change) error {
	g.begun <- struct{}{}
	<-g.goOn
	return g.Store.Commit(ctx, c)
}

// TestOperationsOnOneOwnerWait holds commits open and tries the owner's other
// operations meanwhile.
func TestOperationsOnOneOwnerWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gateStore{NewMemStore(), make(chan struct{}), make(chan struct{})}
		p := open(t, Config{Sets: sets([]Range{subnet("10.0.0.0/24")})}, g)
		first := start(func() error { _, err := p.Acquire(t.Context(), Request{Owner: "a"}); return err })
		<-g.begun

		// What is not durable yet is neither shown nor given to another.
		if _, ok := p.Lookup("a"); ok {
			t.Error("a lease is shown before it is durable")
		}
		if _, err := p.Acquire(t.Context(), Request{Owner: "b", Want: addrs("10.0.0.2")}); !errors.Is(err, ErrInUse) {
			t.Errorf("the address being acquired: %v", err)
		}
		// Waiting ends with the context, and the operation is not begun.
		ctx, cancel := context.WithCancel(t.Context())
		waiter := start(func() error { return p.Release(ctx, "a") })
		synctest.Wait()
		cancel()
		if err := <-waiter; !errors.Is(err, context.Canceled) {
			t.Errorf("release while the owner is busy: %v", err)
		}
		// A second acquire waits and gets the same lease without a commit.
		var second Lease
		again := start(func() (err error) { second, err = p.Acquire(t.Context(), Request{Owner: "a"}); return err })
		synctest.Wait()
		g.goOn <- struct{}{}
		if err := errors.Join(<-first, <-again); err != nil || !second.Holds(netip.MustParseAddr("10.0.0.2")) {
			t.Errorf("two acquires at once: %+v, %v", second, err)
		}

		// Garbage collection leaves alone what is being released, and waits
		// for nothing.
		gone := start(func() error { return p.Release(t.Context(), "a") })
		<-g.begun
		if freed, err := p.Retain(t.Context(), func(Lease) bool { return false }); err != nil || freed != nil {
			t.Errorf("retain: %v, %v", freed, err)
		}
		g.goOn <- struct{}{}
		if err := <-gone; err != nil {
			t.Error(err)
		}
	})
}

// start runs f in a goroutine and gives its result.
func start(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}
