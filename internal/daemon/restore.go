package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/ipam"
)

// restore makes the state on disk and the world agree before anything is
// served. The descriptors of all recorded links went with the process that held
// them, so no link survives; what is left of them is:
//
//   - an intent: the attach never ended, and its caller saw it fail. Forgotten,
//     as is a link without its lease: a removal that never ended.
//   - a link of another boot, or of a namespace that is no more: its container
//     is gone. Forgotten.
//   - any other link: its container may live, without a network. It is listed as
//     lost and keeps its addresses until DEL, GC, the end of its namespace, or a
//     new ADD, which gets the same.
//
// Leases of all others are released; so are bare leases of another boot or of a
// namespace that is no more. Quarantine keeps their addresses from being given out
// again at once.
func (d *Daemon) restore(ctx context.Context) error {
	state, err := d.store.load()
	if err != nil {
		return err
	}
	networks, err := d.applyFile(state.networks)
	if err != nil {
		return err
	}
	for _, rec := range networks {
		n, err := d.openNetwork(ctx, rec)
		if err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		d.mu.Lock()
		d.networks[rec.Name] = n
		d.mu.Unlock()
	}
	d.refreshRefused()
	if err := d.restorePools(ctx, state.pools); err != nil {
		return err
	}
	lost := map[ipam.Owner]bool{}
	var ended []control.LinkKey
	for _, rec := range state.links {
		if !d.survives(rec) {
			ended = append(ended, rec.key())
			continue
		}
		lost[linkOwner(rec.key())] = true
		n := d.networks[rec.Network]
		n.links[rec.key()] = &link{d: d, net: n, rec: rec, now: rec.amendable, state: control.LinkLost}
	}
	if len(lost) > 0 {
		d.log.Warn("links of an earlier daemon are lost: their containers have no network until they are attached anew", "count", len(lost))
	}
	return d.forgetEnded(ctx, ended, lost)
}

// forgetEnded releases the leases of all but the lost links and the interfaces
// that may live, and then deletes the records of the links that have ended, in the
// order of link.remove.
func (d *Daemon) forgetEnded(ctx context.Context, ended []control.LinkKey, lost map[ipam.Owner]bool) error {
	for _, p := range d.poolList() {
		freed, err := p.ipam.Retain(ctx, func(l ipam.Lease) bool { return lost[l.Owner] || d.leaseSurvives(l) })
		if err != nil {
			return fmt.Errorf("restore: release leases of network %s: %w", p.name, err)
		}
		if len(freed) > 0 {
			d.log.Info("leases of an earlier daemon released", "network", p.name, "count", len(freed))
		}
	}
	var errs []error
	for _, key := range ended {
		errs = append(errs, d.store.deleteLink(key))
	}
	return errors.Join(errs...)
}

// replayTombstones forgets the links and bare leases that were deleted while no
// daemon ran. A tombstone that cannot be read must not keep the daemon from
// serving: its link stays listed as lost, its lease as held.
func (d *Daemon) replayTombstones(ctx context.Context) {
	stones, err := control.Tombstones(d.cfg.Socket)
	if err != nil {
		d.log.Warn("some deletions of links are unreadable", "err", err)
	}
	for _, stone := range stones {
		if l := d.link(stone.Link); l != nil && !l.rec.Created.After(stone.Deleted) {
			if err := l.remove(ctx, "deleted while no daemon ran"); err != nil {
				d.log.Warn("link not removed whole", "link", stone.Link.String(), "err", err)
				continue // the next start tries again
			}
		}
		if b, held := d.bareLease(stone.Link); held && !b.Since.After(stone.Deleted) {
			if _, err := d.releaseIf(ctx, b, "deleted while no daemon ran"); err != nil {
				d.log.Warn("lease not released", "lease", stone.Link.String(), "err", err)
				continue // as above
			}
		}
		if err := stone.Remove(); err != nil {
			d.log.Warn("tombstone stays", "err", err)
		}
	}
}

// applyFile brings the recorded networks in line with the configuration file,
// which alone decides about the networks that it defined.
func (d *Daemon) applyFile(recorded []*networkRecord) ([]*networkRecord, error) {
	wanted := map[string]*networkRecord{}
	var out []*networkRecord
	for _, nc := range d.cfg.File.Networks {
		req, err := nc.request()
		if err != nil {
			return nil, fmt.Errorf("configuration file: network %q: %w", nc.Name, err)
		}
		rec, err := newRecord(req, control.SourceConfig, nil)
		if err != nil {
			return nil, fmt.Errorf("configuration file: %w", err)
		}
		wanted[rec.Name] = rec
		out = append(out, rec)
	}
	for _, rec := range recorded {
		want := wanted[rec.Name]
		switch {
		case want != nil && want.sameDefinition(rec):
			*want = *rec // keeps the time of creation
			delete(wanted, rec.Name)
		case want == nil && rec.Source != control.SourceConfig:
			out = append(out, rec)
		default:
			if err := d.store.deleteNetwork(rec.Name); err != nil {
				return nil, err
			}
		}
	}
	for _, rec := range wanted {
		if err := d.store.putNetwork(rec); err != nil {
			return nil, err
		}
	}
	return out, overlapping(out)
}

// overlapping names two networks that share addresses.
func overlapping(recs []*networkRecord) error {
	type owned struct {
		prefix netip.Prefix
		name   string
	}
	var seen []owned
	for _, r := range recs {
		for _, p := range r.prefixes() {
			for _, o := range seen {
				if o.prefix.Overlaps(p) {
					return control.Errorf(control.CodeNetworkExists, "networks %s (%v) and %s (%v) overlap; change one in the configuration file, or remove the other with the configuration file set aside", o.name, o.prefix, r.Name, p)
				}
			}
			seen = append(seen, owned{p, r.Name})
		}
	}
	return nil
}
