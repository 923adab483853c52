package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/netstack"
	"github.com/usernet/usernet/tunnel"
)

// hostLink is a namespace of the host's on a network. Nothing of it is on disk:
// its device dies with the daemon, and the next ADD makes another.
type hostLink struct {
	net *network
	api control.HostLink // but for the drops
	sl  *netstack.Link
}

// AttachHost implements server.Handler. Definitions stay locked meanwhile, so
// that the network stays and one namespace is joined at a time.
func (d *Daemon) AttachHost(ctx context.Context, name string, req *control.AttachHostRequest, file *os.File) (*control.HostLink, error) {
	h, err := d.attachHost(ctx, name, req, file)
	if err != nil {
		_ = file.Close() // closed already where a device had it
		return nil, fmt.Errorf("attach the host to network %s: %w", name, err)
	}
	d.log.Info("host attached", "network", name, "netns", req.Netns, "ifname", req.IfName)
	return &h.api, nil
}

func (d *Daemon) attachHost(ctx context.Context, name string, req *control.AttachHostRequest, file *os.File) (*hostLink, error) {
	if req.Netns == 0 {
		return nil, control.Errorf(control.CodeInvalid, "netns is 0: want the inode of the namespace that the TUN is in")
	}
	if err := control.ValidateIfName(req.IfName); err != nil {
		return nil, err
	}
	unlock, err := d.lockDefinitions(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	n := d.network(name)
	if n == nil {
		return nil, noNetwork(name)
	}
	d.dropHost(ctx, n, req.Netns, "replaced")
	dev, err := tunnel.Open(file, n.rec.MTU)
	if err != nil {
		return nil, control.Errorf(control.CodeDescriptor, "%v", err)
	}
	sl, err := n.sw.AttachHost(dev, netstack.HostLinkConfig{
		Name: fmt.Sprintf("host-%d", req.Netns), MTU: n.rec.MTU, Forward: req.Forward,
	})
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	h := &hostLink{net: n, sl: sl, api: control.HostLink{
		Netns: req.Netns, IfName: req.IfName, Forward: req.Forward, Created: time.Now().UTC(),
	}}
	d.mu.Lock()
	wanted := n.wantsHostLocked(req.Netns)
	if wanted {
		n.hosts[req.Netns] = h
	}
	d.mu.Unlock()
	if !wanted {
		inTime(ctx, func(ctx context.Context) { err = sl.Detach(ctx) })
		return nil, errors.Join(control.Errorf(control.CodeConflict, "no link has hostNetns %d: nobody would remove it again", req.Netns), err)
	}
	d.watchers.Add(1)
	go d.watchHost(h)
	return h, nil
}

// watchHost forgets a host link whose device has ended. It ends with the
// device; Run waits for it.
func (d *Daemon) watchHost(h *hostLink) {
	defer d.watchers.Done()
	<-h.sl.Done()
	d.mu.Lock()
	unexpected := h.net.hosts[h.api.Netns] == h
	if unexpected {
		delete(h.net.hosts, h.api.Netns)
	}
	d.mu.Unlock()
	if unexpected && !d.stopping() {
		d.log.Warn("host detached: its device ended; the next ADD makes another", "network", h.net.rec.Name, "netns", h.api.Netns, "err", h.sl.Err())
	}
}

// wantsHostLocked reports whether a link of the network is to be reached from a
// namespace of the host's, with Daemon.mu held.
func (n *network) wantsHostLocked(netns uint64) bool {
	for _, l := range n.links {
		if l.rec.HostNetns == netns && l.state != control.LinkLost {
			return true
		}
	}
	return false
}

// releaseHost ends the host link that a link was reached by, if that was the
// last. The link is in no table any more.
func (d *Daemon) releaseHost(ctx context.Context, n *network, netns uint64) {
	d.mu.Lock()
	wanted := netns == 0 || n.wantsHostLocked(netns)
	d.mu.Unlock()
	if !wanted {
		d.dropHost(ctx, n, netns, "no link wants it any more")
	}
}

// dropHost ends a host link, and its device with it.
func (d *Daemon) dropHost(ctx context.Context, n *network, netns uint64, reason string) {
	d.mu.Lock()
	h := n.hosts[netns]
	delete(n.hosts, netns)
	d.mu.Unlock()
	if h == nil {
		return
	}
	var err error
	inTime(ctx, func(ctx context.Context) { err = h.sl.Detach(ctx) })
	d.log.Info("host detached", "network", n.rec.Name, "netns", netns, "reason", reason, "err", err)
}

// describeHosts lists a network's host links.
func (d *Daemon) describeHosts(n *network) []control.HostLink {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []control.HostLink
	for _, h := range n.hosts {
		one := h.api
		if drops := h.sl.Stats().Drops; len(drops) > 0 {
			one.Drops = drops
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b control.HostLink) int { return cmp.Compare(a.Netns, b.Netns) })
	return out
}
