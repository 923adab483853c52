package plugin

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/netns"
)

// loopbackProgram brings up a container's own lo, which runtimes that set up
// each interface by a plugin ask for first. The daemon has no part in it.
func loopbackProgram() *program {
	p := chained(nameLoopback, nil, (*invocation).loopbackAdd, (*invocation).loopbackDel, (*invocation).loopbackCheck)
	p.loopback = true
	return p
}

func (i *invocation) loopbackAdd(context.Context) error {
	target, err := openNetns(i.params.Netns)
	if err != nil {
		return err
	}
	defer target.Close()
	var addrs []netip.Prefix
	err = target.Do(func() error {
		if err := netns.LoopbackUp(); err != nil {
			return err
		}
		addrs, err = netns.Addresses("lo")
		return err
	})
	if err != nil {
		return fmt.Errorf("loopback of CNI_NETNS=%q: %w", i.params.Netns, err)
	}
	if len(i.conf.PrevResult) > 0 {
		return i.passOn() // the list is about another interface
	}
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: i.params.IfName, Mac: "00:00:00:00:00:00", Sandbox: i.params.Netns}},
	}
	for _, a := range addrs {
		r.IPs = append(r.IPs, &types100.IPConfig{Interface: new(0), Address: ipNet(a)})
	}
	return printResult(i.Stdout, r, i.version)
}

// loopbackDel takes lo down, as the reference does.
func (i *invocation) loopbackDel(context.Context) error {
	return i.inContainer(func() error {
		link, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetDown(link)
		}
		return err
	})
}

func (i *invocation) loopbackCheck(context.Context) error {
	target, err := openNetns(i.params.Netns)
	if err != nil {
		return err
	}
	defer target.Close()
	return target.Do(func() error {
		link, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("look up lo: %w", err)
		}
		if link.Attrs().Flags&net.FlagUp == 0 {
			return fail(ErrAttachment, "lo in CNI_NETNS=%q is down", i.params.Netns)
		}
		return nil
	})
}
