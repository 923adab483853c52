package netns

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Overlap looks in the current namespace for what would take packets to the
// prefixes elsewhere once an interface has addrs in them: a route of the main
// table to one of the prefixes or a part of it, or one of the addresses on an
// interface. It returns the first of them, as ip(8) would write it, or "".
// Routes to more than a prefix, such as default routes, give way to it and are
// no overlap.
func Overlap(prefixes []netip.Prefix, addrs []netip.Addr) (string, error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return "", fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, bits := r.Dst.Mask.Size()
		if !ok || bits == 0 {
			continue
		}
		dst := netip.PrefixFrom(a.Unmap(), ones)
		for _, p := range prefixes {
			if dst.Bits() >= p.Bits() && p.Overlaps(dst) {
				return fmt.Sprintf("route %v dev %s", dst, nameOf(r.LinkIndex)), nil
			}
		}
	}
	list, err := listAddresses(nil)
	if err != nil {
		return "", err
	}
	for _, have := range list {
		ip, ok := netip.AddrFromSlice(have.IP)
		for _, a := range addrs {
			if ok && ip.Unmap() == a {
				return fmt.Sprintf("address %v dev %s", a, nameOf(have.LinkIndex)), nil
			}
		}
	}
	return "", nil
}

// nameOf names an interface of the current namespace, as well as that is
// possible.
func nameOf(index int) string {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("index %d", index)
	}
	return link.Attrs().Name
}
