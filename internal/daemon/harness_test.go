package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childMain()
		return
	}
	nstest.Main(m)
}

// running is a daemon under test.
type running struct {
	*control.Client
	d    *Daemon
	stop func() error // ends it and returns Run's error; once
}

// testConfig is a daemon in a directory of the test's own. Its log goes to the
// test's.
func testConfig(t testing.TB) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{
		Socket: filepath.Join(dir, "run", "s.sock"), StateDir: filepath.Join(dir, "state"), Version: "test",
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

// failing has the daemon fail at the step that it is told, with "boom"; at none
// to begin with. Tests fail each step in turn and look for what is left.
func failing(cfg *Config) (at func(step string)) {
	var failing atomic.Value
	at = func(step string) { failing.Store(step) }
	at("")
	cfg.fault = func(step string) error {
		if step == failing.Load() {
			return errors.New("boom")
		}
		return nil
	}
	return at
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// start runs a daemon until the test's end.
func start(t testing.TB, cfg Config) *running {
	t.Helper()
	ready := make(chan struct{})
	cfg.Ready = func() { close(ready) }
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatalf("Run: %v", err)
	}
	var result error
	stopped := false
	r := &running{Client: control.Dial(cfg.Socket), d: d}
	r.stop = func() error {
		cancel()
		if !stopped {
			stopped, result = true, <-done
		}
		return result
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

// checkLeaks fails the test when goroutines outlive it. It is called first, so
// that it runs after the daemon's end.
func checkLeaks(t *testing.T) {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := goleak.Find(ignore); err != nil {
			t.Error(err)
		}
	})
}

func wantCode(t testing.TB, err error, want control.Code) {
	t.Helper()
	var e *control.Error
	if !errors.As(err, &e) || e.Code != want {
		t.Errorf("error %v (%s), want code %s", err, control.CodeOf(err), want)
	}
}

func sets(subnets ...string) [][]control.Range {
	var out [][]control.Range
	for _, s := range subnets {
		out = append(out, []control.Range{{Subnet: netip.MustParsePrefix(s)}})
	}
	return out
}

func request(container string) control.AttachRequest {
	return control.AttachRequest{
		Network: "net", Container: container, IfName: "eth0", Sets: sets("10.9.0.0/24", "fd09::/64"), Owner: "test",
	}
}

// tunFile makes a TUN in the test's own namespace, as the plugin does before
// it attaches.
func tunFile(t testing.TB) (*os.File, string) {
	t.Helper()
	nstest.Require(t)
	f, err := tunnel.Create(tunnel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	name, err := tunnel.Name(f)
	if err != nil {
		t.Fatal(err)
	}
	return f, name
}

// container is an attached namespace.
type container struct {
	ns    *netns.Handle
	key   control.LinkKey
	reply control.AttachReply
	att   *control.Attachment
}

// attach does what the plugin does for ADD: create, attach, move in, commit.
func attach(t testing.TB, c *control.Client, req control.AttachRequest, files ...*os.File) *container {
	t.Helper()
	box, err := tryAttach(t, c, req, files...)
	if err != nil {
		t.Fatal(err)
	}
	return box
}

func tryAttach(t testing.TB, c *control.Client, req control.AttachRequest, files ...*os.File) (*container, error) {
	t.Helper()
	ns := nstest.NewNS(t)
	tun, name := tunFile(t)
	req.Netns = ns.Inode()
	a, err := c.Attach(t.Context(), req, append([]*os.File{tun}, files...)...)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { a.Close() })
	iface := netns.Interface{Name: req.IfName, Addrs: a.Reply.Addrs, MTU: a.Reply.MTU}
	for _, g := range a.Reply.Gateways {
		dst := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if g.Is4() {
			dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		iface.Routes = append(iface.Routes, netns.Route{Dst: dst, Gateway: g})
	}
	if err := netns.MoveIn(ns, name, iface); err != nil {
		return nil, fmt.Errorf("move in: %w", err)
	}
	if err := tun.Close(); err != nil { // the daemon's copy alone holds it now
		return nil, err
	}
	if err := a.Commit(t.Context()); err != nil {
		return nil, err
	}
	return &container{ns: ns, key: req.Key(), reply: a.Reply, att: a}, nil
}

// world is all that an attach may change, for comparison.
type world struct {
	Links    []string
	Records  []string
	Leases   int
	Switch   int
	Names    int
	Networks []string
	Pubs     int
}

func (r *running) world(t testing.TB) world {
	t.Helper()
	var w world
	for _, l := range r.d.linkList() {
		w.Links = append(w.Links, l.key().String())
	}
	state, err := r.d.store.load()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range state.links {
		w.Records = append(w.Records, l.key().String())
	}
	for _, n := range state.networks {
		w.Networks = append(w.Networks, n.Name)
	}
	for _, n := range r.d.networkList() {
		if n.pool != nil {
			w.Leases += len(n.pool.Leases())
		}
		w.Switch += len(n.sw.Links())
		w.Pubs += len(n.sw.Publications())
		r.d.mu.Lock()
		w.Names += len(n.names)
		r.d.mu.Unlock()
	}
	return w
}

// openFDs counts this process's descriptors.
func openFDs(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

const patience = 5 * time.Second
