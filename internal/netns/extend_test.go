package netns_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// TestNetnsExtendUndoesEachStep: an interface that is up gets the rest of what
// it is to have, or is left as it was.
func TestNetnsExtendUndoesEachStep(t *testing.T) {
	injected := errors.New("injected")
	ns := nstest.NewNS(t)
	newTUN(t, ns, "eth0")
	whole := containerInterface()
	first, rest := whole, whole
	isIPv4 := func(p netip.Prefix) bool { return p.Addr().Is4() }
	first.Addrs, first.Routes = slices.DeleteFunc(slices.Clone(whole.Addrs), isIPv4), nil
	rest.Addrs = slices.DeleteFunc(slices.Clone(whole.Addrs), func(p netip.Prefix) bool { return !isIPv4(p) })
	nstest.In(t, ns, func() error { return netns.Configure(first) })
	before := world(t, ns)
	for n := 0; ; n++ {
		step := 0
		err := ns.Do(func() error {
			return netns.ExtendBefore(rest, func(string) error {
				if step++; step <= n {
					return nil
				}
				return injected
			})
		})
		if err == nil {
			if want := len(rest.Addrs) + len(rest.Routes); n < want {
				t.Errorf("done in %d steps, want at least %d", n, want)
			}
			break
		}
		if !errors.Is(err, injected) {
			t.Fatalf("with %d steps done: %v", n, err)
		}
		if diff := cmp.Diff(before, world(t, ns)); diff != "" {
			t.Fatalf("after %v (-before +after):\n%s", err, diff)
		}
	}
	nstest.In(t, ns, func() error { return netns.Verify(whole) })
	if err := ns.Do(func() error { return netns.Extend(netns.Interface{Name: "eth9"}) }); err == nil {
		t.Error("an interface that is not there was extended")
	}
	if err := ns.Do(func() error { return netns.Extend(netns.Interface{Name: "a/b"}) }); !errors.Is(err, netns.ErrInvalid) {
		t.Errorf("an interface of no name: %v", err)
	}
}
