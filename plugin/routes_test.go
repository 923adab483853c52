package plugin

import (
	"context"
	"net/netip"
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

// TestNetnsYieldRoutes: the second default route of a family comes after the
// first, and a third after that.
func TestNetnsYieldRoutes(t *testing.T) {
	ns := nstest.NewNS(t)
	gw4, gw6 := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd01::1")
	addrs := []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24"), netip.MustParsePrefix("fd01::2/64")}
	last4, last6 := -1, -1
	for _, name := range []string{"eth0", "net1", "net2"} {
		made := routes(nil, addrs, []netip.Addr{gw4, gw6}, routeUnlessConfigured)
		nstest.In(t, ns, func() error { return yieldRoutes(made) })
		if made[0].Priority <= last4 || name != "eth0" && made[1].Priority <= last6 {
			t.Errorf("%s: metrics %d and %d after %d and %d", name, made[0].Priority, made[1].Priority, last4, last6)
		}
		last4, last6 = made[0].Priority, made[1].Priority
		cfg, err := kernelInterface(name, 1500, addrs, made)
		if err != nil {
			t.Fatal(err)
		}
		nstest.TUN(t, ns, cfg)
		addrs = []netip.Prefix{netip.PrefixFrom(addrs[0].Addr().Next(), 24), netip.PrefixFrom(addrs[1].Addr().Next(), 64)}
	}
}
