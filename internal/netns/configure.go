package netns

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Configure gives the interface cfg.Name of the current namespace its settings,
// addresses and routes, and brings it up. On error everything is as it was.
//
// IPv6 addresses are usable at once (no duplicate detection) and stay when the
// interface goes down; router advertisements are not listened to. No link-local
// address is made, so that an idle interface is silent.
//
// A TAP with IPv6 addresses, or without any, has a link-local one: the kernel
// probes neighbours from it, and whoever wants addresses later may too. And a TAP says so when it comes up or gets another MAC address, for
// which the switch at its other end listens.
//
// Errors match [ErrInvalid] and *StepError.
func Configure(cfg Interface) error { return configure(cfg, nil) }

func configure(cfg Interface, before func(string) error) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configure interface %s: %w", cfg.Name, err)
	}
	j := job{before: before}
	if err := j.undo.unless(j.configure(cfg)); err != nil {
		return fmt.Errorf("configure interface %s: %w", cfg.Name, err)
	}
	return nil
}

// configure runs the steps of Configure; the caller undoes them.
func (j *job) configure(cfg Interface) error {
	link, err := lookUp(cfg.Name)
	if err != nil {
		return err
	}
	if !isTAP(link) || len(cfg.Addrs) > 0 && !cfg.hasIPv6() {
		if err := j.stopLinkLocal(link); err != nil {
			return err
		}
	}
	if err := j.setSysctls(settings(cfg, isTAP(link))); err != nil {
		return err
	}
	if cfg.Unpaced {
		if err := j.stopPacing(); err != nil {
			return err
		}
	}
	if err := j.setMTU(link, cfg.MTU); err != nil {
		return err
	}
	if err := j.setMAC(link, cfg.MAC); err != nil {
		return err
	}
	return j.assign(link, cfg)
}

// Extend gives an interface of the current namespace that [Configure] or
// [MoveIn] brought up more addresses and routes; cfg's other settings it has
// already. On error everything is as it was, and errors are those of Configure.
func Extend(cfg Interface) error { return extend(cfg, nil) }

func extend(cfg Interface, before func(string) error) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("extend interface %s: %w", cfg.Name, err)
	}
	link, err := lookUp(cfg.Name)
	if err != nil {
		return err
	}
	j := job{before: before}
	if err := j.undo.unless(j.assign(link, cfg)); err != nil {
		return fmt.Errorf("extend interface %s: %w", cfg.Name, err)
	}
	return nil
}

// assign adds addresses and routes; the interface is up before the routes.
func (j *job) assign(link netlink.Link, cfg Interface) error {
	for _, a := range cfg.Addrs {
		if err := j.addAddress(link, a); err != nil {
			return err
		}
	}
	if err := j.bringUp(link); err != nil {
		return err
	}
	if err := awaitIPv6(link, cfg.Addrs); err != nil {
		return err
	}
	mtu := cmp.Or(cfg.MTU, link.Attrs().MTU)
	for _, r := range cfg.Routes {
		r.MTU = r.mtu(mtu)
		if err := j.addRoute(link, r); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) setMTU(link netlink.Link, mtu int) error {
	old := link.Attrs().MTU
	if mtu == 0 || mtu == old {
		return nil
	}
	return j.do(fmt.Sprintf("set MTU %d", mtu), func() (func() error, error) {
		return func() error { return netlink.LinkSetMTU(link, old) }, netlink.LinkSetMTU(link, mtu)
	})
}

// isTAP reports whether an interface is a TUN driver's layer-2 device.
func isTAP(link netlink.Link) bool {
	return link.Type() == "tuntap" && link.Attrs().EncapType == "ether"
}

func (j *job) setMAC(link netlink.Link, mac net.HardwareAddr) error {
	old := link.Attrs().HardwareAddr
	if len(mac) == 0 || slices.Equal(mac, old) {
		return nil
	}
	return j.do("set MAC address "+mac.String(), func() (func() error, error) {
		return func() error { return netlink.LinkSetHardwareAddr(link, old) }, netlink.LinkSetHardwareAddr(link, mac)
	})
}

func (j *job) addAddress(link netlink.Link, p netip.Prefix) error {
	addr := kernelAddr(p)
	return j.do("add address "+p.String(), func() (func() error, error) {
		return func() error { return ignore(netlink.AddrDel(link, addr), unix.EADDRNOTAVAIL) },
			netlink.AddrAdd(link, addr)
	})
}

func (j *job) bringUp(link netlink.Link) error {
	if link.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return j.do("bring up", func() (func() error, error) {
		return func() error { return netlink.LinkSetDown(link) }, netlink.LinkSetUp(link)
	})
}

func (j *job) addRoute(link netlink.Link, r Route) error {
	route := kernelRoute(link, r)
	return j.do("add route "+r.String(), func() (func() error, error) {
		err := netlink.RouteAdd(route)
		if errors.Is(err, unix.EEXIST) {
			// Of several networks that all offer a default route the first
			// keeps it, as with every CNI plugin.
			return nil, nil
		}
		return func() error { return ignore(netlink.RouteDel(route), unix.ESRCH) }, err
	})
}

// ignore returns err unless it is the harmless one.
func ignore(err error, harmless unix.Errno) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

func kernelAddr(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
		return a
	}
	if p.Bits() < 31 { // RFC 3021: a /31 has no broadcast address
		ip, mask := p.Addr().As4(), net.CIDRMask(p.Bits(), 32)
		for i := range ip {
			ip[i] |= ^mask[i]
		}
		a.Broadcast = ip[:]
	}
	return a
}

func kernelRoute(link netlink.Link, r Route) *netlink.Route {
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       ipNet(r.Dst),
		MTU:       r.MTU,
		AdvMSS:    r.AdvMSS,
		Priority:  r.Priority,
		Table:     r.Table,
		Scope:     netlink.Scope(r.Scope),
	}
	if r.Gateway.IsValid() {
		route.Gw = r.Gateway.AsSlice()
		// The gateway is at the other end of a wire with one other end, in
		// the subnet or not.
		route.Flags = int(netlink.FLAG_ONLINK)
	} else if r.Scope == 0 && r.Dst.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	return route
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// LoopbackUp brings lo up in the current namespace, with 127.0.0.1 and ::1.
func LoopbackUp() error {
	link, err := lookUp("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}

// DeleteLink deletes an interface of the current namespace. One that is not
// there is no error.
func DeleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) {
		return nil
	}
	if err == nil {
		err = ignore(netlink.LinkDel(link), unix.ENODEV)
	}
	if err != nil {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}
