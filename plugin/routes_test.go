package plugin

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// TestNetnsLock: two handles of one namespace, opened by different paths, are
// one lock; another namespace is another.
func TestNetnsLock(t *testing.T) {
	ns := nstest.NewNS(t)
	open := func() *netns.Handle {
		h, err := openNetns(nstest.Path(t, ns))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.Close() }) // some were closed before
		return h
	}
	first, second := open(), open()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := lockNetns(context.Background(), first); err != nil {
		t.Fatal(err)
	}
	if err := lockNetns(ctx, nstest.NewNS(t)); err != nil {
		t.Errorf("another namespace: %v", err)
	}
	wantError(t, lockNetns(ctx, second), types.ErrTryAgainLater, "lock")
	if err := unlockNetns(first); err != nil {
		t.Fatal(err)
	}
	if err := lockNetns(context.Background(), second); err != nil {
		t.Errorf("after the unlock: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if err := lockNetns(context.Background(), first); err != nil {
		t.Errorf("after the holder's end: %v", err)
	}
}

// TestNetnsYieldRoutes: of the default routes the one of eth0 is in use, in
// whichever order the interfaces come, and those of one number come in order.
func TestNetnsYieldRoutes(t *testing.T) {
	for _, order := range [][]string{{"eth0", "net1", "net2"}, {"net2", "net1", "eth0"}, {"net1", "eth0", "net2"}, {"eth0", "net0", "lan"}} {
		ns := nstest.NewNS(t)
		metric4, metric6 := map[string]int{}, map[string]int{}
		for n, name := range order {
			net4, net6 := netip.MustParsePrefix(fmt.Sprintf("10.1.%d.2/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd0%d::2/64", n))
			addrs := []netip.Prefix{net4, net6}
			made := routes(nil, addrs, []netip.Addr{net4.Addr().Prev(), net6.Addr().Prev()}, routeUnlessConfigured)
			nstest.In(t, ns, func() error { return yieldRoutes(made, name) })
			metric4[name], metric6[name] = made[0].Priority, made[1].Priority
			cfg, err := kernelInterface(name, 1500, addrs, made)
			if err != nil {
				t.Fatal(err)
			}
			nstest.TUN(t, ns, cfg)
		}
		want := slices.Clone(order)
		if slices.Contains(order, "net2") {
			slices.Sort(want)
		}
		for n, name := range want {
			if metric4[name] != n || n > 0 && metric6[name] != 1024+n || n == 0 && metric6[name] != 0 {
				t.Errorf("attached as %v: metrics %v and %v, want the order %v", order, metric4, metric6, want)
				break
			}
		}
		for _, outside := range []string{"192.0.2.1", "2001:db8::1"} {
			if out := nstest.Exec(t, ns, "ip", "route", "get", outside); !strings.Contains(out, "dev eth0 ") {
				t.Errorf("attached as %v: %s", order, out)
			}
		}
	}
}

func TestInterfaceRank(t *testing.T) {
	for name, want := range map[string]int{"eth0": 0, "eth1": 1, "net12": 12, "lan": 0, "7": 7, "a1b": 0, "x99999999999999": 1000, "e2000": 1000} {
		if got := interfaceRank(name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}
