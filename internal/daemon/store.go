package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/ipam"
)

// stateVersion is the layout of the database. A database of a later layout is
// refused, not guessed at.
const stateVersion = 1

var (
	bucketMeta     = []byte("meta")
	bucketNetworks = []byte("networks")
	bucketLinks    = []byte("links")
	bucketPools    = []byte("pools") // made by the first pool: layouts of before have none
	keyVersion     = []byte("version")
)

// ipamBucket is where the leases of a network live.
func ipamBucket(network string) string { return "ipam/" + network }

// networkRecord is a network on disk and in memory; there it is not changed.
type networkRecord struct {
	Name         string                `json:"name"`
	Source       control.NetworkSource `json:"source"`
	Sets         [][]ipam.Range        `json:"sets,omitempty"` // normalized; empty: addresses are leased elsewhere
	Gateways     []netip.Prefix        `json:"gateways"`       // one per subnet
	MTU          int                   `json:"mtu"`
	Internal     bool                  `json:"internal,omitempty"`
	HostServices []control.HostService `json:"hostServices,omitempty"`
	Allow        []netip.Prefix        `json:"allow,omitempty"`
	Created      time.Time             `json:"created"`
	networkPolicy
}

// linkRecord is a link on disk: an intent while State is attaching, durable
// when it is attached.
type linkRecord struct {
	Network   string                `json:"network"`
	Container string                `json:"container"`
	IfName    string                `json:"ifname"`
	State     control.LinkState     `json:"state"`
	BootID    string                `json:"bootID"`
	Netns     uint64                `json:"netns,omitempty"`
	NetnsPath string                `json:"netnsPath,omitempty"`
	HostNetns uint64                `json:"hostNetns,omitempty"`
	Owner     string                `json:"owner,omitempty"`
	Addrs     []netip.Prefix        `json:"addrs,omitempty"`
	Gateways  []netip.Addr          `json:"gateways,omitempty"`
	MTU       int                   `json:"mtu"`
	Device    string                `json:"device,omitempty"` // empty: control.DeviceTUN
	MAC       string                `json:"mac,omitempty"`    // of a TAP
	Domain    string                `json:"domain,omitempty"` // of the names; empty: the switch's alone
	Ephemeral bool                  `json:"ephemeral,omitempty"`
	Created   time.Time             `json:"created"`
	Published []control.Publication `json:"published,omitempty"`
	amendable
}

// amendable is the part of a link's record that may change in its life. In
// memory link.now has it, and the record's own is not looked at.
type amendable struct {
	Hostname  string             `json:"hostname,omitempty"`
	Aliases   []string           `json:"aliases,omitempty"`
	Names     []string           `json:"names,omitempty"` // the DNS's: the hostname and the aliases as far as they are free, and the switch's own
	Bandwidth *control.Bandwidth `json:"bandwidth,omitempty"`
}

func (r *linkRecord) key() control.LinkKey {
	return control.LinkKey{Network: r.Network, Container: r.Container, IfName: r.IfName}
}

// hosts are the link's addresses without their subnets' lengths.
func (r *linkRecord) hosts() []netip.Addr {
	var out []netip.Addr
	for _, p := range r.Addrs {
		out = append(out, p.Addr())
	}
	return out
}

func linkOwner(key control.LinkKey) ipam.Owner { return ipam.Owner(key.String()) }

// store is the daemon's database: one bbolt file. Each change is durable when
// its method returns.
type store struct {
	db   *bbolt.DB
	lone sync.Mutex // held by a change that had no other before it
}

// batchDelay is how long a change that has to wait for another's sync anyway
// waits for more to share its own.
const batchDelay = time.Millisecond

// openStore opens the database at path or makes it. It is made under another
// name and renamed when it is complete and on disk, since bbolt cannot open a
// file whose initialisation was cut short.
func openStore(path string) (*store, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := makeStore(path); err != nil {
			return nil, fmt.Errorf("make state file %s: %w", path, err)
		}
	}
	// The daemon's own lock has been taken; a held lock here is a stray
	// process, not worth waiting for.
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoFreelistSync: true})
	if err != nil {
		return nil, fmt.Errorf("open state file %s: %w; if it is damaged, move it away: networks of the configuration file come back by themselves", path, err)
	}
	db.MaxBatchDelay = batchDelay
	if err := db.View(checkVersion); err != nil {
		return nil, errors.Join(fmt.Errorf("state file %s: %w", path, err), db.Close())
	}
	return &store{db: db}, nil
}

func makeStore(path string) (err error) {
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(temp, 0o600, &bbolt.Options{Timeout: time.Second, NoFreelistSync: true})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketNetworks, bucketLinks} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put(keyVersion, []byte(fmt.Sprint(stateVersion)))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func checkVersion(tx *bbolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	if meta == nil || tx.Bucket(bucketNetworks) == nil || tx.Bucket(bucketLinks) == nil {
		return errors.New("not a usernet state file: buckets are missing")
	}
	if v := string(meta.Get(keyVersion)); v != fmt.Sprint(stateVersion) {
		return fmt.Errorf("layout version %q, this program knows %d; run the release that wrote it, or move the file away", v, stateVersion)
	}
	return nil
}

func (s *store) close() error { return s.db.Close() }

// write makes a change durable: at once where no other is under way, which a
// lone attach and its commit would wait a millisecond for each, and otherwise
// together with the others that wait.
func (s *store) write(change func(*bbolt.Tx) error) error {
	if !s.lone.TryLock() {
		return s.db.Batch(change)
	}
	defer s.lone.Unlock()
	return s.db.Update(change)
}

// put writes one record.
func (s *store) put(bucket []byte, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write state of %s: %w", key, err)
	}
	if err := s.write(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(key), raw) }); err != nil {
		return fmt.Errorf("write state of %s: %w", key, err)
	}
	return nil
}

func (s *store) putLink(r *linkRecord) error { return s.put(bucketLinks, r.key().String(), r) }

func (s *store) deleteLink(key control.LinkKey) error {
	err := s.write(func(tx *bbolt.Tx) error { return tx.Bucket(bucketLinks).Delete([]byte(key.String())) })
	if err != nil {
		return fmt.Errorf("delete state of link %s: %w", key, err)
	}
	return nil
}

func (s *store) putNetwork(r *networkRecord) error { return s.put(bucketNetworks, r.Name, r) }

func (s *store) putPool(r *poolRecord) error {
	if err := s.db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucketIfNotExists(bucketPools); return err }); err != nil {
		return fmt.Errorf("write state of pool %s: %w", r.Name, err)
	}
	return s.put(bucketPools, r.Name, r)
}

// deletePool forgets a pool and all leases of it.
func (s *store) deletePool(name string) error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(bucketPools); b != nil {
			if err := b.Delete([]byte(name)); err != nil {
				return err
			}
		}
		return deleteLeases(tx, name)
	})
	if err != nil {
		return fmt.Errorf("delete state of pool %s: %w", name, err)
	}
	return nil
}

// deleteNetwork forgets a network, and all leases of it unless its pool is on
// record by itself.
func (s *store) deleteNetwork(name string) error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		if err := tx.Bucket(bucketNetworks).Delete([]byte(name)); err != nil {
			return err
		}
		if b := tx.Bucket(bucketPools); b != nil && b.Get([]byte(name)) != nil {
			return nil
		}
		return deleteLeases(tx, name)
	})
	if err != nil {
		return fmt.Errorf("delete state of network %s: %w", name, err)
	}
	return nil
}

func deleteLeases(tx *bbolt.Tx, network string) error {
	if tx.Bucket([]byte(ipamBucket(network))) == nil {
		return nil
	}
	return tx.DeleteBucket([]byte(ipamBucket(network)))
}

// stored is every record, besides the leases, which package ipam reads.
type stored struct {
	networks []*networkRecord
	links    []*linkRecord
	pools    []*poolRecord
}

// load returns every record. A record that cannot be read is an error that
// names it: half a state would hand out addresses that are in use.
func (s *store) load() (all stored, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		return errors.Join(
			readAll(tx, bucketNetworks, func(r *networkRecord) string { return r.Name }, &all.networks),
			readAll(tx, bucketLinks, func(r *linkRecord) string { return r.key().String() }, &all.links),
			readAll(tx, bucketPools, func(r *poolRecord) string { return r.Name }, &all.pools),
		)
	})
	if err != nil {
		err = fmt.Errorf("read state file %s: %w", s.db.Path(), err)
	}
	return all, err
}

func readAll[T any](tx *bbolt.Tx, bucket []byte, name func(*T) string, into *[]*T) error {
	b := tx.Bucket(bucket)
	if b == nil {
		return nil
	}
	var faults []error
	// The callback never fails: faults are collected, all at once.
	_ = b.ForEach(func(k, v []byte) error {
		r := new(T)
		switch err := json.Unmarshal(v, r); {
		case err != nil:
			faults = append(faults, fmt.Errorf("%s %q: %w", bucket, k, err))
		case name(r) != string(k):
			faults = append(faults, fmt.Errorf("%s %q: holds the record of %q", bucket, k, name(r)))
		default:
			*into = append(*into, r)
		}
		return nil
	})
	return errors.Join(faults...)
}
