package ipam

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// acquireNamed returns the addresses that owner got under a name.
func acquireNamed(t *testing.T, p *Pool, owner Owner, name string, want ...string) []string {
	t.Helper()
	l, err := p.Acquire(t.Context(), Request{Owner: owner, Name: name, Want: addrs(want...)})
	if err != nil {
		t.Fatal(err)
	}
	return texts(l)
}

var dual = Config{Sets: sets([]Range{span("10.0.0.0/24", "", "10.0.0.7")}, []Range{subnet("fd00::/64")})}

// TestNameGetsItsAddressAgain: whoever comes under the name, over a restart of
// the process, and although others have come and gone meanwhile.
func TestNameGetsItsAddressAgain(t *testing.T) {
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		p := open(t, dual, s)
		acquire(t, p, "first")
		web := acquireNamed(t, p, "c1/eth0", "default/web")
		release(t, p, "c1/eth0")
		for i := range 12 { // twice around the set
			o := Owner(fmt.Sprint("other", i))
			if got := acquire(t, p, o); got[0] == web[0] {
				t.Fatalf("%s got %v, which is kept", o, got)
			}
			release(t, p, o)
		}
		p = open(t, dual, reopen())
		if got := acquireNamed(t, p, "c2/eth0", "default/web"); !slices.Equal(got, web) {
			t.Errorf("got %v, had %v", got, web)
		}
		release(t, p, "c2/eth0")
		p = open(t, dual, reopen())
		if got := acquireNamed(t, p, "c3/eth0", "default/other"); got[0] == web[0] {
			t.Errorf("another name got %v", got)
		}
		if got := acquireNamed(t, p, "c4/eth0", "default/web"); !slices.Equal(got, web) {
			t.Errorf("got %v, had %v", got, web)
		}
	})
}

// TestNameYields: an address that waits for its name is given away rather than
// an error, the one that waited longest first; the name's other address stays.
func TestNameYields(t *testing.T) {
	clock := newClock()
	cfg := dual
	cfg.Now = clock.now
	p := open(t, cfg, NewMemStore())
	var had [][]string
	for i := range 6 { // .2 to .7
		had = append(had, acquireNamed(t, p, Owner(fmt.Sprint(i)), fmt.Sprint("n", i)))
	}
	if _, err := p.Acquire(t.Context(), Request{Owner: "x"}); !errors.Is(err, ErrExhausted) {
		t.Fatalf("a full pool: %v", err)
	}
	for _, i := range []int{3, 1} {
		clock.add(time.Second)
		release(t, p, Owner(fmt.Sprint(i)))
	}
	if got := acquire(t, p, "x"); got[0] != had[3][0] {
		t.Errorf("got %v, want %s, which waited longest", got, had[3][0])
	}
	// n3 lost its IPv4 address and takes another name's; IPv6 is still there.
	if got := acquireNamed(t, p, "3 again", "n3"); got[0] != had[1][0] || got[1] != had[3][1] {
		t.Errorf("got %v, want %s and %s", got, had[1][0], had[3][1])
	}
	if u := p.Usage(); u[0].Used != 6 || u[0].Kept != 0 || u[0].Rest != 0 {
		t.Errorf("usage %+v", u)
	}
}

// TestNameTwiceAtOnce: one address has one holder, whatever it is called, and
// the lease that ends last is what is remembered.
func TestNameTwiceAtOnce(t *testing.T) {
	p := open(t, dual, NewMemStore())
	a, b := acquireNamed(t, p, "a", "web"), acquireNamed(t, p, "b", "web")
	if a[0] == b[0] || a[1] == b[1] {
		t.Fatalf("%v and %v", a, b)
	}
	release(t, p, "b")
	release(t, p, "a")
	if u := p.Usage(); u[0].Kept != 1 || u[0].Rest != 1 {
		t.Errorf("usage %+v", u[0])
	}
	if got := acquireNamed(t, p, "c", "web"); !slices.Equal(got, a) {
		t.Errorf("got %v, want %v", got, a)
	}
	// What is asked for by value goes before what is remembered.
	release(t, p, "c")
	if got := acquireNamed(t, p, "d", "web", "10.0.0.6"); got[0] != "10.0.0.6/24" || got[1] != a[1] {
		t.Errorf("got %v", got)
	}
	release(t, p, "d")
	if got := acquireNamed(t, p, "e", "web"); got[0] != "10.0.0.6/24" {
		t.Errorf("got %v", got)
	}
}

// TestNameSurvivesARefusedCommit: what was not given is still kept.
func TestNameSurvivesARefusedCommit(t *testing.T) {
	s := &brokenStore{Store: NewMemStore()}
	p := open(t, dual, s)
	web := acquireNamed(t, p, "a", "web")
	release(t, p, "a")
	before := p.Usage()
	s.breakWith(errors.New("disk full"))
	if _, err := p.Acquire(t.Context(), Request{Owner: "b", Name: "web"}); err == nil {
		t.Fatal("acquired on a broken store")
	}
	s.breakWith(nil)
	if d := cmp.Diff(before, p.Usage()); d != "" {
		t.Error(d)
	}
	if got := acquireNamed(t, p, "b", "web"); !slices.Equal(got, web) {
		t.Errorf("got %v, had %v", got, web)
	}
}

// TestNamesAreBounded: the first to go is the first to be forgotten, on disk as
// in memory.
func TestNamesAreBounded(t *testing.T) {
	clock := newClock()
	s := NewMemStore()
	p := open(t, Config{Sets: sets([]Range{subnet("10.0.0.0/16")}), Now: clock.now, Quarantine: -1}, s)
	for i := range MaxNames + 3 {
		acquireNamed(t, p, "o", fmt.Sprint(i))
		clock.add(time.Second)
		release(t, p, "o")
	}
	state := load(t, s)
	if len(p.names) != MaxNames || len(state.Names) != MaxNames || p.Usage()[0].Kept != MaxNames {
		t.Errorf("%d names in memory, %d in the store, usage %+v", len(p.names), len(state.Names), p.Usage())
	}
	for name, there := range map[string]bool{"0": false, "2": false, "3": true, fmt.Sprint(MaxNames + 2): true} {
		if _, ok := state.Names[name]; ok != there {
			t.Errorf("name %s: %v", name, ok)
		}
	}
	if _, err := p.Acquire(t.Context(), Request{Owner: "o", Name: string(make([]byte, MaxOwnerLen+1))}); !errors.Is(err, ErrBadRequest) {
		t.Errorf("a long name: %v", err)
	}
}

// TestLeaseTellsWhereItIs: boot and namespace are durable, and follow an owner
// that comes again from elsewhere and keeps its addresses.
func TestLeaseTellsWhereItIs(t *testing.T) {
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		p := open(t, dual, s)
		had, err := p.Acquire(t.Context(), Request{Owner: "a", BootID: "one", Netns: 1})
		if err != nil {
			t.Fatal(err)
		}
		again, err := p.Acquire(t.Context(), Request{Owner: "a", BootID: "one", Netns: 2})
		if err != nil || !slices.Equal(texts(had), texts(again)) {
			t.Fatalf("had %v, got %v, %v", had, again, err)
		}
		p = open(t, dual, reopen())
		if l, ok := p.Lookup("a"); !ok || l.BootID != "one" || l.Netns != 2 || !slices.Equal(l.Addrs, had.Addrs) {
			t.Errorf("restored %+v", l)
		}
		freed, err := p.Retain(t.Context(), func(l Lease) bool { return l.Netns != 2 })
		if err != nil || len(freed) != 1 {
			t.Errorf("freed %v, %v", freed, err)
		}
	})
}
