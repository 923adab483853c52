package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/control/server"
	"github.com/usernet/usernet/ipam"
	"github.com/usernet/usernet/netstack"
	"github.com/usernet/usernet/tunnel"
)

// deathGrace is how long an attach waits for the previous link of the same key
// to be seen dead: its namespace's end reaches the descriptor within 0.1 s.
const deathGrace = 300 * time.Millisecond

// The steps of an attach, by the names that Config.fault is asked with.
const (
	stepIntent  = "intent"
	stepLease   = "lease"
	stepDevice  = "device"
	stepSwitch  = "switch"
	stepPublish = "publish"
	stepReply   = "reply"
)

// attachSteps lists the steps in their order.
var attachSteps = []string{stepIntent, stepLease, stepDevice, stepSwitch, stepPublish, stepReply}

// attaching is an attach under way.
type attaching struct {
	d     *Daemon
	req   *control.AttachRequest
	files []*os.File // owned; nil entries are taken
	n     *network
	l     *link
	lost  *link // what an earlier daemon left of this key; nil: nothing
	undo  undoList
	names linkNames
	dev   tunnel.Device
}

// Attach implements server.Handler: intent, lease, device, switch,
// publications; whatever fails, everything before it is taken back.
func (d *Daemon) Attach(ctx context.Context, s *server.Session, req *control.AttachRequest, files []*os.File) (*control.AttachReply, error) {
	a := &attaching{d: d, req: req, files: files}
	defer a.closeFiles()
	key := req.Key()
	if err := d.checkAttach(req); err != nil {
		return nil, attachError(key, err)
	}
	if err := d.checkRoom(); err != nil {
		return nil, attachError(key, err)
	}
	unlock, err := d.keys.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	reply, err := a.run(ctx, s)
	if err != nil {
		return nil, attachError(key, err)
	}
	d.log.Info("link attached", "link", key.String(), "addrs", reply.Addrs, "pid", s.Peer.PID)
	return reply, nil
}

func attachError(key control.LinkKey, err error) error {
	return fmt.Errorf("attach %s: %w", key, err)
}

func (a *attaching) closeFiles() { closeFiles(a.files) }

// closeFiles closes descriptors that nobody needs any more; nil entries are
// taken.
func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // it was only to be looked at, or taken
		}
	}
}

// run does the steps, with the key locked.
func (a *attaching) run(ctx context.Context, s *server.Session) (*control.AttachReply, error) {
	if err := a.d.replaceDead(ctx, a.req.Key()); err != nil {
		return nil, err
	}
	n, release, err := a.d.holdNetwork(ctx, a.req)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := a.d.wishPolicy(ctx, n, &a.req.PolicyWishes); err != nil {
		return nil, err
	}
	a.n = n
	defer a.undo.run(ctx)
	steps := map[string]func(context.Context) error{
		stepIntent: a.intent, stepLease: a.lease, stepDevice: a.device,
		stepSwitch: a.join, stepPublish: a.publish,
		stepReply: func(context.Context) error { return nil },
	}
	for _, step := range attachSteps {
		if err := a.d.faultAt(step); err != nil {
			return nil, err
		}
		if err := context.Cause(ctx); err != nil {
			return nil, control.Errorf(control.CodeUnavailable, "interrupted before the step %q: %v", step, err)
		}
		if err := steps[step](ctx); err != nil {
			return nil, err
		}
	}
	a.undo.keep()
	a.l.bind(s)
	return a.reply(), nil
}

func (d *Daemon) faultAt(step string) error {
	if d.cfg.fault == nil {
		return nil
	}
	return d.cfg.fault(step)
}

// intent records durably what is about to be made.
func (a *attaching) intent(context.Context) error {
	req := a.req
	a.l = &link{
		d: a.d, net: a.n, state: control.LinkAttaching, pubs: map[string]*publication{},
		rec: &linkRecord{
			Network: req.Network, Container: req.Container, IfName: req.IfName, State: control.LinkAttaching,
			BootID: a.d.bootID, Netns: req.Netns, NetnsPath: req.NetnsPath, HostNetns: req.HostNetns, Owner: req.Owner,
			MTU: req.MTU, Device: req.Device, MAC: req.MAC, Ephemeral: req.Ephemeral, Created: time.Now().UTC(),
		},
		pinned: req.Pinned,
		now:    amendable{Hostname: req.Hostname, Aliases: req.Aliases, Bandwidth: req.Bandwidth},
	}
	if a.l.rec.MTU == 0 {
		a.l.rec.MTU = a.n.rec.MTU
		if req.Bandwidth != nil {
			a.l.rec.MTU = min(a.l.rec.MTU, netstack.LimitedMTU)
		}
	}
	if req.DNS != nil {
		a.l.rec.Domain = req.DNS.Domain
	}
	key := req.Key()
	a.lost = a.d.link(key)
	a.undo.add(func(context.Context) {
		var err error
		if a.lost != nil {
			err = a.d.store.putLink(a.lost.rec)
		} else {
			err = a.d.store.deleteLink(key)
		}
		if err != nil {
			a.d.log.Error("intent stays until the next start", "link", key.String(), "err", err)
		}
	})
	return a.d.store.putLink(a.l.rec)
}

// lease gets the addresses, durably.
func (a *attaching) lease(ctx context.Context) error {
	rec := a.l.rec
	if a.req.Unaddressed {
		return nil
	}
	if len(a.req.Addrs) > 0 {
		rec.Addrs = slices.Clone(a.req.Addrs)
		for _, p := range rec.Addrs {
			rec.Gateways = append(rec.Gateways, a.n.gatewayFor(p.Addr()))
		}
		return nil
	}
	if a.n.pool == nil {
		return control.Errorf(control.CodeInvalid, "network %s leases no addresses: the request must bring them (addrs)", a.n.rec.Name)
	}
	owner := linkOwner(rec.key())
	if err := a.freeUnwanted(ctx, owner); err != nil {
		return err
	}
	if _, held := a.n.pool.Lookup(owner); !held {
		a.undo.add(func(ctx context.Context) {
			if err := a.n.pool.Release(ctx, owner); err != nil {
				a.d.log.Error("lease stays until the next start", "link", string(owner), "err", err)
			}
		})
	}
	want := ipam.Request{Owner: owner, Want: a.req.IPs, BootID: rec.BootID, Netns: rec.Netns}
	want.Name = stickyName(a.req.Sticky, a.req.IfName)
	lease, err := a.n.pool.Acquire(ctx, want)
	if err != nil {
		return leaseError(err)
	}
	rec.Addrs, rec.Gateways = lease.Addrs, lease.Gateways
	return nil
}

// stickyName is what addresses stick to: a container's name on one interface.
func stickyName(container, ifName string) string {
	if container == "" {
		return ""
	}
	return container + "/" + ifName
}

// freeUnwanted releases the lease that a lost link of this key still holds, when
// other addresses are wanted than it has. A container that is attached anew
// without such a wish keeps its addresses.
func (a *attaching) freeUnwanted(ctx context.Context, owner ipam.Owner) error {
	lease, held := a.n.pool.Lookup(owner)
	if !held || !slices.ContainsFunc(a.req.IPs, func(want netip.Addr) bool { return !lease.Holds(want) }) {
		return nil
	}
	return a.n.pool.Release(ctx, owner)
}

// leaseError gives ipam's causes their codes.
func leaseError(err error) error {
	for cause, code := range map[error]control.Code{
		ipam.ErrExhausted: control.CodeExhausted, ipam.ErrInUse: control.CodeAddressInUse,
		ipam.ErrOutOfRange: control.CodeOutOfRange, ipam.ErrReserved: control.CodeOutOfRange,
		ipam.ErrBadRequest: control.CodeInvalid,
	} {
		if errors.Is(err, cause) {
			return control.Errorf(code, "%v", err)
		}
	}
	return err
}

// device checks and opens the TUN or TAP.
func (a *attaching) device(context.Context) error {
	open := a.openTUN
	if a.req.Device == control.DeviceTAP {
		open = a.openTAP
	}
	dev, err := open(a.files[0])
	if err != nil {
		return control.Errorf(control.CodeDescriptor, "%v", err)
	}
	a.files[0] = nil // the device owns it
	a.dev = dev
	a.undo.add(func(context.Context) {
		if a.dev != nil {
			_ = a.dev.Close() // the link is not to be
		}
	})
	return nil
}

func (a *attaching) openTUN(f *os.File) (tunnel.Device, error) {
	return tunnel.Open(f, a.l.rec.MTU)
}

// openTAP does not pin the MAC address: plugins that run later in a list may
// change it (tuning), and nobody but the switch is on the wire to be deceived.
func (a *attaching) openTAP(f *os.File) (tunnel.Device, error) {
	rec := a.l.rec
	if rec.MAC == "" {
		if err := tunnel.ValidateTAP(f); err != nil {
			return nil, err
		}
		mac, err := tunnel.HardwareAddr(f)
		if err != nil {
			return nil, err
		}
		rec.MAC = mac.String()
	}
	return tunnel.OpenTAP(f, rec.MTU, tunnel.TAPConfig{Addrs: rec.hosts()})
}

// join puts the link into the switch and into the tables.
func (a *attaching) join(ctx context.Context) error {
	d, key := a.d, a.req.Key()
	d.mu.Lock()
	a.names = a.n.chooseNamesLocked(key, &nameWishes{a.req.Hostname, a.req.Aliases, a.l.rec.Domain})
	d.mu.Unlock()
	a.undo.add(func(context.Context) {
		d.mu.Lock()
		a.n.freeNamesLocked(key)
		d.mu.Unlock()
	})
	sl, err := a.n.sw.Attach(a.dev, netstack.LinkConfig{
		Name: a.names.link, Addrs: a.l.rec.hosts(), Aliases: a.names.further(), Hostname: a.names.hostname(), MTU: a.l.rec.MTU,
		Bandwidth: switchBandwidth(a.req.Bandwidth), NoOwnPorts: a.req.NoOwnPorts, DHCP: a.dhcp(),
	})
	switch {
	case errors.Is(err, netstack.ErrAddressInUse):
		return control.Errorf(control.CodeAddressInUse, "%v", err)
	case err != nil:
		return control.Errorf(control.CodeInvalid, "%v", err)
	}
	a.dev = nil // the switch owns it
	a.l.sl, a.l.now.Names = sl, a.names.all()
	d.mu.Lock()
	a.n.links[key] = a.l
	d.mu.Unlock()
	d.poke()
	d.watchers.Add(1)
	go a.l.watch()
	a.undo.add(func(ctx context.Context) {
		d.mu.Lock()
		a.l.removing = true
		delete(a.n.links, key)
		if a.lost != nil {
			a.n.links[key] = a.lost
		}
		d.mu.Unlock()
		d.poke()
		if err := sl.Detach(ctx); err != nil {
			d.log.Error("link is slow to end", "link", key.String(), "err", err)
		}
		d.releaseHost(ctx, a.n, a.l.rec.HostNetns)
	})
	return checkPinned(a.req) // again: from here on reapEnded looks
}

// dhcp is what DHCP clients are told. A TUN has none: they speak Ethernet.
func (a *attaching) dhcp() *netstack.DHCP {
	if a.req.Device != control.DeviceTAP {
		return nil
	}
	dns := a.dns()
	if dns.Domain != "" {
		dns.Search = append([]string{dns.Domain}, dns.Search...)
	}
	return &netstack.DHCP{Nameservers: dns.Nameservers, Search: dns.Search}
}

// publish opens the link's publications; they end with the link.
func (a *attaching) publish(context.Context) error {
	sockets, r, err := splitRedirect(a.files[1:], a.req.Publications...)
	if err != nil {
		return err
	}
	defer r.release()
	for i := range a.req.Publications {
		spec := &a.req.Publications[i]
		var f *os.File
		if spec.FD {
			f, sockets = sockets[0], sockets[1:]
		}
		p, err := a.l.publish(spec, f, r)
		if err != nil {
			return err
		}
		a.undo.add(func(context.Context) { a.d.closePublication(p) })
	}
	return nil
}

func (a *attaching) reply() *control.AttachReply {
	rec := a.l.rec
	return &control.AttachReply{
		ID: rec.key().String(), Addrs: rec.Addrs, Gateways: rec.Gateways, MTU: rec.MTU, DNS: a.dns(),
		Publications: a.d.publicationsOf(a.l, a.req.Publications),
	}
}

// dns is how the container resolves names: as it was asked for, and where
// nothing was, by its gateways.
func (a *attaching) dns() control.DNSConf {
	dns := control.DNSConf{}
	if a.req.DNS != nil {
		dns = *a.req.DNS
	}
	if len(dns.Nameservers) == 0 {
		for _, g := range a.n.rec.Gateways {
			if slices.ContainsFunc(a.l.rec.Addrs, func(p netip.Prefix) bool { return g.Contains(p.Addr()) }) {
				dns.Nameservers = append(dns.Nameservers, g.Addr())
			}
		}
	}
	if len(dns.Search) == 0 && dns.Domain == "" {
		dns.Search = []string{dnsDomain}
	}
	return dns
}

// dnsDomain is the suffix under which names of links also resolve.
const dnsDomain = "usernet.internal"

// gatewayFor is the network's gateway of an address's family, invalid without
// one.
func (n *network) gatewayFor(a netip.Addr) netip.Addr {
	for _, g := range n.rec.Gateways {
		if g.Addr().Is4() == a.Is4() {
			return g.Addr()
		}
	}
	return netip.Addr{}
}

// replaceDead makes way for an attach, with the key locked: what is left of a
// dead link is removed; a live one is a conflict; a lost one is replaced by the
// steps of the attach, which may keep its addresses.
func (d *Daemon) replaceDead(ctx context.Context, key control.LinkKey) error {
	l := d.link(key)
	if l == nil || l.sl == nil {
		return nil
	}
	if l.alive() {
		timer := time.NewTimer(deathGrace)
		defer timer.Stop()
		select {
		case <-l.sl.Done():
		case <-l.makerGone():
		case <-timer.C:
			return control.Errorf(control.CodeConflict, "the link is attached and alive since %s; detach it first", l.rec.Created.Format(time.RFC3339))
		case <-ctx.Done():
			return control.Errorf(control.CodeUnavailable, "interrupted: %v", context.Cause(ctx))
		}
	}
	return l.remove(ctx, "replaced by a new attach")
}
