package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrDiffers says that an interface is not as it was configured.
var ErrDiffers = errors.New("interface is not as configured")

// Verify reports how the interface cfg.Name of the current namespace falls
// short of cfg: nil when it is up and has everything that cfg asks for; more
// than that is no fault. The error matches [ErrDiffers] when it has not.
func Verify(cfg Interface) error {
	link, err := netlink.LinkByName(cfg.Name)
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) {
		return fmt.Errorf("%w: there is no interface %s", ErrDiffers, cfg.Name)
	}
	if err != nil {
		return fmt.Errorf("look up interface %s: %w", cfg.Name, err)
	}
	attrs := link.Attrs()
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: %s: "+format, append([]any{ErrDiffers, cfg.Name}, args...)...))
	}
	if attrs.Flags&net.FlagUp == 0 {
		fault("is down")
	}
	if cfg.MTU != 0 && attrs.MTU != cfg.MTU {
		fault("MTU is %d, not %d", attrs.MTU, cfg.MTU)
	}
	if len(cfg.MAC) > 0 && !slices.Equal(cfg.MAC, attrs.HardwareAddr) {
		fault("MAC address is %q, not %v", attrs.HardwareAddr, cfg.MAC)
	}
	have, err := addresses(link)
	if err != nil {
		return err
	}
	for _, p := range cfg.Addrs {
		if !have[p] {
			fault("address %v is missing", p)
		}
	}
	for _, r := range cfg.Routes {
		found, err := hasRoute(attrs.Index, r)
		if err != nil {
			return err
		}
		if !found {
			fault("route %v is missing", r)
		}
	}
	return errors.Join(faults...)
}

// hasRoute reports whether the current namespace has a route to r.Dst in r's
// table, with all that r says and through the interface, or through another:
// see Interface.Routes.
func hasRoute(index int, r Route) (bool, error) {
	family, table := netlink.FAMILY_V4, r.Table
	if r.Dst.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	if table == 0 {
		table = unix.RT_TABLE_MAIN
	}
	filter := &netlink.Route{Dst: ipNet(r.Dst), Table: table}
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return false, fmt.Errorf("list routes to %v: %w", r.Dst, err)
	}
	return slices.ContainsFunc(routes, func(have netlink.Route) bool {
		return agree(r.Priority, have.Priority) && (have.LinkIndex != index || r.describes(have))
	}), nil
}

// agree compares what was wanted, unless that is nothing, with what is there.
func agree(want, have int) bool { return want == 0 || want == have }

// describes reports whether a route of the interface is as r says.
func (r Route) describes(have netlink.Route) bool {
	gw, _ := netip.AddrFromSlice(have.Gw)
	return (!r.Gateway.IsValid() || gw.Unmap() == r.Gateway) &&
		agree(r.MTU, have.MTU) && agree(r.AdvMSS, have.AdvMSS) && agree(r.Scope, int(have.Scope))
}

// Addresses returns the addresses of an interface of the current namespace, each
// with its subnet's length, in the kernel's order.
func Addresses(name string) ([]netip.Prefix, error) {
	link, err := lookUp(name)
	if err != nil {
		return nil, err
	}
	list, err := listAddresses(link)
	if err != nil {
		return nil, err
	}
	var all []netip.Prefix
	for _, a := range list {
		if p, ok := addrPrefix(a); ok {
			all = append(all, p)
		}
	}
	return all, nil
}

// addrPrefix is an address of the kernel's with its subnet's length.
func addrPrefix(a netlink.Addr) (netip.Prefix, bool) {
	ip, ok := netip.AddrFromSlice(a.IP)
	bits, _ := a.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits), ok
}

// addresses returns the addresses of an interface, or of all with nil.
func addresses(link netlink.Link) (map[netip.Prefix]bool, error) {
	list, err := listAddresses(link)
	if err != nil {
		return nil, err
	}
	have := make(map[netip.Prefix]bool, len(list))
	for _, a := range list {
		if p, ok := addrPrefix(a); ok {
			have[p] = true
		}
	}
	return have, nil
}

func listAddresses(link netlink.Link) ([]netlink.Addr, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return list, nil
}

// dumpTries bounds how often a listing that changes under way is begun anew.
const dumpTries = 10

// dump calls a netlink listing until nothing has changed while it was read.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		all, err := list()
		if try < dumpTries && errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		return all, err
	}
}
