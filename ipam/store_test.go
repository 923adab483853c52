package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

// load returns the state with the leases ordered.
func load(t *testing.T, s Store) State {
	t.Helper()
	state, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(state.Leases, func(a, b Lease) int { return strings.Compare(string(a.Owner), string(b.Owner)) })
	return state
}

func commit(t *testing.T, s Store, c Change) {
	t.Helper()
	if err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// TestStoreContract is what every Store must do.
func TestStoreContract(t *testing.T) {
	at := time.Date(2026, 5, 1, 12, 0, 0, 123456789, time.UTC)
	a := Lease{Owner: "net\x00a/eth0", Addrs: prefixes("10.0.0.2/24", "fd00::2/64"), Gateways: addrs("10.0.0.1", "fd00::1"), Since: at}
	b := Lease{Owner: "b", Addrs: prefixes("10.0.0.3/24", "fd00::3/64"), Gateways: addrs("10.0.0.1", "fd00::1"), Since: at}
	named := Lease{Owner: "n", Addrs: prefixes("10.0.0.9/24", "fd00::9/64"), Gateways: addrs("10.0.0.1", "fd00::1"), Since: at,
		Name: "web", BootID: "boot", Netns: 4026531840}
	memory := map[string]Memory{"web": {Addrs: addrs("10.0.0.9", "fd00::9"), At: at}}
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		if d := cmp.Diff(State{}, load(t, s), compareAddrs); d != "" {
			t.Errorf("a new store is not empty: %s", d)
		}
		steps := []struct {
			name   string
			change Change
			want   State
		}{
			{"nothing", Change{}, State{}},
			{"put", Change{Put: []Lease{a}}, State{Leases: []Lease{a}, Cursors: addrs("10.0.0.2", "fd00::2")}},
			{"put again", Change{Put: []Lease{a}}, State{Leases: []Lease{a}, Cursors: addrs("10.0.0.2", "fd00::2")}},
			{"put another", Change{Put: []Lease{b}}, State{Leases: []Lease{b, a}, Cursors: addrs("10.0.0.3", "fd00::3")}},
			{"delete", Change{Delete: []Lease{a}, FreedAt: at},
				State{Leases: []Lease{b}, Cursors: addrs("10.0.0.3", "fd00::3"),
					Freed: map[netip.Addr]time.Time{netip.MustParseAddr("10.0.0.2"): at, netip.MustParseAddr("fd00::2"): at}}},
			{"forget", Change{Forget: addrs("10.0.0.2", "10.0.0.200")},
				State{Leases: []Lease{b}, Cursors: addrs("10.0.0.3", "fd00::3"),
					Freed: map[netip.Addr]time.Time{netip.MustParseAddr("fd00::2"): at}}},
			{"put what was freed", Change{Put: []Lease{a}}, State{Leases: []Lease{b, a}, Cursors: addrs("10.0.0.2", "fd00::2")}},
			{"put by name", Change{Put: []Lease{named}},
				State{Leases: []Lease{b, named, a}, Cursors: addrs("10.0.0.9", "fd00::9")}},
			{"delete by name", Change{Delete: []Lease{named}, FreedAt: at},
				State{Leases: []Lease{b, a}, Cursors: addrs("10.0.0.9", "fd00::9"), Names: memory}},
			{"put and delete by name", Change{Delete: []Lease{named}, FreedAt: at, Put: []Lease{named}},
				State{Leases: []Lease{b, named, a}, Cursors: addrs("10.0.0.9", "fd00::9")}},
			{"delete by name again", Change{Delete: []Lease{named}, FreedAt: at},
				State{Leases: []Lease{b, a}, Cursors: addrs("10.0.0.9", "fd00::9"), Names: memory}},
			{"forget the name", Change{ForgetNames: []string{"web", "never"}},
				State{Leases: []Lease{b, a}, Cursors: addrs("10.0.0.9", "fd00::9")}},
			{"all at once", Change{Forget: addrs("10.0.0.3"), Delete: []Lease{a, b}, FreedAt: at, Put: []Lease{a}},
				State{Leases: []Lease{a}, Cursors: addrs("10.0.0.2", "fd00::2"),
					Freed: map[netip.Addr]time.Time{netip.MustParseAddr("10.0.0.3"): at, netip.MustParseAddr("fd00::3"): at}}},
		}
		for _, step := range steps {
			commit(t, s, step.change)
			if d := cmp.Diff(step.want, load(t, s), compareAddrs); d != "" {
				t.Errorf("%s: %s", step.name, d)
			}
			s = reopen()
			if d := cmp.Diff(step.want, load(t, s), compareAddrs); d != "" {
				t.Errorf("%s, reopened: %s", step.name, d)
			}
		}
	})
}

func TestStoreRetainsNothingOfAChange(t *testing.T) {
	forEachStore(t, func(t *testing.T, s Store, _ func() Store) {
		l := Lease{Owner: "a", Addrs: prefixes("10.0.0.2/24"), Gateways: addrs("10.0.0.1")}
		commit(t, s, Change{Put: []Lease{l}})
		l.Addrs[0], l.Gateways[0] = netip.Prefix{}, netip.Addr{}
		got := load(t, s)
		if got.Leases[0].Addrs[0] != netip.MustParsePrefix("10.0.0.2/24") {
			t.Errorf("the store shares memory with its caller: %+v", got)
		}
	})
}

func TestStoreHeedsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	forEachStore(t, func(t *testing.T, s Store, _ func() Store) {
		if _, err := s.Load(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("load: %v", err)
		}
		l := Lease{Owner: "a", Addrs: prefixes("10.0.0.2/24"), Gateways: addrs("10.0.0.1")}
		if err := s.Commit(ctx, Change{Put: []Lease{l}}); !errors.Is(err, context.Canceled) {
			t.Errorf("commit: %v", err)
		}
		if got := load(t, s); len(got.Leases) != 0 {
			t.Errorf("the refused commit left %v", got.Leases)
		}
	})
}

func TestBoltBucketsAreApart(t *testing.T) {
	db := openDB(t, filepath.Join(t.TempDir(), "state.db"))
	defer db.Close()
	one, two := NewBoltStore(db, "ipam/one"), NewBoltStore(db, "ipam/two")
	l := Lease{Owner: "a", Addrs: prefixes("10.0.0.2/24"), Gateways: addrs("10.0.0.1")}
	commit(t, one, Change{Put: []Lease{l}})
	if got := load(t, two); len(got.Leases) != 0 {
		t.Errorf("bucket two has %v", got.Leases)
	}
}

// TestBoltCommitsTogether holds the database's only write transaction until
// all callers have queued: the first is served alone, the others by one commit.
func TestBoltCommitsTogether(t *testing.T) {
	const callers = 200
	db := openDB(t, filepath.Join(t.TempDir(), "state.db"))
	defer db.Close()
	s := NewBoltStore(db, "ipam")
	block, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	before := block.ID()

	var wg sync.WaitGroup
	call := func(i int) {
		l := Lease{Owner: Owner(fmt.Sprint(i)), Addrs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 16)}}
		if err := s.Commit(t.Context(), Change{Put: []Lease{l}}); err != nil {
			t.Error(err)
		}
	}
	wg.Go(func() { call(0) })
	waitQueue(t, s, 0)
	for i := 1; i < callers; i++ {
		wg.Go(func() { call(i) })
	}
	waitQueue(t, s, callers-1)
	if err := block.Rollback(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()

	if n := len(load(t, s).Leases); n != callers {
		t.Errorf("%d leases of %d", n, callers)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		// The blocking transaction was rolled back, so its number came again.
		if n := tx.ID() - before + 1; n != 2 {
			t.Errorf("%d transactions for %d changes, want 2", n, callers)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// waitQueue waits until somebody leads and n changes wait for the next turn.
func waitQueue(t *testing.T, s *BoltStore, n int) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		ok := s.leading && len(s.queue) == n
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d changes do not queue", n)
		}
	}
}

func TestBoltReportsARefusedCommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db := openDB(t, path)
	s := NewBoltStore(db, "ipam/web")
	db.Close()
	for range 2 { // the second shows that the lead was handed over
		err := s.Commit(t.Context(), Change{})
		if err == nil || !strings.Contains(err.Error(), `"ipam/web"`) {
			t.Errorf("message: %v", err)
		}
	}
}

func TestBoltNamesUnreadableRecords(t *testing.T) {
	db := openDB(t, filepath.Join(t.TempDir(), "state.db"))
	defer db.Close()
	s := NewBoltStore(db, "ipam/web")
	commit(t, s, Change{Put: []Lease{{Owner: "good", Addrs: prefixes("10.0.0.2/24")}}})
	err := db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("ipam/web"))
		return errors.Join(
			b.Bucket(leasesKey).Put([]byte("bad"), []byte("{")),
			b.Bucket(leasesKey).Put([]byte("liar"), []byte(`{"owner":"other"}`)),
			b.Bucket(leasesKey).Put([]byte("hollow"), []byte(`{"owner":"hollow","addrs":[""]}`)),
			b.Bucket(freedKey).Put([]byte("xyz"), []byte("x")),
			b.Bucket(freedKey).Put([]byte("\x0a\x00\x00\x09"), []byte("x")),
			b.Bucket(cursorsKey).Put([]byte("\x00\x00\x00\x05"), []byte("\x0a\x00\x00\x09")),
			b.Bucket(cursorsKey).Put([]byte("z"), nil),
			b.Bucket(namesKey).Put([]byte("nameless"), []byte("]")),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), Config{Sets: sets([]Range{subnet("10.0.0.0/24")})}, s)
	var op *OpError
	if !errors.As(err, &op) || op.Op != "open" {
		t.Fatalf("opened: %v", err)
	}
	for _, part := range []string{`"ipam/web", leases, key "bad"`, `"liar": record is of owner "other"`, `"hollow"`, `freed, key "xyz"`,
		`freed, key "\n\x00\x00\t"`, "cursor of set 5 follows that of set 0", `cursors, key "z"`, `names, key "nameless"`} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("message lacks %s:\n%v", part, err)
		}
	}
}
