package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/ipam"
)

// bareLease is a lease without a link: the addresses of an interface that
// another plugin makes. It is all in the pool, its note included, so that it is
// made and ended by one write.
type bareLease struct {
	ipam.Lease
	key  control.LinkKey
	note leaseNote
}

// leaseNote is what the daemon has to know of a bare lease besides.
type leaseNote struct {
	NetnsPath string `json:"netnsPath,omitempty"` // only where the daemon itself sees the namespace there
	Owner     string `json:"owner,omitempty"`     // the runtime's tag
	Nonce     string `json:"nonce,omitempty"`     // of the request that made it
}

// barePrefix tells the owners of bare leases from links; it cannot begin a
// network's name.
const barePrefix = "lease:"

// bareOwner is another owner than the link's of the same key: the two are made
// and ended apart from each other.
func bareOwner(key control.LinkKey) ipam.Owner { return ipam.Owner(barePrefix + key.String()) }

// bareKey is the inverse of bareOwner. bare is false for links.
func bareKey(owner ipam.Owner) (key control.LinkKey, bare bool) {
	id, bare := strings.CutPrefix(string(owner), barePrefix)
	if !bare {
		return control.LinkKey{}, false
	}
	key, err := control.ParseLinkKey(id)
	return key, err == nil
}

// asBare returns a pool's lease as a bare one. bare is false for a link's. A note
// that cannot be read tells nothing, and the lease waits for its DEL.
func asBare(l ipam.Lease) (b bareLease, bare bool) {
	key, bare := bareKey(l.Owner)
	if !bare {
		return bareLease{}, false
	}
	b = bareLease{Lease: l, key: key}
	if json.Unmarshal([]byte(l.Note), &b.note) != nil {
		b.note = leaseNote{}
	}
	return b, true
}

// bare lists a pool's bare leases, by id.
func (p *pool) bare() []bareLease {
	var all []bareLease
	for _, l := range p.ipam.Leases() {
		if b, ok := asBare(l); ok {
			all = append(all, b)
		}
	}
	return all
}

// bareLeases lists those of one network name, or all, by id.
func (d *Daemon) bareLeases(network string) []bareLease {
	var all []bareLease
	for _, p := range d.poolList() {
		if network == "" || network == p.name {
			all = append(all, p.bare()...)
		}
	}
	slices.SortFunc(all, func(a, b bareLease) int { return strings.Compare(a.key.String(), b.key.String()) })
	return all
}

// bareLease returns the bare lease of a key, if there is one.
func (d *Daemon) bareLease(key control.LinkKey) (bareLease, bool) {
	p := d.pool(key.Network)
	if p == nil {
		return bareLease{}, false
	}
	l, held := p.ipam.Lookup(bareOwner(key))
	if !held {
		return bareLease{}, false
	}
	return asBare(l)
}

func (b *bareLease) describe() *control.Lease {
	return &control.Lease{
		ID: b.key.String(), Network: b.key.Network, Container: b.key.Container, IfName: b.key.IfName,
		Owner: b.note.Owner, Netns: b.Netns, NetnsPath: b.note.NetnsPath, Addrs: b.Addrs, Gateways: b.Gateways, Since: b.Since,
	}
}

// Acquire implements server.Handler.
func (d *Daemon) Acquire(ctx context.Context, req *control.LeaseRequest) (*control.Lease, error) {
	key := req.Key()
	fault := func(err error) error { return fmt.Errorf("lease %s: %w", key, err) }
	sets, err := d.checkLease(req)
	if err != nil {
		return nil, fault(err)
	}
	unlock, err := d.keys.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, release, err := d.holdPool(ctx, req.Network, sets)
	if err != nil {
		return nil, fault(err)
	}
	defer release()
	l, err := d.acquire(ctx, p, req)
	if err != nil {
		return nil, fault(err)
	}
	d.log.Info("addresses leased", "lease", key.String(), "addrs", l.Addrs)
	d.poke()
	d.watchPlace()
	return l.describe(), nil
}

// acquire leases, with the key locked and the pool held. A lease that the key has
// already is a conflict, unless it is of another namespace: then its container is
// gone, and its DEL was lost.
func (d *Daemon) acquire(ctx context.Context, p *pool, req *control.LeaseRequest) (bareLease, error) {
	owner := bareOwner(req.Key())
	if old, held := d.bareLease(req.Key()); held {
		switch {
		case req.Nonce != "" && old.note.Nonce == req.Nonce:
			return old, nil
		case old.BootID == d.bootID && (old.Netns == 0 || req.Netns == 0 || old.Netns == req.Netns):
			return old, control.Errorf(control.CodeConflict, "%v is leased to it since %s; DEL it first", old.Addrs, old.Since.Format(time.RFC3339))
		}
		if err := p.ipam.Release(ctx, owner); err != nil {
			return old, err
		}
	}
	note := leaseNote{Owner: req.Owner, Nonce: req.Nonce}
	if fateOf(req.NetnsPath, req.Netns) == fateAlive {
		note.NetnsPath = req.NetnsPath
	}
	text, err := json.Marshal(note)
	if err != nil {
		return bareLease{}, err
	}
	want := ipam.Request{
		Owner: owner, Want: req.IPs, BootID: d.bootID, Netns: req.Netns, Note: string(text),
		Name: stickyName(req.Sticky, req.IfName),
	}
	l, err := p.ipam.Acquire(ctx, want)
	if err == nil && ctx.Err() != nil {
		// The client is not there to learn of it.
		inTime(ctx, func(ctx context.Context) { err = p.ipam.Release(ctx, owner) })
		if err == nil {
			err = control.Errorf(control.CodeUnavailable, "interrupted: %v", context.Cause(ctx))
		}
	}
	if err != nil {
		return bareLease{}, leaseError(err)
	}
	return bareLease{Lease: l, key: req.Key(), note: note}, nil
}

// Leases implements server.Handler.
func (d *Daemon) Leases(_ context.Context, network string) ([]control.Lease, error) {
	var out []control.Lease
	for _, b := range d.bareLeases(network) {
		out = append(out, *b.describe())
	}
	return out, nil
}

// Lease implements server.Handler.
func (d *Daemon) Lease(_ context.Context, key control.LinkKey) (*control.Lease, error) {
	b, held := d.bareLease(key)
	if !held {
		return nil, control.Errorf(control.CodeNotFound, "no lease %s", key)
	}
	return b.describe(), nil
}

// Release implements server.Handler.
func (d *Daemon) Release(ctx context.Context, key control.LinkKey) (released bool, err error) {
	unlock, err := d.keys.lock(ctx, key)
	if err != nil {
		return false, err
	}
	defer unlock()
	return d.release(ctx, key, "released")
}

// release ends a bare lease, if there is one, with its key locked.
func (d *Daemon) release(ctx context.Context, key control.LinkKey, reason string) (released bool, err error) {
	if _, held := d.bareLease(key); !held {
		return false, nil
	}
	inTime(ctx, func(ctx context.Context) { err = d.pool(key.Network).ipam.Release(ctx, bareOwner(key)) })
	if err != nil {
		return false, fmt.Errorf("lease %s: %w", key, err)
	}
	d.log.Info("lease ended", "lease", key.String(), "reason", reason)
	return true, nil
}

// releaseIf ends a bare lease that is the same as when it was judged.
func (d *Daemon) releaseIf(ctx context.Context, b bareLease, reason string) (released bool, err error) {
	unlock, err := d.keys.lock(ctx, b.key)
	if err != nil {
		return false, err
	}
	defer unlock()
	if now, held := d.bareLease(b.key); !held || !now.Since.Equal(b.Since) {
		return false, nil
	}
	return d.release(ctx, b.key, reason)
}

// dead reports whether a lease's namespace is seen to be no more.
func (b *bareLease) dead() bool { return b.note.NetnsPath != "" && ended(b.note.NetnsPath, b.Netns) }

// leaseSurvives reports whether a bare lease of an earlier daemon is to be kept.
func (d *Daemon) leaseSurvives(l ipam.Lease) bool {
	b, bare := asBare(l)
	return bare && b.BootID == d.bootID && !b.dead()
}

// maxNonce bounds the name of a request.
const maxNonce = 64

// checkLease checks a request, and returns its ranges in their normal form.
func (d *Daemon) checkLease(req *control.LeaseRequest) ([][]ipam.Range, error) {
	if d.stopping() {
		return nil, control.Errorf(control.CodeUnavailable, "the daemon is stopping")
	}
	if err := req.Key().Validate(); err != nil {
		return nil, err
	}
	if err := d.checkWhere(req.BootID, req.NetnsPath); err != nil {
		return nil, err
	}
	if err := checkSticky(req.Sticky); err != nil {
		return nil, err
	}
	if err := checkIPs(req.IPs); err != nil {
		return nil, err
	}
	if len(req.Nonce) > maxNonce || strings.ContainsFunc(req.Nonce, unicode.IsControl) {
		return nil, control.Errorf(control.CodeInvalid, "nonce %.20q: want at most %d bytes without control characters", req.Nonce, maxNonce)
	}
	sets, err := ipam.Config{Sets: ipamSets(req.Sets)}.Normalize()
	if err != nil {
		return nil, control.Errorf(control.CodeInvalid, "sets: %v", err)
	}
	return sets.Sets, nil
}
