package daemon

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/ipam"
)

// pool is the addresses of one network name. The links of a network that leases
// its own and the bare leases of that name draw from the same one, so that no
// address is given out twice, whichever plugin asks.
type pool struct {
	name string
	ipam *ipam.Pool

	// using is held for reading while bare leases are given out of the present
	// ranges, which may be over I/O, and for writing while the ranges change or
	// the pool ends. It comes last in the order of locks but for Daemon.mu.
	using sync.RWMutex
	sets  [][]ipam.Range // normalized
	kept  bool           // on record by itself, and so outlives its network
	gone  bool           // nobody may use it any more
}

// poolRecord is a pool on disk that outlives its network, or never had one.
type poolRecord struct {
	Name string         `json:"name"`
	Sets [][]ipam.Range `json:"sets"` // normalized
}

func (d *Daemon) pool(name string) *pool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pools[name]
}

func (d *Daemon) poolList() []*pool {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*pool, 0, len(d.pools))
	for _, p := range d.pools {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *pool) int { return strings.Compare(a.name, b.name) })
	return list
}

// openPool returns the pool of a name, made or redefined as need be, with
// definitions locked or before anything is served. What it holds it goes on
// holding.
func (d *Daemon) openPool(ctx context.Context, name string, sets [][]ipam.Range) (*pool, error) {
	if p := d.pool(name); p != nil {
		return p, p.redefine(sets)
	}
	cfg := ipam.Config{Sets: sets, Quarantine: d.cfg.Quarantine}
	addrs, err := ipam.Open(ctx, cfg, ipam.NewBoltStore(d.store.db, ipamBucket(name)))
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", name, err)
	}
	p := &pool{name: name, ipam: addrs, sets: sets}
	d.mu.Lock()
	d.pools[name] = p
	d.mu.Unlock()
	return p, nil
}

func (p *pool) redefine(sets [][]ipam.Range) error {
	p.using.Lock()
	defer p.using.Unlock()
	if reflect.DeepEqual(p.sets, sets) {
		return nil
	}
	if err := p.ipam.Redefine(sets); err != nil {
		return fmt.Errorf("network %s: %w", p.name, err)
	}
	p.sets = sets
	return nil
}

// usage sums the sets, and says which ranges these are.
func (p *pool) usage() (u control.PoolUsage, ranges string) {
	p.using.RLock()
	defer p.using.RUnlock()
	return poolUsage(p.ipam), setsText(p.sets)
}

// holdPool returns the pool that gives bare leases out of sets, and keeps it
// as it is until release is called.
func (d *Daemon) holdPool(ctx context.Context, name string, sets [][]ipam.Range) (p *pool, release func(), err error) {
	for {
		if p := d.pool(name); p != nil {
			p.using.RLock()
			if p.kept && !p.gone && reflect.DeepEqual(p.sets, sets) {
				return p, p.using.RUnlock, nil
			}
			p.using.RUnlock()
		}
		if err := d.preparePool(ctx, name, sets); err != nil {
			return nil, nil, err
		}
	}
}

// preparePool makes a name's pool give out of sets, and puts it on record. A
// network of that name that has other ranges has the say, unless an attach
// implied it and it has no links.
func (d *Daemon) preparePool(ctx context.Context, name string, sets [][]ipam.Range) error {
	unlock, err := d.lockDefinitions(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if n := d.network(name); n != nil && n.pool != nil {
		mismatch := n.rec.agreesWithSets(sets)
		if mismatch != nil && n.rec.Source != control.SourceAttach {
			return mismatch
		}
		if err := d.keepPool(d.pool(name)); err != nil {
			return err
		}
		if mismatch == nil {
			return nil
		}
		if err := d.dropNetwork(ctx, n); control.CodeOf(err) == control.CodeNetworkInUse {
			return fmt.Errorf("%w (%w)", mismatch, err)
		} else if err != nil {
			return err
		}
	}
	p, err := d.openPool(ctx, name, sets)
	if err != nil {
		return err
	}
	return d.keepPool(p)
}

// keepPool puts a pool on record as it is, with definitions locked.
func (d *Daemon) keepPool(p *pool) error {
	p.using.Lock()
	defer p.using.Unlock()
	if err := d.store.putPool(&poolRecord{Name: p.name, Sets: p.sets}); err != nil {
		return err
	}
	p.kept = true
	return nil
}

// leavePool ends what a network has in its pool, and the pool unless it is kept.
// Definitions are locked, and the network is on record no more.
func (d *Daemon) leavePool(ctx context.Context, n *network) {
	if n.pool == nil {
		return
	}
	p := d.pool(n.rec.Name)
	p.using.Lock()
	defer p.using.Unlock()
	if !p.kept {
		d.forgetPool(p)
		return
	}
	inTime(ctx, func(ctx context.Context) {
		if _, err := p.ipam.Retain(ctx, func(l ipam.Lease) bool { _, bare := bareKey(l.Owner); return bare }); err != nil {
			d.log.Error("leases stay until the next start", "network", p.name, "err", err)
		}
	})
}

// forgetPool takes a pool out of the table, with its use locked.
func (d *Daemon) forgetPool(p *pool) {
	p.gone = true
	d.mu.Lock()
	delete(d.pools, p.name)
	d.mu.Unlock()
}

// dropPool ends a pool that no network uses and that has no lease, with
// definitions locked.
func (d *Daemon) dropPool(p *pool) error {
	p.using.Lock()
	defer p.using.Unlock()
	if leases := p.bare(); len(leases) > 0 {
		return control.Errorf(control.CodeNetworkInUse, "network %s has %d leases without a link, such as %s; DEL their containers first", p.name, len(leases), leases[0].key)
	}
	if err := d.store.deletePool(p.name); err != nil {
		return err
	}
	d.forgetPool(p)
	d.log.Info("pool removed", "network", p.name)
	return nil
}

// restorePools opens the pools on record, after those of the networks.
func (d *Daemon) restorePools(ctx context.Context, records []*poolRecord) error {
	for _, rec := range records {
		p := d.pool(rec.Name)
		if p == nil {
			var err error
			if p, err = d.openPool(ctx, rec.Name, rec.Sets); err != nil {
				return fmt.Errorf("restore: %w", err)
			}
		}
		p.kept = true
	}
	return nil
}
