package netns_test

import (
	"net/netip"
	"testing"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

func TestNetnsOverlapNamesWhatIsInTheWay(t *testing.T) {
	a, b := nstest.NewNS(t), nstest.NewNS(t)
	name, _ := nstest.Veth(t, a, b, "10.7.1.1/24", "10.7.1.2/24", "fd07::1/64", "fd07::2/64")
	nstest.Route(t, a, "0.0.0.0/0", "10.7.1.2")
	nstest.Route(t, a, "::/0", "fd07::2")
	for _, tc := range []struct{ prefix, addr, want string }{
		{"10.7.1.0/24", "10.7.1.9", "route 10.7.1.0/24 dev " + name},
		{"10.7.0.0/16", "10.7.0.1", "route 10.7.1.0/24 dev " + name},
		{"fd07::/64", "fd07::9", "route fd07::/64 dev " + name},
		{"10.7.1.0/28", "10.7.1.2", ""}, // the wider route gives way
		{"10.7.1.0/28", "10.7.1.1", "address 10.7.1.1 dev " + name},
		{"10.8.0.0/16", "10.8.0.1", ""},
		{"fd08::/64", "fd08::1", ""},
	} {
		nstest.In(t, a, func() error {
			got, err := netns.Overlap([]netip.Prefix{netip.MustParsePrefix(tc.prefix)}, []netip.Addr{netip.MustParseAddr(tc.addr)})
			if got != tc.want {
				t.Errorf("%s, %s: %q, want %q", tc.prefix, tc.addr, got, tc.want)
			}
			return err
		})
	}
}
