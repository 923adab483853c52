package daemon

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/control"
)

// leaseRequest asks for a lease of "net" as request asks for a link.
func leaseRequest(container string) control.LeaseRequest {
	return control.LeaseRequest{
		Network: "net", Container: container, IfName: "eth0", Sets: sets("10.9.0.0/24", "fd09::/64"), Owner: "test",
	}
}

// acquire returns the addresses that a request got.
func acquire(t *testing.T, c *control.Client, req control.LeaseRequest) []string {
	t.Helper()
	l, err := c.Acquire(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return prefixTexts(l.Addrs)
}

func prefixTexts(all []netip.Prefix) []string {
	var out []string
	for _, p := range all {
		out = append(out, p.String())
	}
	return out
}

func leaseIDs(t *testing.T, c *control.Client, network string) []string {
	t.Helper()
	list, err := c.Leases(t.Context(), network)
	if err != nil {
		t.Fatal(err)
	}
	ids := []string{}
	for _, l := range list {
		ids = append(ids, l.ID)
	}
	return ids
}

// TestLeaseLife: acquire, show, list, release, twice; over a restart.
func TestLeaseLife(t *testing.T) {
	checkLeaks(t)
	cfg := testConfig(t)
	r := start(t, cfg)
	req := leaseRequest("a")
	req.Netns, req.BootID, req.NetnsPath = 7, r.d.bootID, "/proc/self/nowhere"
	first, err := r.Acquire(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	want := control.Lease{
		ID: "net/a/eth0", Network: "net", Container: "a", IfName: "eth0", Owner: "test", Netns: 7, Since: first.Since,
		Addrs:    []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24"), netip.MustParsePrefix("fd09::2/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd09::1")},
	}
	if d := cmp.Diff(want, first, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("lease (-want +got):\n%s", d)
	}
	if _, err := r.Acquire(t.Context(), req); control.CodeOf(err) != control.CodeConflict || !strings.Contains(err.Error(), "DEL it first") {
		t.Errorf("acquired twice: %v", err)
	}
	acquire(t, r.Client, leaseRequest("b"))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	if got := leaseIDs(t, r.Client, ""); !slices.Equal(got, []string{"net/a/eth0", "net/b/eth0"}) {
		t.Errorf("after a restart %v", got)
	}
	if l, err := r.Lease(t.Context(), req.Key()); err != nil || l.ID != first.ID || !slices.Equal(l.Addrs, first.Addrs) {
		t.Errorf("after a restart %+v, %v", l, err)
	}
	for _, want := range []bool{true, false} {
		if got, err := r.Release(t.Context(), req.Key()); err != nil || got != want {
			t.Errorf("release: %v, %v, want %v", got, err, want)
		}
	}
	_, err = r.Lease(t.Context(), req.Key())
	wantCode(t, err, control.CodeNotFound)
	if got := leaseIDs(t, r.Client, "net"); !slices.Equal(got, []string{"net/b/eth0"}) {
		t.Errorf("after the release %v", got)
	}
	if got := leaseIDs(t, r.Client, "other"); len(got) != 0 {
		t.Errorf("of another network %v", got)
	}
	if got := acquire(t, r.Client, leaseRequest("a")); got[0] != "10.9.0.4/24" {
		t.Errorf("the next is %v: .2 rests, .3 is b's", got)
	}
}

// TestLeaseRefused: requests that are malformed or cannot be met, each by its
// code, and none leaves a lease.
func TestLeaseRefused(t *testing.T) {
	r := start(t, testConfig(t))
	acquire(t, r.Client, leaseRequest("holder")) // .2
	for name, tt := range map[string]struct {
		change func(*control.LeaseRequest)
		code   control.Code
		says   string
	}{
		"network":      {func(q *control.LeaseRequest) { q.Network = "a/b" }, control.CodeInvalid, "network name"},
		"container":    {func(q *control.LeaseRequest) { q.Container = "" }, control.CodeInvalid, "container id"},
		"interface":    {func(q *control.LeaseRequest) { q.IfName = "a:b" }, control.CodeInvalid, "interface name"},
		"boot":         {func(q *control.LeaseRequest) { q.BootID = "other" }, control.CodeInvalid, "bootID"},
		"path":         {func(q *control.LeaseRequest) { q.NetnsPath = "relative" }, control.CodeInvalid, "netnsPath"},
		"no ranges":    {func(q *control.LeaseRequest) { q.Sets = nil }, control.CodeInvalid, "no range set"},
		"small":        {func(q *control.LeaseRequest) { q.Sets = sets("10.9.0.0/31") }, control.CodeInvalid, "too small"},
		"nonce":        {func(q *control.LeaseRequest) { q.Nonce = strings.Repeat("x", 65) }, control.CodeInvalid, "nonce"},
		"sticky":       {func(q *control.LeaseRequest) { q.Sticky = "a\nb" }, control.CodeInvalid, "sticky"},
		"twice":        {func(q *control.LeaseRequest) { q.IPs = addrs("10.9.0.9", "10.9.0.9") }, control.CodeInvalid, "ips"},
		"two of a set": {func(q *control.LeaseRequest) { q.IPs = addrs("10.9.0.9", "10.9.0.10") }, control.CodeInvalid, "same range set"},
		"in use":       {func(q *control.LeaseRequest) { q.IPs = addrs("10.9.0.2") }, control.CodeAddressInUse, "holder"},
		"gateway":      {func(q *control.LeaseRequest) { q.IPs = addrs("10.9.0.1") }, control.CodeOutOfRange, "gateway"},
		"outside":      {func(q *control.LeaseRequest) { q.IPs = addrs("10.8.0.1") }, control.CodeOutOfRange, "outside"},
		"exhausted":    {func(q *control.LeaseRequest) { q.Sets = sets("10.9.0.0/30") }, control.CodeExhausted, "no free address"},
	} {
		t.Run(name, func(t *testing.T) {
			req := leaseRequest("asker")
			tt.change(&req)
			_, err := r.Acquire(t.Context(), req)
			wantCode(t, err, tt.code)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v does not say %q", err, tt.says)
			}
		})
	}
	if got := leaseIDs(t, r.Client, ""); !slices.Equal(got, []string{"net/holder/eth0"}) {
		t.Errorf("left: %v", got)
	}
}

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// TestLeaseNonce: a request that is repeated, because its answer was lost, gets
// what it got; over a restart as well.
func TestLeaseNonce(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	req := leaseRequest("a")
	req.Nonce, req.Netns = "once", 7
	first := acquire(t, r.Client, req)
	if again := acquire(t, r.Client, req); !slices.Equal(again, first) {
		t.Errorf("again %v, was %v", again, first)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	if again := acquire(t, r.Client, req); !slices.Equal(again, first) {
		t.Errorf("after a restart %v, was %v", again, first)
	}
	req.Nonce = "another"
	_, err := r.Acquire(t.Context(), req)
	wantCode(t, err, control.CodeConflict)
}

// TestLeaseOfAnotherNamespace: a lease whose DEL was lost does not keep the
// container from a new one; that of the same namespace does.
func TestLeaseOfAnotherNamespace(t *testing.T) {
	r := start(t, testConfig(t))
	req := leaseRequest("a")
	req.Netns = 7
	first := acquire(t, r.Client, req)
	req.Netns = 8
	second := acquire(t, r.Client, req)
	if slices.Equal(first, second) || len(leaseIDs(t, r.Client, "")) != 1 {
		t.Errorf("%v after %v, leases %v", second, first, leaseIDs(t, r.Client, ""))
	}
	req.Netns = 0
	_, err := r.Acquire(t.Context(), req)
	wantCode(t, err, control.CodeConflict)
}

// TestLeasesChangeRanges: without a network the ranges are those of each
// request, as with host-local; what was given out before is not given twice.
func TestLeasesChangeRanges(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	a := acquire(t, r.Client, leaseRequest("a"))
	req := leaseRequest("b")
	req.Sets = sets("10.9.0.0/29")
	if got := acquire(t, r.Client, req); !slices.Equal(got, []string{"10.9.0.3/29"}) {
		t.Errorf("a narrower range gave %v after %v", got, a)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	if got := acquire(t, r.Client, leaseRequest("c")); !slices.Equal(got, []string{"10.9.0.4/24", "fd09::3/64"}) {
		t.Errorf("the first ranges gave %v", got)
	}
	// Ranges that alternate, at once: no address twice.
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			req := leaseRequest(fmt.Sprint("many", n))
			if n%2 == 0 {
				req.Sets = sets("10.9.0.0/26")
			}
			if _, err := r.Acquire(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantDistinct(t, r.Client, 23)
}

// wantDistinct fails when two leases share an address, or there are not so many.
func wantDistinct(t *testing.T, c *control.Client, want int) {
	t.Helper()
	list, err := c.Leases(t.Context(), "")
	if err != nil || len(list) != want {
		t.Errorf("%d leases, want %d: %v", len(list), want, err)
	}
	holder := map[netip.Addr]string{}
	for _, l := range list {
		for _, p := range l.Addrs {
			if other := holder[p.Addr()]; other != "" {
				t.Errorf("%v is %s's and %s's", p, other, l.ID)
			}
			holder[p.Addr()] = l.ID
		}
	}
}

// TestNetnsLeasesAndLinksShareAPool: of one name they never have the same
// address, whichever came first, and neither's end is the other's.
func TestNetnsLeasesAndLinksShareAPool(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	before := acquire(t, r.Client, leaseRequest("before")) // .2, no network yet
	box := attach(t, r.Client, request("box"))             // .3
	after := acquire(t, r.Client, leaseRequest("after"))   // .4
	same := leaseRequest("box")                            // the link's own key
	twin := acquire(t, r.Client, same)                     // .5
	got := []string{before[0], box.reply.Addrs[0].String(), after[0], twin[0]}
	if want := []string{"10.9.0.2/24", "10.9.0.3/24", "10.9.0.4/24", "10.9.0.5/24"}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	// Other ranges than those of a network in use are refused.
	other := leaseRequest("other")
	other.Sets = sets("10.9.0.0/25")
	_, err := r.Acquire(t.Context(), other)
	wantCode(t, err, control.CodeConflict)
	// A lease asks by value for a link's address, and the other way round.
	other = leaseRequest("other")
	other.IPs = addrs("10.9.0.3")
	_, err = r.Acquire(t.Context(), other)
	wantCode(t, err, control.CodeAddressInUse)
	// The lease's end is not the link's; DEL of the link ends both.
	if _, err := r.Release(t.Context(), same.Key()); err != nil {
		t.Fatal(err)
	}
	if w := r.world(t); !slices.Equal(w.Links, []string{"net/box/eth0"}) || w.Leases != 3 {
		t.Errorf("after the release: %+v", w)
	}
	acquire(t, r.Client, same)
	if _, err := r.Detach(t.Context(), same.Key()); err != nil {
		t.Fatal(err)
	}
	if w := r.world(t); len(w.Links) != 0 || w.Leases != 2 {
		t.Errorf("after DEL: %+v", w)
	}
	// The network goes, the leases stay; ranges may change then.
	if err := r.RemoveNetwork(t.Context(), "net"); err != nil {
		t.Fatal(err)
	}
	if got := leaseIDs(t, r.Client, "net"); !slices.Equal(got, []string{"net/after/eth0", "net/before/eth0"}) {
		t.Errorf("after the network's end: %v", got)
	}
	err = r.RemoveNetwork(t.Context(), "net")
	wantCode(t, err, control.CodeNetworkInUse)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	next := attach(t, r.Client, request("next"))
	if a := next.reply.Addrs[0].String(); slices.Contains([]string{before[0], after[0]}, a) {
		t.Errorf("the new network gave %s, which is leased", a)
	}
	for _, name := range []string{"before", "after"} {
		if _, err := r.Release(t.Context(), control.LinkKey{Network: "net", Container: name, IfName: "eth0"}); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Detach(t.Context(), next.key); err != nil {
		t.Error(err)
	}
	if err := r.RemoveNetwork(t.Context(), "net"); err != nil {
		t.Error(err)
	}
	err = r.RemoveNetwork(t.Context(), "net")
	wantCode(t, err, control.CodeNotFound)
}

// TestNetnsLeaseTakesOverAnImpliedNetwork: one that an attach implied and that
// has no links gives way to a lease's ranges, and keeps its addresses at rest.
func TestNetnsLeaseTakesOverAnImpliedNetwork(t *testing.T) {
	r := start(t, testConfig(t))
	box := attach(t, r.Client, request("box")) // .2
	acquire(t, r.Client, leaseRequest("a"))    // .3
	if _, err := r.Detach(t.Context(), box.key); err != nil {
		t.Fatal(err)
	}
	req := leaseRequest("b")
	req.Sets = sets("10.9.0.0/29")
	if got := acquire(t, r.Client, req); !slices.Equal(got, []string{"10.9.0.4/29"}) {
		t.Errorf("got %v: .2 rests, .3 is a's", got)
	}
	if r.d.network("net") != nil {
		t.Error("the network is still there")
	}
	// One that somebody made by name has the say.
	if _, err := r.CreateNetwork(t.Context(), control.CreateNetworkRequest{Name: "mine", Sets: sets("10.7.0.0/24")}); err != nil {
		t.Fatal(err)
	}
	req = leaseRequest("c")
	req.Network = "mine"
	_, err := r.Acquire(t.Context(), req)
	wantCode(t, err, control.CodeConflict)
	req.Sets = sets("10.7.0.0/24")
	if got := acquire(t, r.Client, req); !slices.Equal(got, []string{"10.7.0.2/24"}) {
		t.Errorf("got %v of the network's ranges", got)
	}
}

// TestLeaseStatus: a pool without a network that has no address left blocks the
// next.
func TestLeaseStatus(t *testing.T) {
	r := start(t, testConfig(t))
	req := leaseRequest("a")
	req.Sets = sets("10.9.0.0/30")
	acquire(t, r.Client, req)
	s, err := r.Status(t.Context(), "net")
	if err != nil || s.Ready || len(s.Problems) != 1 || s.Problems[0].Code != control.CodeExhausted || !strings.Contains(s.Problems[0].Message, "10.9.0.0/30") {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := r.Status(t.Context(), "other"); err != nil || !s.Ready {
		t.Errorf("of another network: %+v, %v", s, err)
	}
}

// TestLeaseSticky: the name's addresses, as with links.
func TestLeaseSticky(t *testing.T) {
	r := start(t, testConfig(t))
	req := leaseRequest("v1")
	req.Sticky = "default/web"
	first := acquire(t, r.Client, req)
	if _, err := r.Release(t.Context(), req.Key()); err != nil {
		t.Fatal(err)
	}
	acquire(t, r.Client, leaseRequest("other"))
	req.Container = "v2"
	if got := acquire(t, r.Client, req); !slices.Equal(got, first) {
		t.Errorf("got %v, had %v", got, first)
	}
}
