package ipam

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestRedefine: leases, quarantine, names and cursors outlive a change of the
// ranges, there and back, and what is held is given to nobody.
func TestRedefine(t *testing.T) {
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		clock := newClock()
		low := sets([]Range{span("10.0.0.0/24", "", "10.0.0.6")})
		both := sets([]Range{span("10.0.0.0/24", "10.0.0.4", "10.0.0.9")}, []Range{subnet("fd00::/64")})
		p := open(t, Config{Sets: low, Now: clock.now}, s)
		acquire(t, p, "a") // .2
		acquire(t, p, "b") // .3
		acquireNamed(t, p, "c", "web")
		acquire(t, p, "d") // .5
		release(t, p, "b")
		release(t, p, "c")
		if err := p.Redefine(both); err != nil {
			t.Fatal(err)
		}
		if u := p.Usage(); len(u) != 2 || u[0].Used != 1 || u[0].Kept != 1 || u[0].Size != 6 || u[1].Used != 0 {
			t.Errorf("usage %+v", u)
		}
		if got := acquire(t, p, "e"); !slices.Equal(got, []string{"10.0.0.6/24", "fd00::2/64"}) {
			t.Errorf("got %v: the set goes on after .5, which is held", got)
		}
		if got := acquireNamed(t, p, "f", "web"); got[0] != "10.0.0.4/24" {
			t.Errorf("the name got %v", got)
		}
		clock.add(time.Second)
		release(t, p, "a")                      // .2, outside the ranges now
		if err := p.Redefine(low); err != nil { // and back
			t.Fatal(err)
		}
		clock.add(time.Second)
		if u := p.Usage()[0]; u.Used != 3 || u.Rest != 2 {
			t.Errorf("back: %+v, want .2 and .3 at rest", u)
		}
		if got := acquire(t, p, "g"); got[0] != "10.0.0.3/24" {
			t.Errorf("got %v, want .3, which has rested longest", got)
		}
		p = open(t, Config{Sets: low, Now: clock.now}, reopen())
		if got := acquire(t, p, "h"); got[0] != "10.0.0.2/24" {
			t.Errorf("after a restart %v", got)
		}
		if l, ok := p.Lookup("e"); !ok || texts(l)[1] != "fd00::2/64" {
			t.Errorf("the lease of the other ranges: %v", l)
		}
	})
}

// TestRedefineFaulty: a faulty configuration changes nothing.
func TestRedefineFaulty(t *testing.T) {
	p := open(t, dual, NewMemStore())
	first := acquire(t, p, "a")
	err := p.Redefine(sets([]Range{subnet("10.0.0.0/31")}))
	if oe, ok := errors.AsType[*OpError](err); !ok || oe.Op != "redefine" {
		t.Errorf("error %v", err)
	}
	if got := acquire(t, p, "b"); got[1] != "fd00::3/64" || first[1] != "fd00::2/64" {
		t.Errorf("afterwards %v", got)
	}
}

// TestStraysAreForgotten: the store does not remember for ever what was freed
// outside the ranges.
func TestStraysAreForgotten(t *testing.T) {
	clock := newClock()
	s := NewMemStore()
	p := open(t, Config{Sets: dual.Sets, Now: clock.now}, s)
	acquire(t, p, "a")
	if err := p.Redefine(sets([]Range{subnet("10.9.0.0/24")})); err != nil {
		t.Fatal(err)
	}
	release(t, p, "a")
	clock.add(DefaultQuarantine)
	acquire(t, p, "b") // a commit
	if state, err := s.Load(t.Context()); err != nil || len(state.Freed) > 0 {
		t.Errorf("the store has %v, %v", state.Freed, err)
	}
}

// TestRedefineAtOnce: no address is given out twice while ranges change.
func TestRedefineAtOnce(t *testing.T) {
	p := open(t, dual, NewMemStore())
	a, b := sets([]Range{subnet("10.0.0.0/24")}), sets([]Range{span("10.0.0.0/24", "10.0.0.50", "")}, []Range{subnet("fd00::/64")})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := range 20 {
				o := Owner(fmt.Sprint(w, "/", n))
				if _, err := p.Acquire(t.Context(), Request{Owner: o}); err != nil {
					t.Error(err)
				}
				if err := p.Redefine([][][]Range{a, b}[(w+n)%2]); err != nil {
					t.Error(err)
				}
				if n%3 == 0 {
					if err := p.Release(t.Context(), o); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	seen := map[string]Owner{}
	for _, l := range p.Leases() {
		for _, x := range texts(l) {
			if other, ok := seen[x]; ok {
				t.Errorf("%s is %q's and %q's", x, other, l.Owner)
			}
			seen[x] = l.Owner
		}
	}
	for i, u := range p.Usage() {
		used := uint64(0)
		for x := range p.used {
			if p.alloc[i].has(x) {
				used++
			}
		}
		if u.Used != used {
			t.Errorf("set %d counts %d in use, there are %d", i, u.Used, used)
		}
	}
}

// TestNote: the caller's note is kept with the lease, over a restart, and may be
// replaced.
func TestNote(t *testing.T) {
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		p := open(t, dual, s)
		first, err := p.Acquire(t.Context(), Request{Owner: "a", Note: "one"})
		if err != nil || first.Note != "one" {
			t.Fatalf("%+v, %v", first, err)
		}
		if _, err := p.Acquire(t.Context(), Request{Owner: "a", Note: "two"}); err != nil {
			t.Fatal(err)
		}
		p = open(t, dual, reopen())
		if l, _ := p.Lookup("a"); l.Note != "two" || !slices.Equal(texts(l), texts(first)) {
			t.Errorf("after a restart %+v", l)
		}
		if _, err := p.Acquire(t.Context(), Request{Owner: "b", Note: string(make([]byte, MaxNoteLen+1))}); !errors.Is(err, ErrBadRequest) {
			t.Errorf("a note that is too long: %v", err)
		}
	})
}
