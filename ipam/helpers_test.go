package ipam

import (
	"context"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
)

// clock is a clock that stands still until it is told to go on.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock {
	return &clock{t: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func subnet(s string) Range { return Range{Subnet: netip.MustParsePrefix(s)} }

func span(subnet, start, end string) Range {
	r := Range{Subnet: netip.MustParsePrefix(subnet)}
	if start != "" {
		r.Start = netip.MustParseAddr(start)
	}
	if end != "" {
		r.End = netip.MustParseAddr(end)
	}
	return r
}

func sets(s ...[]Range) [][]Range { return s }

// open opens a pool and ends the test when that is refused.
func open(t *testing.T, cfg Config, s Store) *Pool {
	t.Helper()
	p, err := Open(t.Context(), cfg, s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// acquire returns the addresses that owner got.
func acquire(t *testing.T, p *Pool, owner Owner, want ...string) []string {
	t.Helper()
	l, err := p.Acquire(t.Context(), Request{Owner: owner, Want: addrs(want...)})
	if err != nil {
		t.Fatal(err)
	}
	if l.Owner != owner {
		t.Fatalf("lease of %q for %q", l.Owner, owner)
	}
	return texts(l)
}

func release(t *testing.T, p *Pool, owner Owner) {
	t.Helper()
	if err := p.Release(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
}

func addrs(s ...string) []netip.Addr {
	var all []netip.Addr
	for _, a := range s {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func texts(l Lease) []string {
	var all []string
	for _, a := range l.Addrs {
		all = append(all, a.String())
	}
	return all
}

func openDB(t testing.TB, path string) *bbolt.DB {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// stores lists the implementations of Store. Each makes a new empty store and
// a function that gives the same store as a new process would see it.
var stores = map[string]func(t *testing.T) (s Store, reopen func() Store){
	"mem": func(*testing.T) (Store, func() Store) {
		s := NewMemStore()
		return s, func() Store { return s }
	},
	"bolt": func(t *testing.T) (Store, func() Store) {
		path := filepath.Join(t.TempDir(), "state.db")
		db := openDB(t, path)
		t.Cleanup(func() { db.Close() })
		return NewBoltStore(db, "ipam/test"), func() Store {
			db.Close()
			db = openDB(t, path)
			return NewBoltStore(db, "ipam/test")
		}
	},
}

// forEachStore runs f once per implementation of Store.
func forEachStore(t *testing.T, f func(t *testing.T, s Store, reopen func() Store)) {
	for name, create := range stores {
		t.Run(name, func(t *testing.T) {
			s, reopen := create(t)
			f(t, s, reopen)
		})
	}
}

// brokenStore is a store whose commits are refused while err is set.
type brokenStore struct {
	Store
	mu  sync.Mutex
	err error
}

func (b *brokenStore) breakWith(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *brokenStore) Commit(ctx context.Context, c Change) error {
	b.mu.Lock()
	err := b.err
	b.mu.Unlock()
	if err != nil {
		return err
	}
	return b.Store.Commit(ctx, c)
}

func TestMain(m *testing.M) {
	if runKilledChild() {
		return
	}
	goleak.VerifyTestMain(m)
}
