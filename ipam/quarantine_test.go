package ipam

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// small has four addresses to give: .2 to .5.
func small(c *clock) Config {
	return Config{Sets: sets([]Range{span("10.0.0.0/24", "10.0.0.1", "10.0.0.5")}), Now: c.now}
}

func TestFreedAddressRests(t *testing.T) {
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		c := newClock()
		p := open(t, small(c), s)
		for _, o := range []Owner{"2", "3", "4"} {
			acquire(t, p, o)
		}
		release(t, p, "2") // freed at 0 s
		c.add(10 * time.Second)
		release(t, p, "3") // freed at 10 s

		p = open(t, small(c), reopen()) // the rest is durable
		got := acquire(t, p, "5")
		if got[0] != "10.0.0.5/24" {
			t.Errorf("got %v, want the address that does not rest", got)
		}
		// All free addresses rest: the oldest first.
		if got := acquire(t, p, "x"); got[0] != "10.0.0.2/24" {
			t.Errorf("got %v, want the one that has rested longest", got)
		}
		if got := acquire(t, p, "y"); got[0] != "10.0.0.3/24" {
			t.Errorf("got %v, want the next oldest", got)
		}
	})
}

func TestRestEnds(t *testing.T) {
	for _, c := range []struct {
		quarantine, wait time.Duration
		want             string
	}{
		{0, 60*time.Second - 1, "10.0.0.3/24"},
		{0, 60 * time.Second, "10.0.0.2/24"},
		{time.Second, time.Second - 1, "10.0.0.3/24"},
		{time.Second, time.Second, "10.0.0.2/24"},
		{-1, 0, "10.0.0.2/24"},
	} {
		clk := newClock()
		cfg := small(clk)
		cfg.Quarantine = c.quarantine
		p := open(t, cfg, NewMemStore())
		acquire(t, p, "a")
		release(t, p, "a") // .2 begins its rest
		acquire(t, p, "last", "10.0.0.5")
		clk.add(c.wait)
		if got := acquire(t, p, "next"); got[0] != c.want { // .2 is the next in the round
			t.Errorf("quarantine %s, after %s: got %v, want %s", c.quarantine, c.wait, got, c.want)
		}
	}
}

func TestWantedAddressSkipsItsRest(t *testing.T) {
	c := newClock()
	p := open(t, small(c), NewMemStore())
	acquire(t, p, "other")
	acquire(t, p, "a")
	release(t, p, "other")
	release(t, p, "a")
	if d := cmp.Diff([]string{"10.0.0.3/24"}, acquire(t, p, "b", "10.0.0.3")); d != "" {
		t.Error(d)
	}
	// Freed anew, it rests from now on and not from the first time.
	c.add(59 * time.Second)
	release(t, p, "b")
	for _, step := range []struct {
		wait time.Duration
		rest uint64
	}{{0, 2}, {time.Second, 1}, {58 * time.Second, 1}, {time.Second, 0}} {
		c.add(step.wait)
		if u := p.Usage()[0]; u.Rest != step.rest || u.Used != 0 {
			t.Errorf("%s later: usage %+v, want %d resting", step.wait, u, step.rest)
		}
	}
}

// TestSameOwnerGetsAnotherAddress is what podman's own tests expect of
// disconnecting and connecting a network.
func TestSameOwnerGetsAnotherAddress(t *testing.T) {
	p := open(t, Config{Sets: sets([]Range{subnet("10.0.0.0/24")}), Quarantine: -1}, NewMemStore())
	first := acquire(t, p, "a")
	release(t, p, "a")
	if again := acquire(t, p, "a"); again[0] == first[0] {
		t.Errorf("got %v twice", again)
	}
}

func TestClockSetBack(t *testing.T) {
	c := newClock()
	s := NewMemStore()
	p := open(t, small(c), s)
	for _, o := range []Owner{"2", "3", "4", "5"} {
		acquire(t, p, o)
	}
	release(t, p, "3")
	c.add(-24 * time.Hour)
	p = open(t, small(c), s)
	c.add(60 * time.Second)
	if u := p.Usage()[0]; u.Rest != 0 {
		t.Errorf("an address rests longer than the quarantine: %+v", u)
	}
}

// TestStoreForgetsWhatHasRested: without it a /64 would collect an entry for
// every address that was ever used.
func TestStoreForgetsWhatHasRested(t *testing.T) {
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		c := newClock()
		cfg := Config{Sets: sets([]Range{subnet("fd00::/64")}), Now: c.now}
		p := open(t, cfg, s)
		for i := range 20 {
			o := Owner(fmt.Sprint(i))
			acquire(t, p, o)
			c.add(10 * time.Second)
			release(t, p, o)
			if i == 10 {
				p = open(t, cfg, reopen())
				s = p.store
			}
		}
		state, err := s.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(state.Freed); n < 6 || n > 7 {
			t.Errorf("%d addresses remembered as freed, want those of the last minute", n)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if n := len(p.alloc[0].queue); n > 7 {
			t.Errorf("%d entries in the queue", n)
		}
	})
}
