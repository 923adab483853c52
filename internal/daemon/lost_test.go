package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/ipam"
)

// TestNetnsFateOf: what a path tells of a namespace.
func TestNetnsFateOf(t *testing.T) {
	ns, other := nstest.NewNS(t), nstest.NewNS(t)
	path := nstest.Path(t, ns)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		path  string
		inode uint64
		want  fate
	}{
		"there":             {path, ns.Inode(), fateAlive},
		"another's by now":  {path, other.Inode(), fateDead},
		"no path":           {"", ns.Inode(), fateUnknown},
		"no inode":          {path, 0, fateUnknown},
		"gone":              {filepath.Join(filepath.Dir(file), "gone"), ns.Inode(), fateDead},
		"process gone":      {"/proc/4194305/ns/net", ns.Inode(), fateDead}, // above the largest PID_MAX_LIMIT
		"nothing mounted":   {file, ns.Inode(), fateUnmounted},
		"below a file":      {filepath.Join(file, "net"), ns.Inode(), fateDead},
		"own, by a process": {"/proc/self/ns/net", ns.Inode(), fateDead},
	} {
		if got := fateOf(tt.path, tt.inode); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// lose attaches containers by the paths of their namespaces and restarts the
// daemon. end is called before the new one starts.
func lose(t *testing.T, cfg Config, end func(path map[string]string), names ...string) (*running, map[string]*container, map[string]string) {
	t.Helper()
	r := start(t, cfg)
	boxes, paths := map[string]*container{}, map[string]string{}
	for _, name := range names {
		boxes[name], paths[name] = attachByPath(t, r.Client, name)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	end(paths)
	return start(t, cfg), boxes, paths
}

func attachByPath(t *testing.T, c *control.Client, name string) (*container, string) {
	t.Helper()
	ns := nstest.NewNS(t)
	path := nstest.Path(t, ns)
	tun, device := tunFile(t)
	req := request(name)
	req.Netns, req.NetnsPath, req.BootID = ns.Inode(), path, bootID(t)
	a, err := c.Attach(t.Context(), req, tun)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	if err := netns.MoveIn(ns, device, netns.Interface{Name: "eth0", Addrs: a.Reply.Addrs, MTU: a.Reply.MTU}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tun.Close(), a.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	return &container{ns: ns, key: req.Key(), reply: a.Reply, att: a}, path
}

func bootID(t *testing.T) string {
	t.Helper()
	d, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	return d.bootID
}

// kill ends a container without a DEL.
func kill(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path)); err != nil {
		t.Error(err)
	}
}

// TestNetnsLostLinksEndWithTheirNamespaces: those that died while no daemon ran
// are reclaimed at the start, those that die later as they do; the others keep
// their addresses.
func TestNetnsLostLinksEndWithTheirNamespaces(t *testing.T) {
	cfg := testConfig(t)
	r, _, paths := lose(t, cfg, func(path map[string]string) { kill(t, path["a"]) }, "a", "b", "c")
	if w := r.world(t); !slices.Equal(w.Links, []string{"net/b/eth0", "net/c/eth0"}) || !slices.Equal(w.Records, w.Links) || w.Leases != 2 {
		t.Fatalf("after the start: %+v, want b and c", w)
	}
	for _, l := range r.d.network("net").pool.Leases() {
		if l.BootID != r.d.bootID || l.Netns == 0 {
			t.Errorf("lease %+v does not tell where it is", l)
		}
	}
	kill(t, paths["b"])
	nstest.WaitFor(t, patience, func() bool { return len(r.world(t).Links) == 1 })
	if w := r.world(t); !slices.Equal(w.Links, []string{"net/c/eth0"}) || !slices.Equal(w.Records, w.Links) || w.Leases != 1 {
		t.Errorf("after the death: %+v, want c", w)
	}
}

// TestNetnsCauseOfALinksEnd: the log tells a container that ended from an
// interface that was deleted.
func TestNetnsCauseOfALinksEnd(t *testing.T) {
	cfg := testConfig(t)
	var log lockedBuffer
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	r := start(t, cfg)
	deleted, _ := attachByPath(t, r.Client, "deleted")
	ended, endedPath := attachByPath(t, r.Client, "ended")
	kill(t, endedPath)
	unknown := attach(t, r.Client, request("unknown"))
	for box, want := range map[*container]string{
		deleted: "its interface was deleted", ended: "its namespace ended", unknown: "its interface is gone, deleted or with its namespace",
	} {
		nstest.In(t, box.ns, func() error { return netns.DeleteLink("eth0") })
		nstest.WaitFor(t, patience, func() bool {
			return strings.Contains(log.String(), fmt.Sprintf("msg=\"link removed\" link=%s reason=%q", box.key, want))
		})
	}
}

// lockedBuffer is a buffer that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestNetnsAttachOverLostUndoesEveryStep: an attach that fails leaves the lost
// link as it was, its addresses included.
func TestNetnsAttachOverLostUndoesEveryStep(t *testing.T) {
	cfg := testConfig(t)
	failAt := failing(&cfg)
	r, _, _ := lose(t, cfg, func(map[string]string) {}, "a")
	before, leases := r.world(t), r.d.network("net").pool.Leases()
	for _, step := range attachSteps {
		failAt(step)
		if _, err := tryAttach(t, r.Client, request("a")); err == nil {
			t.Fatalf("%s: attached", step)
		}
		if d := cmp.Diff(before, r.world(t)); d != "" {
			t.Errorf("%s: %s", step, d)
		}
		if got := r.d.network("net").pool.Leases(); !slices.Equal(got[0].Addrs, leases[0].Addrs) {
			t.Errorf("%s: lease %v, was %v", step, got, leases)
		}
	}
	failAt("")
	// Another address than it has, then what it has.
	req := request("a")
	req.IPs = []netip.Addr{netip.MustParseAddr("10.9.0.99")}
	if box := attach(t, r.Client, req); box.reply.Addrs[0].Addr() != req.IPs[0] {
		t.Errorf("wanted %v, got %v", req.IPs, box.reply.Addrs)
	}
	if w := r.world(t); w.Leases != 1 || len(w.Links) != 1 {
		t.Errorf("%+v", w)
	}
}

// brokenLeases is a store of leases that refuses while broken.
type brokenLeases struct {
	ipam.Store
	broken atomic.Bool
}

func (b *brokenLeases) Commit(ctx context.Context, c ipam.Change) error {
	if b.broken.Load() {
		return errors.New("disk full")
	}
	return b.Store.Commit(ctx, c)
}

// breakable makes the daemon's network lease from a store that can be broken.
func breakable(t *testing.T, r *running) *brokenLeases {
	t.Helper()
	box := attach(t, r.Client, request("first")) // makes the network
	if _, err := r.Detach(t.Context(), box.key); err != nil {
		t.Fatal(err)
	}
	n := r.d.network("net")
	store := &brokenLeases{Store: ipam.NewBoltStore(r.d.store.db, ipamBucket("net"))}
	addrs, err := ipam.Open(t.Context(), ipam.Config{Sets: n.rec.Sets}, store)
	if err != nil {
		t.Fatal(err)
	}
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	r.d.pools["net"] = &pool{name: "net", ipam: addrs, sets: n.rec.Sets}
	n.pool = addrs // nothing else is under way
	return store
}

// TestNetnsLinkStaysUntilItsLeaseIsReleased: a DEL that cannot release the
// address fails, and the next one releases it.
func TestNetnsLinkStaysUntilItsLeaseIsReleased(t *testing.T) {
	r := start(t, testConfig(t))
	store := breakable(t, r)
	a := attach(t, r.Client, request("a"))
	store.broken.Store(true)
	if _, err := r.Detach(t.Context(), a.key); err == nil {
		t.Fatal("DEL succeeded without releasing the address")
	}
	if l, err := r.Link(t.Context(), a.key); err != nil || l.State != control.LinkLost {
		t.Errorf("link %+v, %v", l, err)
	}
	store.broken.Store(false)
	if removed, err := r.Detach(t.Context(), a.key); !removed || err != nil {
		t.Errorf("second DEL: %v, %v", removed, err)
	}
	if w := r.world(t); w.Leases+len(w.Links)+len(w.Records)+w.Switch != 0 {
		t.Errorf("left: %+v", w)
	}
}

// TestNetnsGCGoesOnPastErrors: every link is tried, every failure is told, and
// the next GC has what is left.
func TestNetnsGCGoesOnPastErrors(t *testing.T) {
	r := start(t, testConfig(t))
	store := breakable(t, r)
	a, b := attach(t, r.Client, request("a")), attach(t, r.Client, request("b"))
	store.broken.Store(true)
	_, err := r.GC(t.Context(), "net", control.GCRequest{Owner: "test"})
	if err == nil || !strings.Contains(err.Error(), a.key.String()) || !strings.Contains(err.Error(), b.key.String()) {
		t.Errorf("GC on a broken store: %v, want both links named", err)
	}
	store.broken.Store(false)
	reply, err := r.GC(t.Context(), "net", control.GCRequest{Owner: "test"})
	if err != nil || len(reply.Removed) != 2 {
		t.Errorf("second GC: %+v, %v", reply, err)
	}
	if w := r.world(t); w.Leases+len(w.Links)+len(w.Records)+w.Switch != 0 {
		t.Errorf("left: %+v", w)
	}
}

// TestNetnsStickyAddresses: the same name has the same addresses, interface by
// interface, over a restart of the daemon.
func TestNetnsStickyAddresses(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	sticky := func(id, ifName, name string) control.AttachRequest {
		req := request(id)
		req.IfName, req.Sticky = ifName, name
		return req
	}
	first := attach(t, r.Client, sticky("c1", "eth0", "default/web"))
	second := attach(t, r.Client, sticky("c1", "net1", "default/web"))
	for _, box := range []*container{first, second} {
		if _, err := r.Detach(t.Context(), box.key); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	for ifName, want := range map[string]*container{"net1": second, "eth0": first} {
		if box := attach(t, r.Client, sticky("c2", ifName, "default/web")); !slices.Equal(box.reply.Addrs, want.reply.Addrs) {
			t.Errorf("%s: got %v, had %v", ifName, box.reply.Addrs, want.reply.Addrs)
		}
	}
	tun, _ := tunFile(t)
	_, err := r.Attach(t.Context(), sticky("c3", "eth0", "a\nb"), tun)
	wantCode(t, err, control.CodeInvalid)
}
