package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/undo"
	"github.com/usernet/usernet/tunnel"
)

// hostAccess is the key "hostAccess": whether the plugin's own namespace, the
// node's as a rule, reaches the containers at their addresses.
type hostAccess struct {
	Enabled bool `json:"enabled"`
	// IfName of the host's side. Empty: made of the network's name.
	IfName string `json:"ifname"`
	// Forward lets the host forward others' packets to the containers.
	Forward bool `json:"forward"`
}

func decodeHostAccess(c *config, raw json.RawMessage) error {
	h := c.HostAccess
	if err := decodeStrict(raw, &h); err != nil {
		return err
	}
	if h.IfName != "" {
		if why := ifNameFault(h.IfName); why != "" {
			return badValue("hostAccess.ifname", h.IfName, why)
		}
	}
	c.HostAccess = h
	return nil
}

// hostIfName is the name of the host's side of the network: "un-" and the
// network's name, or where that is too long for the kernel, its hash.
func (c *config) hostIfName() string {
	const prefix, most = "un-", unix.IFNAMSIZ - 1
	switch {
	case c.HostAccess.IfName != "":
		return c.HostAccess.IfName
	case len(prefix)+len(c.Name) <= most:
		return prefix + c.Name
	}
	sum := sha256.Sum256([]byte(c.Name))
	return prefix + hex.EncodeToString(sum[:])[:most-len(prefix)]
}

// hostAlias is the interface alias by which the host's side is known as this
// network's.
func hostAlias(network string) string {
	return linkAlias(control.LinkKey{Network: network, Container: "host"})
}

// hostGrace is how long the device of a daemon that was killed may take to
// vanish: the kernel closes its descriptors as the process ends.
const hostGrace = 5 * time.Second

// joining is the making of the host's side of a network.
type joining struct {
	*adding
	undo  undo.List
	net   control.Network
	iface netns.Interface
	tun   *os.File
}

// startHost has the host's side made, if it is wanted and not there yet, beside
// the steps that follow: they are in the container's namespace. The link is
// attached and asks for it already, so that the daemon neither refuses it nor
// takes one away that is found here; when the ADD fails later, the link's end
// takes it along unless other links want it.
func (a *adding) startHost(ctx context.Context) {
	if !a.conf.HostAccess.Enabled {
		return
	}
	a.joined = inBackground(func() error { // on another thread than this
		return a.own.Do(func() error { return a.joinHost(ctx) })
	})
	a.undo.Add(func() { _ = a.joined() }) // told by the step "host", if it came to that
}

// awaitHost waits until the host's side is there.
func (a *adding) awaitHost(context.Context) error {
	if a.joined == nil {
		return nil
	}
	err := a.joined()
	a.made.host, a.made.hostMTU = a.hostSide.Name, a.hostSide.MTU
	return err
}

// joinHost makes the host's side. The lock is against other ADDs that would make
// the same.
func (a *adding) joinHost(ctx context.Context) error {
	if err := lockNetns(ctx, a.own); err != nil {
		return err
	}
	network, err := a.client.Network(ctx, a.conf.Name)
	if err != nil {
		return fmt.Errorf("ask for network %s: %w", a.conf.Name, err)
	}
	a.hostSide = hostInterface(a.conf, &network)
	j := &joining{adding: a, net: network, iface: a.hostSide}
	ready, err := j.find(ctx)
	if err == nil && !ready {
		err = j.make(ctx)
	}
	if err != nil {
		return err
	}
	return unlockNetns(a.own)
}

// hostInterface is what the host's side is to look like: the gateway, as a
// bridge has it; its addresses bring the routes to the network's prefixes.
func hostInterface(c *config, n *control.Network) netns.Interface {
	i := netns.Interface{Name: c.hostIfName(), MTU: n.MTU, Addrs: n.Gateways}
	return i
}

// hostRoutes adds the routes that the kernel makes of the addresses, to verify
// them.
func hostRoutes(i netns.Interface) netns.Interface {
	for _, p := range i.Addrs {
		if !p.IsSingleIP() {
			i.Routes = append(i.Routes, netns.Route{Dst: p.Masked()})
		}
	}
	return i
}

// find reports whether the host's side is there and whole. What is left of one
// that is not whole is removed.
func (j *joining) find(ctx context.Context) (ready bool, err error) {
	held := slices.IndexFunc(j.net.Hosts, func(h control.HostLink) bool { return h.Netns == j.own.Inode() })
	name := j.iface.Name
	if held >= 0 {
		h := j.net.Hosts[held]
		if h.IfName == name && h.Forward == j.conf.HostAccess.Forward && checkHostInterface(j.iface) == nil {
			return true, nil
		}
		if mine, _, err := j.mine(h.IfName); err != nil {
			return false, err
		} else if mine {
			if err := netns.DeleteLink(h.IfName); err != nil {
				return false, err
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, hostGrace)
	defer cancel()
	for {
		mine, link, err := j.mine(name)
		switch {
		case err != nil:
			return false, err
		case link == nil:
			return false, nil
		case !mine:
			return false, fail(types.ErrInvalidNetworkConfig,
				`"hostAccess": the host has an interface %s already (%s); remove it with "ip link delete %s" if nothing uses it, or set another name as "hostAccess": {"ifname": …}`,
				name, link.Type(), name)
		}
		select {
		case <-ctx.Done():
			return false, fail(types.ErrInvalidNetworkConfig,
				`"hostAccess": interface %s is the host's side of network %s at another daemon than the one of socket %s; give one of the networks another name and subnet`,
				name, j.conf.Name, j.socket())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// mine looks for an interface of the plugin's namespace, and whether it is this
// network's host side. The link is nil when there is none of the name.
func (j *joining) mine(name string) (bool, netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return false, nil, nil
	}
	if err != nil {
		return false, nil, fmt.Errorf("look for interface %s: %w", name, err)
	}
	return link.Attrs().Alias == hostAlias(j.conf.Name), link, nil
}

// make makes the host's side, or leaves nothing.
func (j *joining) make(ctx context.Context) error {
	defer j.undo.Run()
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"host judge", j.judgeRoutes},
		{"host device", j.createHost},
		{"host attach", j.attachHost},
		{"host configure", j.configureHost},
	} {
		if err := step.run(ctx); err != nil {
			return err
		}
		if err := j.done(step.name); err != nil {
			return err
		}
	}
	j.undo.Keep()
	return nil
}

// judgeRoutes refuses to hide, or to be hidden by, what the host has.
func (j *joining) judgeRoutes(context.Context) error {
	var prefixes []netip.Prefix
	var addrs []netip.Addr
	for _, g := range j.net.Gateways {
		prefixes, addrs = append(prefixes, g.Masked()), append(addrs, g.Addr())
	}
	found, err := netns.Overlap(prefixes, addrs)
	if err != nil {
		return err
	}
	if found != "" {
		return fail(types.ErrInvalidNetworkConfig,
			`"hostAccess": the host has the %s already, so that it could not reach network %s (%v); remove that, give the network another subnet, or set "hostAccess": {"enabled": false}`,
			found, j.conf.Name, prefixes)
	}
	return nil
}

// createHost makes the TUN under its name.
func (j *joining) createHost(context.Context) error {
	var err error
	name := j.iface.Name
	if j.tun, err = tunnel.Create(tunnel.Options{Name: name, MTU: j.iface.MTU, Alias: hostAlias(j.conf.Name)}); err != nil {
		return fail(ErrDevice, `"hostAccess": %v; the plugin needs /dev/net/tun (modprobe tun) and CAP_NET_ADMIN`, err)
	}
	j.undo.Add(func() {
		err := j.tun.Close()
		if errors.Is(err, os.ErrClosed) {
			err = netns.DeleteLink(name) // the daemon holds it
		}
		if err != nil {
			fmt.Fprintf(j.Stderr, "usernet-cni: undo: delete %s: %v\n", name, err)
		}
	})
	return nil
}

// attachHost hands the TUN over: the device lives and dies with the daemon's
// descriptor.
func (j *joining) attachHost(ctx context.Context) error {
	_, err := j.client.AttachHost(ctx, j.conf.Name, control.AttachHostRequest{
		Netns: j.own.Inode(), IfName: j.iface.Name, Forward: j.conf.HostAccess.Forward,
	}, j.tun)
	if err != nil {
		return err
	}
	return j.tun.Close()
}

func (j *joining) configureHost(context.Context) error {
	if err := netns.Configure(j.iface); err != nil {
		return fmt.Errorf(`"hostAccess": %w`, err)
	}
	if err := checkHostInterface(j.iface); err != nil {
		return fmt.Errorf(`"hostAccess": %w`, err)
	}
	return nil
}

// checkHostInterface compares the host's side in the current namespace, whose
// other end somebody must hold.
func checkHostInterface(want netns.Interface) error {
	return checkInterface(hostRoutes(want), control.DeviceTUN)
}

// checkHost carries out CHECK for the host's side of a link's network. It is
// looked at where the ADD was made; a CHECK from elsewhere asks the daemon only.
func (i *invocation) checkHost(ctx context.Context, l *control.Link) error {
	if !i.conf.HostAccess.Enabled {
		return nil
	}
	if l.HostNetns == 0 {
		return fail(ErrAttachment, `the daemon's link %s was attached without "hostAccess"; DEL and ADD make a new one`, i.key())
	}
	network, err := i.client.Network(ctx, i.conf.Name)
	if err != nil {
		return fmt.Errorf("check %s: %w", i.key(), err)
	}
	if !slices.ContainsFunc(network.Hosts, func(h control.HostLink) bool { return h.Netns == l.HostNetns }) {
		return fail(ErrAttachment, "the host (net:[%d]) has no way to network %s any more; the next ADD makes it anew", l.HostNetns, i.conf.Name)
	}
	own, err := netns.Current()
	if err != nil {
		return fmt.Errorf("open the plugin's own network namespace: %w", err)
	}
	defer own.Close()
	if own.Inode() != l.HostNetns {
		return nil
	}
	if err := checkHostInterface(hostInterface(i.conf, &network)); err != nil {
		return fail(ErrAttachment, "the host's way to network %s: %v", i.conf.Name, err)
	}
	return nil
}
