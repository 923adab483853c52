package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/redirect"
)

// detachPatience bounds how long a DEL waits for a daemon that accepts and
// does not answer, before it leaves a tombstone: runtimes give a DEL a minute
// or less, and a container that cannot be deleted is worse than a link that
// goes a little later.
const detachPatience = 15 * time.Second

// del carries out DEL. It is identified by network, container and interface
// alone, is done in any order and any number of times, and goes on past what
// fails; what is missing is done already.
func (i *invocation) del(ctx context.Context) error {
	if i.conf.IPAM.dhcp() {
		i.releaseDHCP(ctx)
	}
	err := i.detach(ctx)
	i.forgetFlows()
	err = errors.Join(
		err,
		i.deleteInterface(),
		i.releaseIPAM(ctx),
	)
	if err == nil && i.conf.Bridge != nil && i.missing {
		// No ADD took this configuration, and nothing is left of another: as
		// with the reference bridge the runtime's log says why.
		return i.conf.Overlooked
	}
	return err
}

// detach has the daemon forget the link.
func (i *invocation) detach(ctx context.Context) error { return i.leave(ctx, i.client.Detach) }

// ending is a request that ends what the daemon has of a key, a link or a lease,
// and reports whether there was anything.
type ending func(context.Context, control.LinkKey) (bool, error)

// leave has the daemon end it, now or when there is a daemon again.
func (i *invocation) leave(ctx context.Context, end ending) error {
	if left, err := i.tryEnd(ctx, end); !left {
		return err
	}
	stone := control.Tombstone{Link: i.key(), Deleted: time.Now()}
	if err := errors.Join(stone.Write(i.socket()), i.done("tombstone")); err != nil {
		return err
	}
	i.missing = true
	// A daemon that was starting meanwhile may have looked for tombstones just
	// before this one was written, so that it would find it only at its next
	// start. If one serves now, it is told after all.
	if left, err := i.tryEnd(ctx, end); !left {
		return errors.Join(err, stone.Remove())
	}
	return nil
}

// tryEnd asks the daemon. left says that there was none to decide it, or that it
// did not answer in time: the deletion is left to a later one.
func (i *invocation) tryEnd(ctx context.Context, end ending) (left bool, err error) {
	bounded, cancel := context.WithTimeout(ctx, detachPatience)
	defer cancel()
	removed, err := end(bounded, i.key())
	if err == nil {
		i.missing = !removed
		return false, nil
	}
	if isUnreachable(err) || ctx.Err() == nil && bounded.Err() != nil {
		return true, nil
	}
	return false, fmt.Errorf("delete %s: %w", i.key(), err)
}

// forgetFlows makes the host forget the conversations with redirected UDP ports;
// the redirects themselves went with the link. It is done for all UDP ports that
// might have been redirected, as a DEL may not know.
func (i *invocation) forgetFlows() {
	if m := i.conf.Publish.Mode; m == publishListen || m == publishNone {
		return
	}
	var rules []redirect.Rule
	for n := range i.conf.Runtime.PortMappings {
		m := &i.conf.Runtime.PortMappings[n]
		hosts, err := i.conf.Publish.hostIPs(m, families{v4: true, v6: true})
		if err != nil || m.Protocol != "udp" {
			continue // what could not be published was not
		}
		for _, host := range hosts {
			rules = append(rules, redirect.Rule{Proto: m.Protocol, Host: netip.AddrPortFrom(host, uint16(m.HostPort))})
		}
	}
	redirect.Forget(rules)
}

// deleteInterface removes the device from the container, where its namespace
// can be reached and the device bears this link's alias. Normally it is gone by
// then, with the daemon's descriptor.
func (i *invocation) deleteInterface() error {
	if i.params.Netns == "" {
		return nil
	}
	h, err := netns.Open(i.params.Netns)
	if err != nil {
		return nil // the namespace is gone, and the device with it
	}
	defer h.Close()
	err = h.Do(func() error {
		link, err := netlink.LinkByName(i.params.IfName)
		if err == nil && link.Attrs().Alias == linkAlias(i.key()) {
			return netns.DeleteLink(i.params.IfName)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete %s in CNI_NETNS=%q: %w", i.params.IfName, i.params.Netns, err)
	}
	return nil
}

// releaseIPAM has the IPAM plugin release what it leased.
func (i *invocation) releaseIPAM(ctx context.Context) error {
	if i.conf.IPAM.dhcp() {
		return nil // done before the interface went
	}
	d, err := i.ipam()
	if err != nil {
		return err
	}
	return d.run(ctx, cmdDel)
}
