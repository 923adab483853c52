package netns_test

import (
	"net/netip"
	"testing"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

func TestNetnsAddVethJoinsTwoNamespaces(t *testing.T) {
	a, b := nstest.NewNS(t), nstest.NewNS(t)
	if err := netns.AddVeth(a, b, "left", "right"); err != nil {
		t.Fatal(err)
	}
	end := func(ns *netns.Handle, name, addr string) {
		nstest.In(t, ns, func() error {
			return netns.Configure(netns.Interface{Name: name, Addrs: []netip.Prefix{netip.MustParsePrefix(addr)}})
		})
	}
	end(a, "left", "192.0.2.1/24")
	end(b, "right", "192.0.2.2/24")
	l := nstest.Listen(t, b, "tcp", "192.0.2.2:7")
	c, err := nstest.Dial(t, a, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := netns.AddVeth(a, b, "left", "other"); err == nil {
		t.Error("a name that is taken was accepted")
	}
}
