package netns_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

func TestNetnsHostAddrs(t *testing.T) {
	ns := nstest.NewNS(t)
	newTUN(t, ns, "eth0")
	nstest.In(t, ns, func() error { return netns.Configure(containerInterface()) })
	nstest.In(t, ns, func() error {
		addrs, broadcasts, err := netns.HostAddrs()
		want := []netip.Addr{
			netip.MustParseAddr("10.88.0.5"), netip.MustParseAddr("127.0.0.1"),
			netip.MustParseAddr("::1"), netip.MustParseAddr("fd88::5"),
		}
		if !slices.Equal(addrs, want) {
			t.Errorf("addresses = %v, want %v", addrs, want)
		}
		if want := []netip.Addr{netip.MustParseAddr("10.88.255.255")}; !slices.Equal(broadcasts, want) {
			t.Errorf("broadcasts = %v, want %v", broadcasts, want)
		}
		return err
	})
}

func TestNetnsWatchTellsEveryChange(t *testing.T) {
	ns := nstest.NewNS(t)
	newTUN(t, ns, "eth0")
	nstest.In(t, ns, func() error { return netns.Configure(netns.Interface{Name: "eth0"}) })
	ctx, cancel := context.WithCancel(t.Context())
	told, ended := make(chan []netip.Addr, 16), make(chan error, 1)
	go func() {
		ended <- ns.Do(func() error {
			return netns.Watch(ctx, func(addrs, _ []netip.Addr) { told <- addrs })
		})
	}()
	wait := func(addr string, present bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			select {
			case addrs := <-told:
				if slices.Contains(addrs, netip.MustParseAddr(addr)) == present {
					return
				}
			case <-deadline:
				t.Fatalf("Watch did not tell within 10 s that presence of %s is %v", addr, present)
			}
		}
	}
	wait("127.0.0.1", true)
	for _, addr := range []string{"10.9.8.7", "fd99::7"} {
		nstest.Exec(t, ns, "ip", "addr", "add", addr, "dev", "eth0")
		wait(addr, true)
		nstest.Exec(t, ns, "ip", "addr", "del", addr, "dev", "eth0")
		wait(addr, false)
	}
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Watch = %v, want context.Canceled", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Watch did not end within 10 s of its context")
	}
}
