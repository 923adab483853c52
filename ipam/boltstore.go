package ipam

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// BoltStore is a [Store] in one bucket of a bbolt database. A commit is
// durable when Commit returns: bbolt syncs the data before the page that makes
// it valid, so that a process killed or a machine stopped at any point leaves
// the state before or after it. Commits that arrive while another one is being
// synced share the next sync.
//
// The bucket has four buckets: "leases" (owner to lease, JSON), "freed"
// (address to time of freeing), "cursors" (number of the set to address) and
// "names" (name to memory, JSON).
type BoltStore struct {
	db     *bbolt.DB
	bucket []byte

	// mu guards what follows.
	mu      sync.Mutex
	queue   []*boltWrite // changes that wait for the next transaction
	leading bool         // some caller is committing, or has been told to
}

// boltWrite is one caller's change.
type boltWrite struct {
	change Change
	// turn tells the caller what became of its change. It has room for every
	// message sent.
	turn chan boltTurn
}

// boltTurn is either the order to commit the queue or the result.
type boltTurn struct {
	lead bool
	err  error
}

var (
	leasesKey  = []byte("leases")
	freedKey   = []byte("freed")
	cursorsKey = []byte("cursors")
	namesKey   = []byte("names")
)

// NewBoltStore returns the store in the named bucket, which the first commit
// creates. The database stays the caller's to close, after the last use of the
// store. Different buckets of one database are independent.
func NewBoltStore(db *bbolt.DB, bucket string) *BoltStore {
	return &BoltStore{db: db, bucket: []byte(bucket)}
}

// Load implements [Store]. Its errors name the bucket and key of every record
// that cannot be read.
func (s *BoltStore) Load(ctx context.Context) (State, error) {
	state := State{Freed: make(map[netip.Addr]time.Time), Names: make(map[string]Memory)}
	if err := ctx.Err(); err != nil {
		return state, err
	}
	err := s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(s.bucket)
		if b == nil {
			return nil
		}
		return errors.Join(
			s.each(b, leasesKey, state.addLease),
			s.each(b, freedKey, state.addFreed),
			s.each(b, cursorsKey, state.addCursor),
			s.each(b, namesKey, state.addName),
		)
	})
	return state, err
}

// each calls f for every record of a sub-bucket and joins the errors.
func (s *BoltStore) each(b *bbolt.Bucket, name []byte, f func(k, v []byte) error) error {
	sub := b.Bucket(name)
	if sub == nil {
		return nil
	}
	var faults []error
	_ = sub.ForEach(func(k, v []byte) error { // f's errors are collected
		if err := f(k, v); err != nil {
			faults = append(faults, fmt.Errorf("bucket %q, %s, key %q: %w", s.bucket, name, k, err))
		}
		return nil
	})
	return errors.Join(faults...)
}

func (s *State) addLease(k, v []byte) error {
	var l Lease
	if err := json.Unmarshal(v, &l); err != nil {
		return err
	}
	if string(l.Owner) != string(k) {
		return fmt.Errorf("record is of owner %q", l.Owner)
	}
	for _, a := range l.Addrs {
		if !a.IsValid() {
			return errors.New("record has an invalid address")
		}
	}
	s.Leases = append(s.Leases, l)
	return nil
}

func (s *State) addFreed(k, v []byte) error {
	a, ok := netip.AddrFromSlice(k)
	if !ok {
		return fmt.Errorf("key of %d bytes is no address", len(k))
	}
	var t time.Time
	if err := t.UnmarshalBinary(v); err != nil {
		return err
	}
	s.Freed[a] = t
	return nil
}

func (s *State) addCursor(k, v []byte) error {
	a, ok := netip.AddrFromSlice(v)
	if len(k) != 4 || !ok {
		return errors.New("record is no cursor")
	}
	// Keys are big-endian, so that they come in order from 0.
	if i := binary.BigEndian.Uint32(k); int64(i) != int64(len(s.Cursors)) {
		return fmt.Errorf("cursor of set %d follows that of set %d", i, len(s.Cursors)-1)
	}
	s.Cursors = append(s.Cursors, a)
	return nil
}

func (s *State) addName(k, v []byte) error {
	var m Memory
	if err := json.Unmarshal(v, &m); err != nil {
		return err
	}
	s.Names[string(k)] = m
	return nil
}

// Commit implements [Store]. ctx is looked at before the change is queued, not
// afterwards: a change under way is committed or refused, never left unknown.
func (s *BoltStore) Commit(ctx context.Context, c Change) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w := &boltWrite{change: c, turn: make(chan boltTurn, 2)}
	s.mu.Lock()
	s.queue = append(s.queue, w)
	if !s.leading {
		s.leading = true
		w.turn <- boltTurn{lead: true}
	}
	s.mu.Unlock()
	for {
		t := <-w.turn
		if !t.lead {
			return t.err
		}
		s.lead()
	}
}

// lead commits everything that is queued, in one transaction, and then hands
// the lead to the first caller that queued meanwhile, so that nobody works for
// others longer than one transaction.
func (s *BoltStore) lead() {
	s.mu.Lock()
	batch := s.queue
	s.queue = nil
	s.mu.Unlock()

	// Should bbolt panic, the waiting callers still get an answer.
	err := errors.New("the transaction was broken off")
	defer func() { s.handOver(batch, err) }()
	err = s.db.Update(func(tx *bbolt.Tx) error {
		for _, w := range batch {
			if err := s.apply(tx, w.change); err != nil {
				return err
			}
		}
		return nil
	})
}

// handOver tells the callers of batch their result and names the next leader.
func (s *BoltStore) handOver(batch []*boltWrite, err error) {
	if err != nil {
		err = fmt.Errorf("commit to bucket %q of %s: %w", s.bucket, s.db.Path(), err)
	}
	for _, w := range batch {
		w.turn <- boltTurn{err: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		s.leading = false
		return
	}
	s.queue[0].turn <- boltTurn{lead: true}
}

// boltTables are the buckets of one transaction.
type boltTables struct{ leases, freed, cursors, names *bbolt.Bucket }

func (s *BoltStore) tables(tx *bbolt.Tx) (t boltTables, err error) {
	b, err := tx.CreateBucketIfNotExists(s.bucket)
	if err != nil {
		return t, err
	}
	for key, into := range map[*[]byte]**bbolt.Bucket{
		&leasesKey: &t.leases, &freedKey: &t.freed, &cursorsKey: &t.cursors, &namesKey: &t.names,
	} {
		if *into, err = b.CreateBucketIfNotExists(*key); err != nil {
			return t, err
		}
	}
	return t, nil
}

// apply writes one change.
func (s *BoltStore) apply(tx *bbolt.Tx, c Change) error {
	t, err := s.tables(tx)
	if err != nil {
		return err
	}
	for _, a := range c.Forget {
		if err := t.freed.Delete(a.AsSlice()); err != nil {
			return err
		}
	}
	for _, name := range c.ForgetNames {
		if err := t.names.Delete([]byte(name)); err != nil {
			return err
		}
	}
	if err := t.delete(c.Delete, c.FreedAt); err != nil {
		return err
	}
	return t.put(c.Put)
}

func (t boltTables) delete(ended []Lease, at time.Time) error {
	stamp, err := at.MarshalBinary()
	if err != nil {
		return err
	}
	for _, l := range ended {
		if err := t.leases.Delete([]byte(l.Owner)); err != nil {
			return err
		}
		if l.Name != "" {
			record, err := json.Marshal(Memory{Addrs: l.hosts(), At: at})
			if err != nil {
				return err
			}
			if err := t.names.Put([]byte(l.Name), record); err != nil {
				return err
			}
			continue
		}
		for _, a := range l.Addrs {
			if err := t.freed.Put(a.Addr().AsSlice(), stamp); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t boltTables) put(begun []Lease) error {
	for _, l := range begun {
		record, err := json.Marshal(l)
		if err != nil {
			return err
		}
		if err := t.leases.Put([]byte(l.Owner), record); err != nil {
			return err
		}
		if l.Name != "" {
			if err := t.names.Delete([]byte(l.Name)); err != nil {
				return err
			}
		}
		for i, a := range l.Addrs {
			if err := t.freed.Delete(a.Addr().AsSlice()); err != nil {
				return err
			}
			key := binary.BigEndian.AppendUint32(nil, uint32(i))
			if err := t.cursors.Put(key, a.Addr().AsSlice()); err != nil {
				return err
			}
		}
	}
	return nil
}
