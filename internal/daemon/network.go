package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/ipam"
	"github.com/usernet/usernet/netstack"
)

// network is one network with its switch and its pool.
type network struct {
	d    *Daemon
	rec  *networkRecord // not changed; what may change is below
	sw   *netstack.Switch
	pool *ipam.Pool // nil: addresses are leased elsewhere

	// Guarded by Daemon.mu.
	policy networkPolicy
	links  map[control.LinkKey]*link
	hosts  map[uint64]*hostLink       // by the inode of the host's namespace
	names  map[string]control.LinkKey // names that belong to one link alone
	users  int                        // attaches that hold the network without being in links yet
}

// busy reports what keeps the network from being removed, with Daemon.mu held.
// Lost links do not: they are memories.
func (n *network) busyLocked() []string {
	var ids []string
	for key, l := range n.links {
		if l.state != control.LinkLost {
			ids = append(ids, key.String())
		}
	}
	slices.Sort(ids)
	if n.users > 0 {
		ids = append(ids, fmt.Sprintf("%d being attached", n.users))
	}
	return ids
}

// lockDefinitions lets one definition of networks change at a time; it may be
// held over I/O. Order: a link's key before definitions before Daemon.mu.
func (d *Daemon) lockDefinitions(ctx context.Context) (unlock func(), err error) {
	select {
	case d.defining <- struct{}{}:
		return func() { <-d.defining }, nil
	case <-ctx.Done():
		return nil, control.Errorf(control.CodeUnavailable, "another network is being defined: %v", context.Cause(ctx))
	}
}

func (d *Daemon) network(name string) *network {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.networks[name]
}

func (d *Daemon) networkList() []*network {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*network, 0, len(d.networks))
	for _, n := range d.networks {
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b *network) int { return strings.Compare(a.rec.Name, b.rec.Name) })
	return list
}

func noNetwork(name string) error {
	return control.Errorf(control.CodeNotFound, "no network %q; create it with \"usernet network create %s\"", name, name)
}

// CreateNetwork implements server.Handler.
func (d *Daemon) CreateNetwork(ctx context.Context, req *control.CreateNetworkRequest) (*control.Network, error) {
	unlock, err := d.lockDefinitions(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	rec, err := newRecord(req, control.SourceAPI, d.takenPrefixes())
	if err != nil {
		return nil, err
	}
	if n := d.network(rec.Name); n != nil {
		return nil, control.Errorf(control.CodeNetworkExists, "network %s exists (%v); remove it first, or choose another name", rec.Name, n.rec.prefixes())
	}
	n, err := d.defineNetwork(ctx, rec)
	if err != nil {
		return nil, err
	}
	return d.describeNetwork(n), nil
}

// takenPrefixes are the networks' and the host's own, for choices of subnets.
func (d *Daemon) takenPrefixes() []netip.Prefix {
	var taken []netip.Prefix
	for _, n := range d.networkList() {
		taken = append(taken, n.rec.prefixes()...)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return taken // only a choice: without it a subnet may hide part of the LAN
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			taken = append(taken, p.Masked())
		}
	}
	return taken
}

// defineNetwork makes a network, with definitions locked and its name free.
func (d *Daemon) defineNetwork(ctx context.Context, rec *networkRecord) (*network, error) {
	if err := d.makeRoom(ctx, rec); err != nil {
		return nil, err
	}
	var undo undoList
	defer undo.run(ctx)
	n, err := d.openNetwork(ctx, rec)
	if err != nil {
		return nil, err
	}
	undo.add(func(ctx context.Context) {
		_ = n.sw.Close() // it has no links yet
		d.leavePool(ctx, n)
	})
	if err := d.store.putNetwork(rec); err != nil {
		return nil, err
	}
	d.addNetwork(n)
	undo.keep()
	d.log.Info("network created", "network", rec.Name, "gateways", rec.Gateways, "source", rec.Source)
	return n, nil
}

// openNetwork makes the switch and the pool of a record.
func (d *Daemon) openNetwork(ctx context.Context, rec *networkRecord) (*network, error) {
	n := &network{d: d, rec: rec, policy: rec.networkPolicy, links: map[control.LinkKey]*link{}, hosts: map[uint64]*hostLink{}, names: map[string]control.LinkKey{}}
	var services []netstack.HostService
	for _, h := range rec.HostServices {
		services = append(services, netstack.HostService{Name: h.Name, Target: h.Target})
	}
	sw, err := netstack.New(netstack.Config{
		Name: rec.Name, Gateways: rec.Gateways, MTU: rec.MTU, Internal: rec.Internal, HostServices: services,
		Allow: rec.Allow, Refuse: d.refuseFor(rec.Name), Limits: d.cfg.File.Limits.limits(), Log: d.log,
		Policy: rec.forSwitch(), Fabric: &d.fabric,
	})
	if err != nil {
		return nil, control.Errorf(control.CodeInvalid, "network %s: %v", rec.Name, err)
	}
	n.sw = sw
	if len(rec.Sets) > 0 {
		p, err := d.openPool(ctx, rec.Name, rec.Sets)
		if err != nil {
			return nil, errors.Join(err, sw.Close())
		}
		n.pool = p.ipam
	}
	return n, nil
}

// addNetwork makes a network known, and unreachable from the others by way of
// the outside.
func (d *Daemon) addNetwork(n *network) {
	d.mu.Lock()
	d.networks[n.rec.Name] = n
	if d.hostKnown {
		n.sw.SetHostAddrs(d.hostAddrs, d.hostBroadcasts)
	}
	d.mu.Unlock()
	d.refreshRefused()
}

// refuseFor returns the prefixes of all networks but one.
func (d *Daemon) refuseFor(name string) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range d.networkList() {
		if n.rec.Name != name {
			out = append(out, n.rec.prefixes()...)
		}
	}
	return out
}

// refreshRefused tells every switch the prefixes of the others. Definitions
// are locked, or nothing is served yet.
func (d *Daemon) refreshRefused() {
	for _, n := range d.networkList() {
		if err := n.sw.SetRefuse(d.refuseFor(n.rec.Name)); err != nil {
			// The prefixes are those of switches that exist, so they compile.
			d.log.Error("other networks' prefixes not refused", "network", n.rec.Name, "err", err)
		}
	}
}

// makeRoom refuses a network that shares addresses with another one, with
// definitions locked. Another that an attach implied goes when it has no links:
// nobody tells the daemon that the runtime's network of that name was removed.
func (d *Daemon) makeRoom(ctx context.Context, rec *networkRecord) error {
	for _, other := range d.networkList() {
		p, q, overlap := rec.overlap(other.rec)
		if other.rec.Name == rec.Name || !overlap {
			continue
		}
		refusal := control.Errorf(control.CodeNetworkExists, "network %s: subnet %v overlaps %v of network %s; choose another subnet", rec.Name, p, q, other.rec.Name)
		if other.rec.Source != control.SourceAttach {
			return refusal
		}
		if err := d.dropNetwork(ctx, other); control.CodeOf(err) == control.CodeNetworkInUse {
			return refusal
		} else if err != nil {
			return err
		}
	}
	return nil
}

// overlap returns two prefixes of two networks that share addresses.
func (r *networkRecord) overlap(o *networkRecord) (p, q netip.Prefix, found bool) {
	for _, p := range r.prefixes() {
		for _, q := range o.prefixes() {
			if p.Overlaps(q) {
				return p, q, true
			}
		}
	}
	return p, q, false
}

// RemoveNetwork implements server.Handler.
func (d *Daemon) RemoveNetwork(ctx context.Context, name string) error {
	unlock, err := d.lockDefinitions(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	n := d.network(name)
	p := d.pool(name)
	switch {
	case n == nil && p == nil:
		return noNetwork(name)
	case n == nil:
		return d.dropPool(p)
	case n.rec.Source == control.SourceConfig:
		return control.Errorf(control.CodeConflict, "network %s comes from the configuration file; remove it there and restart the daemon", name)
	}
	if err := d.dropNetwork(ctx, n); err != nil {
		return err
	}
	if p = d.pool(name); p != nil && len(p.bare()) == 0 {
		return d.dropPool(p)
	}
	return nil
}

// dropNetwork removes a network without links, with definitions locked.
func (d *Daemon) dropNetwork(ctx context.Context, n *network) error {
	name := n.rec.Name
	d.mu.Lock()
	if busy := n.busyLocked(); len(busy) > 0 {
		d.mu.Unlock()
		return control.Errorf(control.CodeNetworkInUse, "network %s has links: %s; detach them first", name, strings.Join(busy, ", "))
	}
	delete(d.networks, name) // from here on nobody attaches to it
	lost := n.links
	d.mu.Unlock()
	if err := d.store.deleteNetwork(name); err != nil {
		d.mu.Lock()
		d.networks[name] = n
		d.mu.Unlock()
		return err
	}
	for key := range lost {
		if err := d.store.deleteLink(key); err != nil {
			d.log.Warn("record of a lost link stays", "link", key.String(), "err", err)
		}
	}
	err := n.sw.Shutdown(ctx)
	d.leavePool(ctx, n)
	d.refreshRefused()
	d.log.Info("network removed", "network", name, "err", err)
	return nil
}

// holdNetwork returns the network of an attach, made or redefined when need
// be, and keeps it from being removed until release is called.
func (d *Daemon) holdNetwork(ctx context.Context, req *control.AttachRequest) (n *network, release func(), err error) {
	want, err := recordOfAttach(req)
	if err != nil {
		return nil, nil, err
	}
	for {
		n, err := d.takeNetwork(req.Network, want)
		switch {
		case n != nil && err == nil:
			return n, func() { d.mu.Lock(); n.users--; d.mu.Unlock() }, nil
		case want == nil && n == nil:
			return nil, nil, noNetwork(req.Network)
		case n != nil && n.rec.Source != control.SourceAttach:
			return nil, nil, err
		}
		if derr := d.redefine(ctx, want, err); derr != nil {
			return nil, nil, derr
		}
	}
}

// takeNetwork counts the caller as a user of the network, if it is there and
// what is wanted. It returns the network with the error when it is not.
func (d *Daemon) takeNetwork(name string, want *networkRecord) (*network, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.networks[name]
	if n == nil {
		return nil, nil
	}
	if err := n.rec.agrees(want); err != nil {
		return n, err
	}
	n.users++
	return n, nil
}

// redefine makes the network that an attach implies, in place of one that has
// no links and was implied by an earlier attach. mismatch is why the present
// one does not do.
func (d *Daemon) redefine(ctx context.Context, want *networkRecord, mismatch error) error {
	unlock, err := d.lockDefinitions(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	n := d.network(want.Name)
	if n == nil {
		_, err := d.defineNetwork(ctx, want)
		return err
	}
	if n.rec.agrees(want) == nil {
		return nil // somebody else was faster
	}
	if err := d.makeRoom(ctx, want); err != nil {
		return err
	}
	if err := d.dropNetwork(ctx, n); control.CodeOf(err) == control.CodeNetworkInUse {
		return fmt.Errorf("%w (%w)", mismatch, err)
	} else if err != nil {
		return err
	}
	_, err = d.defineNetwork(ctx, want)
	return err
}

// Networks implements server.Handler.
func (d *Daemon) Networks(context.Context) ([]control.Network, error) {
	var list []control.Network
	for _, n := range d.networkList() {
		list = append(list, *d.describeNetwork(n))
	}
	return list, nil
}

// Network implements server.Handler.
func (d *Daemon) Network(_ context.Context, name string) (*control.Network, error) {
	n := d.network(name)
	if n == nil {
		return nil, noNetwork(name)
	}
	return d.describeNetwork(n), nil
}

func (d *Daemon) describeNetwork(n *network) *control.Network {
	r, p := n.rec, n.currentPolicy()
	out := &control.Network{
		Name: r.Name, Source: r.Source, Sets: controlSets(r.Sets), Gateways: r.Gateways, MTU: r.MTU, Internal: r.Internal,
		HostServices: r.HostServices, Allow: r.Allow, Created: r.Created, Links: []string{}, Hosts: d.describeHosts(n), Pool: poolUsage(n.pool),
		IngressPolicy: p.ingress(), PortIsolation: p.PortIsolation, Hairpin: !p.NoHairpin,
	}
	d.mu.Lock()
	for key := range n.links {
		out.Links = append(out.Links, key.String())
	}
	d.mu.Unlock()
	slices.Sort(out.Links)
	return out
}

// poolUsage sums a pool's sets; nil pools are empty.
func poolUsage(p *ipam.Pool) control.PoolUsage {
	var u control.PoolUsage
	if p == nil {
		return u
	}
	const most = 1<<63 - 1
	add := func(to *int64, v uint64) { *to += int64(min(v, uint64(most-*to))) }
	for _, s := range p.Usage() {
		add(&u.Leased, s.Used)
		add(&u.Quarantined, s.Rest)
		add(&u.Free, s.Size-s.Used-s.Rest)
		u.Exhausted = u.Exhausted || s.Used >= s.Size
	}
	return u
}
