package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
)

// check carries out CHECK: the container as its namespace shows it, the link
// as the daemon has it, and the lease as the IPAM plugin has it, all against
// the ADD's result.
func (i *invocation) check(ctx context.Context) error {
	if len(i.conf.PrevResult) == 0 {
		return fail(types.ErrInvalidNetworkConfig, `missing key "prevResult": CHECK compares with the result of ADD`)
	}
	prev, err := parseResult(i.conf.PrevResult, i.version)
	if err != nil {
		return err
	}
	want, err := i.expected(prev)
	if err != nil {
		return err
	}
	target, err := openNetns(i.params.Netns)
	if err != nil {
		return err
	}
	defer target.Close()
	err = target.Do(func() error {
		return errors.Join(checkInterface(want, i.conf.Device), i.conf.checkSysctls(i.params.IfName))
	})
	if err != nil {
		return fail(ErrAttachment, "interface %s in CNI_NETNS=%q: %v", i.params.IfName, i.params.Netns, err)
	}
	if err := i.checkLink(ctx, target.Inode(), want); err != nil {
		return err
	}
	d, err := i.ipam()
	if err != nil {
		return err
	}
	return d.run(ctx, cmdCheck)
}

// expected picks this container's interface out of a result. Interfaces and
// addresses of other plugins of the list are not ours to judge.
func (i *invocation) expected(prev *types100.Result) (netns.Interface, error) {
	index := slices.IndexFunc(prev.Interfaces, func(f *types100.Interface) bool {
		return f.Name == i.params.IfName && f.Sandbox != ""
	})
	if index < 0 {
		return netns.Interface{}, fail(types.ErrInvalidNetworkConfig,
			`"prevResult" has no interface %s inside the container, which is what CNI_IFNAME asks to check`, i.params.IfName)
	}
	var addrs []netip.Prefix
	var gateways []netip.Addr
	for _, ip := range prev.IPs {
		if ip.Interface == nil || *ip.Interface != index {
			continue
		}
		addr, err := prefix(ip.Address)
		if err != nil {
			return netns.Interface{}, fail(types.ErrInvalidNetworkConfig, `"prevResult": %v`, err)
		}
		gw, _ := netip.AddrFromSlice(ip.Gateway)
		addrs, gateways = append(addrs, addr), append(gateways, gw.Unmap())
	}
	if len(addrs) == 0 && i.conf.IPAM.Type != noIPAM {
		return netns.Interface{}, fail(types.ErrInvalidNetworkConfig, `"prevResult" has no address of the interface %s`, i.params.IfName)
	}
	mtu := prev.Interfaces[index].Mtu
	if mtu == 0 {
		mtu = i.conf.MTU // results did not tell before 1.1.0
	}
	iface, err := kernelInterface(i.params.IfName, mtu, addrs, ownRoutes(prev.Routes, addrs, gateways))
	if mac := prev.Interfaces[index].Mac; err == nil && mac != "" && i.conf.tap() {
		iface.MAC, err = parseMAC("prevResult.interfaces.mac", mac)
	}
	return iface, err
}

// ownRoutes returns the routes through one of the gateways, through another
// address of an interface's subnets, or through none. A result lists the routes
// of all interfaces without saying whose they are.
func ownRoutes(all []*types.Route, addrs []netip.Prefix, gateways []netip.Addr) []*types.Route {
	var own []*types.Route
	for _, r := range all {
		gw, _ := netip.AddrFromSlice(r.GW)
		gw = gw.Unmap()
		if r.GW == nil || slices.Contains(gateways, gw) || slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Contains(gw) }) {
			own = append(own, r)
		}
	}
	return own
}

// checkInterface compares the interface of the current namespace. A TUN or TAP
// whose other end is closed has no carrier, and is down in all but name.
func checkInterface(want netns.Interface, device string) error {
	if err := netns.Verify(want); err != nil {
		return err
	}
	link, err := netlink.LinkByName(want.Name)
	if err != nil {
		return fmt.Errorf("look it up: %w", err)
	}
	if have := deviceKind(link); have != device {
		return fmt.Errorf("it is a %s device, not a %s", have, device)
	}
	if link.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
		return fmt.Errorf("it has no carrier: no daemon holds its other end")
	}
	return nil
}

// deviceKind names the kind of an interface: control.DeviceTUN,
// control.DeviceTAP or, of others, the kernel's name.
func deviceKind(link netlink.Link) string {
	switch {
	case link.Type() != "tuntap":
		return link.Type()
	case link.Attrs().EncapType == "ether":
		return control.DeviceTAP
	}
	return control.DeviceTUN
}

// checkLink compares the daemon's link.
func (i *invocation) checkLink(ctx context.Context, inode uint64, want netns.Interface) error {
	key := i.key()
	l, err := i.client.Link(ctx, key)
	if control.CodeOf(err) == control.CodeNotFound {
		return fail(ErrAttachment, "the daemon has no link %s; DEL and ADD make a new one", key)
	}
	if err != nil {
		return fmt.Errorf("check %s: %w", key, err)
	}
	var have families
	for _, a := range want.Addrs {
		have.add(a.Addr())
		if !slices.Contains(l.Addrs, a) {
			return fail(ErrAttachment, "the daemon's link %s has the addresses %v, not %s", key, l.Addrs, a)
		}
	}
	switch {
	case l.State != control.LinkAttached:
		return fail(ErrAttachment, "the daemon's link %s is in state %q, not %q; DEL and ADD make a new one", key, l.State, control.LinkAttached)
	case l.Device != i.conf.Device:
		return fail(ErrAttachment, "the daemon's link %s has a %s device, not the configuration's %q; DEL and ADD make a new one", key, l.Device, i.conf.Device)
	case l.Netns != 0 && l.Netns != inode:
		return fail(ErrAttachment, "the daemon's link %s is of the namespace net:[%d]; CNI_NETNS=%q is net:[%d]", key, l.Netns, i.params.Netns, inode)
	}
	if err := i.checkHost(ctx, &l); err != nil {
		return err
	}
	return i.checkPublished(&l, have)
}
