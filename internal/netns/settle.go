package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// settleTime bounds awaitIPv6: the kernel needs a moment of a work queue, and
// far more only on a machine that is in trouble anyway.
const settleTime = 5 * time.Second

// awaitIPv6 waits until the interface answers to its IPv6 addresses. Even
// without duplicate address detection the kernel installs their local routes
// from a work queue after the device comes up (addrconf_dad_work of
// net/ipv6/addrconf.c), and until then drops what is sent to them.
func awaitIPv6(link netlink.Link, addrs []netip.Prefix) error {
	deadline := time.NewTimer(settleTime)
	defer deadline.Stop()
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for _, p := range addrs {
		if !p.Addr().Is6() {
			continue
		}
		for {
			ready, err := isLocal(link, p.Addr())
			if err != nil {
				return fmt.Errorf("look for the local route of %v: %w", p.Addr(), err)
			}
			if ready {
				break
			}
			select {
			case <-tick.C:
			case <-deadline.C:
				return fmt.Errorf("address %v: no local route within %v", p.Addr(), settleTime)
			}
		}
	}
	return nil
}

// isLocal reports whether the kernel takes packets to a as its own.
func isLocal(link netlink.Link, a netip.Addr) (bool, error) {
	filter := &netlink.Route{
		Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL,
		Dst: ipNet(netip.PrefixFrom(a, a.BitLen())),
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, filter,
		netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_DST)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, nil // something changed meanwhile: look again
	}
	for _, r := range routes {
		if r.LinkIndex == link.Attrs().Index {
			return true, nil
		}
	}
	return false, err
}
