package netns_test

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// TestNetnsAddressesAnswerAtOnce: what Configure has configured takes packets
// when Configure returns, not a work queue later.
func TestNetnsAddressesAnswerAtOnce(t *testing.T) {
	nstest.Require(t)
	for range 10 {
		ns := nstest.NewNS(t)
		addr := netip.MustParsePrefix("fd00:5e77::2/64")
		nstest.TUNFile(t, ns, netns.Interface{Name: "eth0", Addrs: []netip.Prefix{addr}})
		nstest.In(t, ns, func() error {
			routes, err := netlink.RouteGet(addr.Addr().AsSlice())
			if err != nil {
				return err
			}
			if len(routes) != 1 || routes[0].Type != unix.RTN_LOCAL {
				t.Errorf("route to the own address: %+v", routes)
			}
			return nil
		})
	}
}
