package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/netns"
)

// dhcpIPAM is the reference IPAM plugin whose daemon asks for addresses on the
// container's interface. The switch answers it with the link's own, which the
// daemon leases as for type "usernet".
const dhcpIPAM = "dhcp"

// dhcp reports whether addresses are asked for by DHCP.
func (c ipamConfig) dhcp() bool { return c.Type == dhcpIPAM }

// leasedByDaemon reports whether the daemon chooses the addresses.
func (c ipamConfig) leasedByDaemon() bool { return !c.delegated() || c.dhcp() }

// decodeDHCP takes the ranges out of "ipam" of type dhcp, which are not that
// plugin's: they make the network as needed. The other keys are its own.
func decodeDHCP(c *config, raw json.RawMessage) error {
	var f ipamFields
	if err := json.Unmarshal(raw, &f); err != nil {
		return err
	}
	f.Routes = nil
	return f.settle(c)
}

// check says why DHCP cannot be, or nil.
func (c ipamConfig) checkDHCP(tap bool) *types.Error {
	if c.dhcp() && !tap {
		return badValue("ipam.type", c.Type, `DHCP clients need Ethernet; set "device": "tap", or use "`+nativeIPAM+`"`)
	}
	return nil
}

// bare is the interface on which DHCP is spoken: up, with the addresses that
// are not asked for by it.
func (a *adding) bare() (netns.Interface, error) {
	others := slices.DeleteFunc(slices.Clone(a.made.addrs), isIPv4)
	if n := len(a.made.addrs) - len(others); n != 1 {
		return netns.Interface{}, badValue("ipam.type", dhcpIPAM,
			fmt.Sprintf("DHCP gives one IPv4 address, and network %s has %d of them for a container; use %q", a.conf.Name, n, nativeIPAM))
	}
	cfg, err := kernelInterface(a.params.IfName, a.made.mtu, others, nil)
	cfg.MAC = a.mac
	return cfg, err
}

func isIPv4(p netip.Prefix) bool { return p.Addr().Is4() }

// askDHCP has the IPAM plugin ask the switch, by way of the interface, and
// configures what it was told. The answer is known; what it proves is that the
// client will have it renewed.
func (a *adding) askDHCP(ctx context.Context) error {
	if !a.conf.IPAM.dhcp() {
		return nil
	}
	d, err := a.ipam()
	if err != nil {
		return err
	}
	// On failure too, and while there is an interface to release it on.
	a.undo.Add(func() {
		ctx, cancel := undoContext(ctx)
		defer cancel()
		if err := d.run(ctx, cmdDel); err != nil {
			fmt.Fprintf(a.Stderr, "usernet-cni: undo: %v\n", err)
		}
	})
	if a.leased, err = d.add(ctx); err != nil {
		return fmt.Errorf("%w; is its daemon running? (%s daemon)", err, d.path)
	}
	if err := a.checkLeased(); err != nil {
		return err
	}
	if err := a.plan(); err != nil {
		return err
	}
	more := a.iface
	more.Addrs = slices.DeleteFunc(slices.Clone(more.Addrs), func(p netip.Prefix) bool { return !isIPv4(p) })
	if err := a.target.Do(func() error { return netns.Extend(more) }); err != nil {
		return fmt.Errorf("configure %s in CNI_NETNS=%q: %w", a.params.IfName, a.params.Netns, err)
	}
	return nil
}

// checkLeased holds the plugin's result against the link: packets from any
// other address would be dropped.
func (a *adding) checkLeased() error {
	var told []netip.Prefix
	for _, ip := range a.leased.IPs {
		addr, err := prefix(ip.Address)
		if err != nil {
			return fail(types.ErrDecodingFailure, "ADD of the IPAM plugin %s: address: %v", dhcpIPAM, err)
		}
		told = append(told, addr)
	}
	if len(told) != 1 || !slices.Contains(a.made.addrs, told[0]) {
		return fail(ErrAttachment, "ADD of the IPAM plugin %s returned the addresses %v, which the switch has not told it: the link has %v", dhcpIPAM, told, a.made.addrs)
	}
	return nil
}

// dhcpRoutes are the routes that the client was told, and for IPv6 the usual
// default route.
func (a *adding) dhcpRoutes() []*types.Route {
	told := routes(a.leased.Routes, a.made.addrs, a.made.gateways, routeNever)
	if a.conf.Internal {
		return told
	}
	for _, r := range routes(nil, a.made.addrs, a.made.gateways, routeAlways) {
		if r.Dst.IP.To4() == nil {
			told = append(told, r)
		}
	}
	return told
}

// releaseDHCP has the plugin's daemon release the lease and stop renewing it,
// while there is an interface to do it on. The lease itself is the link's and
// ends with it: where there is no daemon any more, nothing is left behind.
func (i *invocation) releaseDHCP(ctx context.Context) {
	d, err := i.ipam()
	if err == nil {
		err = d.run(ctx, cmdDel)
	}
	if err != nil {
		fmt.Fprintf(i.Stderr, "usernet-cni: %v; the address is freed with the link all the same\n", err)
	}
}
