package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
)

// pinned attaches a container whose TUN was made inside its namespace, which is
// kept by nothing but that and the path.
func pinned(t *testing.T, c *control.Client, ns *netns.Handle, name, path string) error {
	t.Helper()
	var tun *os.File
	nstest.In(t, ns, func() (err error) {
		tun, err = tunnel.Create(tunnel.Options{Name: "eth0"})
		return err
	})
	defer tun.Close()
	req := request(name)
	req.Netns, req.NetnsPath, req.Pinned = ns.Inode(), path, true
	a, err := c.Attach(t.Context(), req, tun)
	if err != nil {
		return err
	}
	defer a.Close()
	nstest.In(t, ns, func() error {
		return netns.Configure(netns.Interface{Name: "eth0", Addrs: a.Reply.Addrs, MTU: a.Reply.MTU})
	})
	return a.Commit(t.Context())
}

// TestNetnsPinnedLinksEndWithTheirPaths: when the runtime unmounts the namespace
// of a container, with or without the file below, its link ends and with it the
// namespace, which the device alone would have kept.
func TestNetnsPinnedLinksEndWithTheirPaths(t *testing.T) {
	checkLeaks(t)
	r := start(t, testConfig(t))
	ends := map[string]func(path string) error{
		"removed":   func(path string) error { kill(t, path); return nil },
		"unmounted": func(path string) error { return unix.Unmount(path, unix.MNT_DETACH) },
	}
	outside := nstest.NewNS(t)
	for name, end := range ends {
		stays, ns := nstest.NewNS(t), nstest.NewNS(t)
		path := nstest.Path(t, ns)
		nstest.Veth(t, ns, outside) // its end outside goes when ns dies
		for box, at := range map[string]*netns.Handle{name: ns, name + "-stays": stays} {
			place := path
			if at == stays {
				place = nstest.Path(t, stays)
			}
			if err := pinned(t, r.Client, at, box, place); err != nil {
				t.Fatal(err)
			}
		}
		ns.Close()
		if err := end(path); err != nil {
			t.Fatal(err)
		}
		nstest.WaitFor(t, 2*time.Second, func() bool { return r.d.link(key(name)) == nil })
		nstest.WaitFor(t, patience, func() bool { return veths(t, outside) == 0 })
		if r.d.link(key(name+"-stays")) == nil {
			t.Errorf("%s: the end of one container ended the other", name)
		}
	}
	if w := r.world(t); w.Leases != 2 || w.Switch != 2 || len(w.Records) != 2 {
		t.Errorf("left: %+v, want the two that stay", w)
	}
}

func key(container string) control.LinkKey {
	return control.LinkKey{Network: "net", Container: container, IfName: "eth0"}
}

func veths(t *testing.T, ns *netns.Handle) int {
	t.Helper()
	return strings.Count(nstest.Exec(t, ns, "ip", "-o", "link"), "veth")
}

// TestNetnsUnwatchedPinIsRefused: where the daemon would not see the namespace's
// end it does not take a descriptor that keeps it alive, and nothing is left.
func TestNetnsUnwatchedPinIsRefused(t *testing.T) {
	r := start(t, testConfig(t))
	before := r.world(t)
	ns, other := nstest.NewNS(t), nstest.NewNS(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mounted, err := os.Open(nstest.Path(t, ns))
	if err != nil {
		t.Fatal(err)
	}
	defer mounted.Close()
	process := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.File().Fd())
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(process, link); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"no path": "", "no mount": file, "another": nstest.Path(t, other), "process": process,
		"mount by way of a process": fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), mounted.Fd()), "gone": filepath.Join(file, "gone"), "by way of a process": link,
	} {
		err := pinned(t, r.Client, ns, "a", path)
		if control.CodeOf(err) != control.CodeUnwatched {
			t.Errorf("%s: %v, want %s", name, err, control.CodeUnwatched)
		}
		nstest.WaitFor(t, patience, func() bool { return !slices.Contains(interfaceNames(t, ns), "eth0") })
	}
	if w := r.world(t); len(w.Links) != 0 || w.Leases != before.Leases || len(w.Records) != 0 {
		t.Errorf("left: %+v", w)
	}
}

func interfaceNames(t *testing.T, ns *netns.Handle) []string {
	t.Helper()
	return strings.Fields(strings.NewReplacer(":", " ", "@", " ").Replace(nstest.Exec(t, ns, "ip", "-o", "link")))
}

// TestNetnsFollowMounts: no change is missed, and the end of the file ends it.
func TestNetnsFollowMounts(t *testing.T) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	told, done := make(chan struct{}, 1), make(chan error)
	go func() {
		done <- followMounts(f, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	}()
	await := func() {
		t.Helper()
		select {
		case <-told:
		case <-time.After(patience):
			t.Fatal("not told")
		}
	}
	await()
	ns := nstest.NewNS(t)
	for range 100 {
		path := nstest.Path(t, ns)
		await()
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		await()
	}
	f.Close()
	if err := <-done; err == nil {
		t.Error("it ended without an error")
	}
}
