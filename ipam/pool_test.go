package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRoundRobinSurvivesReopening(t *testing.T) {
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		cfg := Config{Sets: sets(
			[]Range{span("10.0.0.0/29", "", "")}, // 6 usable, .1 the gateway
			[]Range{span("fd00::/64", "fd00::10", "fd00::11"), span("fd01::/64", "fd01::7", "fd01::7")},
		), Quarantine: -1}
		p := open(t, cfg, s)
		want := [][]string{
			{"10.0.0.2/29", "fd00::10/64"}, {"10.0.0.3/29", "fd00::11/64"}, {"10.0.0.4/29", "fd01::7/64"},
			{"10.0.0.5/29", "fd00::10/64"}, {"10.0.0.6/29", "fd00::11/64"}, {"10.0.0.2/29", "fd01::7/64"},
		}
		for i, w := range want {
			o := Owner(fmt.Sprint("owner ", i))
			if d := cmp.Diff(w, acquire(t, p, o)); d != "" {
				t.Fatalf("step %d: %s", i, d)
			}
			release(t, p, o)
			p = open(t, cfg, reopen())
		}
	})
}

func TestLeaseNamesTheGatewayOfItsRange(t *testing.T) {
	p := open(t, Config{Sets: sets(
		[]Range{span("10.0.0.0/24", "10.0.0.5", "10.0.0.5"), {Subnet: netip.MustParsePrefix("10.0.1.0/24"), Gateway: netip.MustParseAddr("10.0.1.77")}},
		[]Range{subnet("fd00::/64")},
	)}, NewMemStore())
	for _, want := range []Lease{
		{Owner: "a", Addrs: prefixes("10.0.0.5/24", "fd00::2/64"), Gateways: addrs("10.0.0.1", "fd00::1")},
		{Owner: "b", Addrs: prefixes("10.0.1.1/24", "fd00::3/64"), Gateways: addrs("10.0.1.77", "fd00::1")},
	} {
		got, err := p.Acquire(t.Context(), Request{Owner: want.Owner})
		if err != nil {
			t.Fatal(err)
		}
		want.Since = got.Since
		if d := cmp.Diff(want, got, compareAddrs); d != "" {
			t.Error(d)
		}
	}
}

func prefixes(s ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range s {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

func TestAcquireAgainGivesTheSameLease(t *testing.T) {
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		c := newClock()
		cfg := Config{Sets: sets([]Range{subnet("10.0.0.0/24")}, []Range{subnet("fd00::/64")}), Now: c.now}
		p := open(t, cfg, s)
		first, err := p.Acquire(t.Context(), Request{Owner: "a"})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range [][]netip.Addr{nil, addrs("10.0.0.2"), addrs("::ffff:10.0.0.2", "fd00::2")} {
			c.add(time.Hour)
			p = open(t, cfg, reopen())
			again, err := p.Acquire(t.Context(), Request{Owner: "a", Want: want})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(first, again, compareAddrs); d != "" {
				t.Errorf("wanting %v: %s", want, d)
			}
		}
		_, err = p.Acquire(t.Context(), Request{Owner: "a", Want: addrs("10.0.0.9")})
		if !errors.Is(err, ErrBadRequest) || !strings.Contains(err.Error(), "10.0.0.2/24") {
			t.Errorf("another address for the same owner: %v", err)
		}
		if n := len(p.Leases()); n != 1 {
			t.Errorf("%d leases", n)
		}
	})
}

func TestStaticRequests(t *testing.T) {
	p := open(t, Config{Sets: sets(
		[]Range{span("10.0.0.0/24", "10.0.0.10", "10.0.0.20"), span("10.0.0.0/24", "10.0.0.30", "")},
		[]Range{subnet("fd00::/64")},
	)}, NewMemStore())
	if d := cmp.Diff([]string{"10.0.0.15/24", "fd00::99/64"}, acquire(t, p, "holder", "fd00::99", "10.0.0.15", "10.0.0.15")); d != "" {
		t.Fatal(d)
	}
	for _, c := range []struct {
		want   []string
		err    error
		holder Owner
		text   []string
	}{
		{[]string{"10.0.0.15"}, ErrInUse, "holder", []string{`acquire for "new"`, "10.0.0.15", `by "holder"`}},
		{[]string{"::ffff:10.0.0.15"}, ErrInUse, "holder", nil},
		{[]string{"fd00::99"}, ErrInUse, "holder", nil},
		{[]string{"10.0.0.1"}, ErrReserved, "", []string{"10.0.0.1", "gateway"}},
		{[]string{"fd00::1"}, ErrReserved, "", []string{"gateway"}},
		{[]string{"fd00::"}, ErrReserved, "", []string{"network or broadcast address of fd00::/64"}},
		{[]string{"10.0.0.0"}, ErrReserved, "", []string{"10.0.0.0/24"}},
		{[]string{"10.0.0.255"}, ErrReserved, "", []string{"10.0.0.0/24"}},
		{[]string{"10.0.0.25"}, ErrOutOfRange, "", []string{"10.0.0.10-10.0.0.20, 10.0.0.30-10.0.0.254, fd00::1-fd00::ffff:ffff:ffff:ffff"}},
		{[]string{"192.0.2.1"}, ErrOutOfRange, "", nil},
		{[]string{"fe80::2%eth0"}, ErrBadRequest, "", []string{"fe80::2%eth0"}},
		{[]string{"10.0.0.11", "10.0.0.40"}, ErrBadRequest, "", []string{"10.0.0.11", "10.0.0.40"}},
		// Every fault is named.
		{[]string{"10.0.0.15", "192.0.2.1"}, ErrInUse, "holder", []string{"192.0.2.1"}},
		{[]string{"10.0.0.15", "192.0.2.1"}, ErrOutOfRange, "holder", nil},
	} {
		_, err := p.Acquire(t.Context(), Request{Owner: "new", Want: addrs(c.want...)})
		var op *OpError
		if !errors.Is(err, c.err) || !errors.As(err, &op) || op.Holder != c.holder || op.Owner != "new" {
			t.Errorf("%v: %v (%#v)", c.want, err, op)
			continue
		}
		for _, part := range c.text {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v: message lacks %q: %v", c.want, part, err)
			}
		}
	}
	if _, err := p.Acquire(t.Context(), Request{Owner: "new", Want: []netip.Addr{{}}}); !errors.Is(err, ErrBadRequest) {
		t.Errorf("the zero address: %v", err)
	}
	// A refusal of one address takes nothing of another set.
	for i, u := range p.Usage() {
		if u.Used != 1 {
			t.Errorf("set %d: %d in use after refusals, want 1", i, u.Used)
		}
	}
}

func TestBadOwners(t *testing.T) {
	p := open(t, Config{Sets: sets([]Range{subnet("10.0.0.0/24")})}, NewMemStore())
	for _, o := range []Owner{"", Owner(strings.Repeat("x", MaxOwnerLen+1))} {
		if _, err := p.Acquire(t.Context(), Request{Owner: o}); !errors.Is(err, ErrBadRequest) {
			t.Errorf("acquire for %d bytes: %v", len(o), err)
		}
		if err := p.Release(t.Context(), o); !errors.Is(err, ErrBadRequest) {
			t.Errorf("release of %d bytes: %v", len(o), err)
		}
	}
	acquire(t, p, Owner(strings.Repeat("x", MaxOwnerLen)))
}

func TestExhaustion(t *testing.T) {
	for _, c := range []struct {
		set  []Range
		size int
		text string
	}{
		{[]Range{subnet("10.0.0.0/29")}, 5, "5 of 5 in use in 10.0.0.1-10.0.0.6"},
		{[]Range{span("fd00::/64", "fd00::5", "fd00::6"), span("fd01::/126", "", "")}, 4, "4 of 4 in use in fd00::5-fd00::6, fd01::1-fd01::3"},
	} {
		p := open(t, Config{Sets: sets([]Range{subnet("172.16.0.0/16")}, c.set)}, NewMemStore())
		seen := map[string]bool{}
		for i := range c.size {
			seen[acquire(t, p, Owner(fmt.Sprint(i)))[1]] = true
		}
		if len(seen) != c.size {
			t.Errorf("%d addresses for %d owners: %v", len(seen), c.size, seen)
		}
		_, err := p.Acquire(t.Context(), Request{Owner: "one too many"})
		if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("the message should say %q: %v", c.text, err)
		}
		u := p.Usage()
		if u[0].Used != uint64(c.size) || u[1] != (Usage{Ranges: describe(p.sets[1]), Size: uint64(c.size), Used: uint64(c.size)}) {
			t.Errorf("usage after refusal: %+v", u)
		}
		release(t, p, "0")
		acquire(t, p, "one too many")
	}
}

func TestReleaseIsIdempotent(t *testing.T) {
	p := open(t, Config{Sets: sets([]Range{subnet("10.0.0.0/24")})}, NewMemStore())
	release(t, p, "never seen")
	acquire(t, p, "a")
	release(t, p, "a")
	release(t, p, "a")
	if l := p.Leases(); len(l) != 0 {
		t.Errorf("left over: %v", l)
	}
	if _, ok := p.Lookup("a"); ok {
		t.Error("a lease is still found")
	}
}

func TestRetain(t *testing.T) {
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		cfg := Config{Sets: sets([]Range{subnet("10.0.0.0/24")}, []Range{subnet("fd00::/64")})}
		p := open(t, cfg, s)
		for _, o := range []Owner{"d", "b", "c", "a"} {
			acquire(t, p, o)
		}
		freed, err := p.Retain(t.Context(), func(l Lease) bool {
			p.Leases() // reading the pool from the callback must not deadlock
			return l.Owner == "b"
		})
		if err != nil {
			t.Fatal(err)
		}
		var names []Owner
		for _, l := range freed {
			names = append(names, l.Owner)
			if len(l.Addrs) != 2 {
				t.Errorf("freed %+v", l)
			}
		}
		if d := cmp.Diff([]Owner{"a", "c", "d"}, names); d != "" {
			t.Error(d)
		}
		p = open(t, cfg, reopen())
		if l := p.Leases(); len(l) != 1 || l[0].Owner != "b" {
			t.Errorf("kept %v", l)
		}
		if freed, err := p.Retain(t.Context(), func(Lease) bool { return true }); err != nil || freed != nil {
			t.Errorf("nothing to free: %v, %v", freed, err)
		}
		if u := p.Usage()[0]; u.Used != 1 || u.Rest != 3 {
			t.Errorf("usage %+v, want 1 used and 3 resting", u)
		}
	})
}

// TestRefusedCommitChangesNothing refuses the commit of each operation and
// looks for what the operation left behind.
func TestRefusedCommitChangesNothing(t *testing.T) {
	broken := errors.New("disk full")
	s := &brokenStore{Store: NewMemStore()}
	p := open(t, Config{Sets: sets([]Range{subnet("10.0.0.0/24")}, []Range{subnet("fd00::/64")})}, s)
	acquire(t, p, "held")
	before, usage := p.Leases(), p.Usage()

	s.breakWith(broken)
	_, errAcquire := p.Acquire(t.Context(), Request{Owner: "new"})
	_, errStatic := p.Acquire(t.Context(), Request{Owner: "new", Want: addrs("10.0.0.50")})
	errRelease := p.Release(t.Context(), "held")
	_, errRetain := p.Retain(t.Context(), func(Lease) bool { return false })
	for op, err := range map[string]error{"acquire": errAcquire, "static": errStatic, "release": errRelease, "retain": errRetain} {
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if d := cmp.Diff(before, p.Leases(), compareAddrs); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(usage, p.Usage()); d != "" {
		t.Error(d)
	}

	s.breakWith(nil)
	acquire(t, p, "new", "10.0.0.50")
	release(t, p, "held")
}

func TestEndedContext(t *testing.T) {
	p := open(t, Config{Sets: sets([]Range{subnet("10.0.0.0/24")})}, NewMemStore())
	acquire(t, p, "held")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, errAcquire := p.Acquire(ctx, Request{Owner: "new"})
	_, errRetain := p.Retain(ctx, func(Lease) bool { return false })
	_, errOpen := Open(ctx, Config{Sets: sets([]Range{subnet("10.0.0.0/24")})}, NewMemStore())
	for op, err := range map[string]error{"acquire": errAcquire, "release": p.Release(ctx, "held"), "retain": errRetain, "open": errOpen} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if u := p.Usage()[0]; u.Used != 1 {
		t.Errorf("usage %+v", u)
	}
}

// TestConfigMayChange reopens a store with other ranges.
func TestConfigMayChange(t *testing.T) {
	forEachStore(t, func(t *testing.T, s Store, reopen func() Store) {
		p := open(t, Config{Sets: sets([]Range{subnet("10.0.0.0/24")}, []Range{subnet("fd00::/64")})}, s)
		acquire(t, p, "old")
		acquire(t, p, "gone")
		release(t, p, "gone")

		p = open(t, Config{Sets: sets([]Range{span("10.0.1.0/24", "10.0.1.2", "10.0.1.2")})}, reopen())
		if d := cmp.Diff([]string{"10.0.0.2/24", "fd00::2/64"}, acquire(t, p, "old")); d != "" {
			t.Errorf("the lease did not outlive the change: %s", d)
		}
		if u := p.Usage()[0]; u.Used != 0 || u.Rest != 0 {
			t.Errorf("leases of old ranges count in the new one: %+v", u)
		}
		if d := cmp.Diff([]string{"10.0.1.2/24"}, acquire(t, p, "new")); d != "" {
			t.Error(d)
		}
		release(t, p, "old")

		// What rests in ranges that are gone is forgotten when it has rested.
		s = reopen()
		clock := newClock()
		clock.t = time.Now().Add(DefaultQuarantine)
		p = open(t, Config{Sets: sets([]Range{subnet("10.0.1.0/24")}), Now: clock.now}, s)
		acquire(t, p, "another")
		state, err := s.Load(t.Context())
		if err != nil || len(state.Freed) != 0 {
			t.Errorf("still freed: %v, %v", state.Freed, err)
		}
	})
}

func TestOpenRefusesAnAddressHeldTwice(t *testing.T) {
	s := NewMemStore()
	for _, o := range []Owner{"a", "b"} {
		l := Lease{Owner: o, Addrs: prefixes("10.0.0.7/24"), Gateways: addrs("10.0.0.1")}
		if err := s.Commit(t.Context(), Change{Put: []Lease{l}}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Open(t.Context(), Config{Sets: sets([]Range{subnet("10.0.0.0/24")})}, s)
	if err == nil || !strings.Contains(err.Error(), "10.0.0.7") || !strings.Contains(err.Error(), `"a"`) || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("message: %v", err)
	}
}

// TestLargeSubnetsCostNothing takes addresses of the largest subnets there are.
func TestLargeSubnetsCostNothing(t *testing.T) {
	start := time.Now()
	p := open(t, Config{Sets: sets([]Range{subnet("::/0")}, []Range{subnet("0.0.0.0/0")})}, NewMemStore())
	for i := range 1000 {
		acquire(t, p, Owner(fmt.Sprint(i)))
	}
	acquire(t, p, "the last", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "255.255.255.254")
	if got := acquire(t, p, "after the last"); got[0] != "::3ea/0" || got[1] != "0.0.3.234/0" {
		t.Errorf("after the last address: %v", got)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %s", d)
	}
}
