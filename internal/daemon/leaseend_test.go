package daemon

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/ipam"
)

// TestNetnsLeasesEndWithTheirNamespaces: without DEL, while the daemon runs and
// while it does not; a lease whose namespace it cannot see stays.
func TestNetnsLeasesEndWithTheirNamespaces(t *testing.T) {
	checkLeaks(t)
	cfg := testConfig(t)
	r := start(t, cfg)
	paths := map[string]string{}
	for _, name := range []string{"a", "b", "c"} {
		ns := nstest.NewNS(t)
		paths[name] = nstest.Path(t, ns)
		req := leaseRequest(name)
		req.Netns, req.NetnsPath = ns.Inode(), paths[name]
		acquire(t, r.Client, req)
	}
	unseen := leaseRequest("unseen")
	unseen.Netns, unseen.NetnsPath = 7, filepath.Join(t.TempDir(), "gone") // a path of another mount namespace
	acquire(t, r.Client, unseen)
	kill(t, paths["a"])
	nstest.WaitFor(t, 5*time.Second, func() bool { return len(leaseIDs(t, r.Client, "")) == 3 })
	if got := leaseIDs(t, r.Client, ""); slices.Contains(got, "net/a/eth0") {
		t.Errorf("a is there still: %v", got)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	kill(t, paths["b"])
	r = start(t, cfg)
	if got := leaseIDs(t, r.Client, ""); !slices.Equal(got, []string{"net/c/eth0", "net/unseen/eth0"}) {
		t.Errorf("after the start %v", got)
	}
	kill(t, paths["c"])
	nstest.WaitFor(t, 5*time.Second, func() bool { return len(leaseIDs(t, r.Client, "")) == 1 })
}

// TestLeasesOfAnotherBoot are gone.
func TestLeasesOfAnotherBoot(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	acquire(t, r.Client, leaseRequest("a"))
	l := r.d.pool("net").ipam.Leases()[0]
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s, err := openStore(filepath.Join(cfg.StateDir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	l.BootID = "an earlier one"
	err = ipam.NewBoltStore(s.db, ipamBucket("net")).Commit(t.Context(), ipam.Change{Put: []ipam.Lease{l}})
	if err := errors.Join(err, s.close()); err != nil {
		t.Fatal(err)
	}
	if r = start(t, cfg); len(leaseIDs(t, r.Client, "")) != 0 {
		t.Errorf("left: %v", leaseIDs(t, r.Client, ""))
	}
}

// TestLeaseGC: by network and owner, like links.
func TestLeaseGC(t *testing.T) {
	r := start(t, testConfig(t))
	for _, name := range []string{"a", "b"} {
		acquire(t, r.Client, leaseRequest(name))
	}
	foreign, elsewhere := leaseRequest("foreign"), leaseRequest("elsewhere")
	foreign.Owner, elsewhere.Network = "other", "net2"
	acquire(t, r.Client, foreign)
	acquire(t, r.Client, elsewhere)
	reply, err := r.GC(t.Context(), "net", control.GCRequest{Owner: "test", Valid: []control.LinkName{{Container: "a", IfName: "eth0"}}})
	if err != nil || len(reply.Removed) != 0 || !slices.Equal(reply.Released, []string{"net/b/eth0"}) {
		t.Errorf("%+v, %v", reply, err)
	}
	if got := leaseIDs(t, r.Client, ""); !slices.Equal(got, []string{"net/a/eth0", "net/foreign/eth0", "net2/elsewhere/eth0"}) {
		t.Errorf("left: %v", got)
	}
}

// TestLeaseTombstones: leases that were deleted while no daemon ran, but not
// those made since.
func TestLeaseTombstones(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	acquire(t, r.Client, leaseRequest("gone"))
	acquire(t, r.Client, leaseRequest("newer"))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]time.Time{"gone": time.Now(), "newer": time.Now().Add(-time.Hour), "nobody": time.Now()} {
		stone := control.Tombstone{Link: control.LinkKey{Network: "net", Container: name, IfName: "eth0"}, Deleted: at}
		if err := stone.Write(cfg.Socket); err != nil {
			t.Fatal(err)
		}
	}
	r = start(t, cfg)
	if got := leaseIDs(t, r.Client, ""); !slices.Equal(got, []string{"net/newer/eth0"}) {
		t.Errorf("left: %v", got)
	}
	if left, err := control.Tombstones(cfg.Socket); err != nil || len(left) != 0 {
		t.Errorf("tombstones: %v, %v", left, err)
	}
}

// TestLeaseKill: whatever was acknowledged is there after SIGKILL, and nothing
// twice.
func TestLeaseKill(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, dir)
	var mu sync.Mutex
	told := map[string][]string{}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := range 200 {
				req := leaseRequest(fmt.Sprintf("w%d-%d", w, n))
				l, err := c.Acquire(t.Context(), req)
				if err != nil {
					return
				}
				mu.Lock()
				told[l.ID] = prefixTexts(l.Addrs)
				mu.Unlock()
			}
		})
	}
	nstest.WaitFor(t, patience, func() bool { mu.Lock(); defer mu.Unlock(); return len(told) > 20 })
	c.kill()
	wg.Wait()
	c = startChild(t, dir)
	list, err := c.Leases(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string][]string{}
	for _, l := range list {
		have[l.ID] = prefixTexts(l.Addrs)
	}
	for id, addrs := range told {
		if !slices.Equal(have[id], addrs) {
			t.Errorf("%s was told %v and has %v", id, addrs, have[id])
		}
	}
	wantDistinct(t, c.Client, len(list))
}
