package plugin

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// TestNetnsEndWithoutDEL: however the runtime names the container's namespace,
// and whatever the daemon sees of that, the link goes with the namespace, which
// nothing of usernet keeps alive.
func TestNetnsEndWithoutDEL(t *testing.T) {
	unmount := func(path string) error {
		return errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path))
	}
	for _, test := range []struct {
		name   string
		daemon []string // what starts the daemon's command line
		place  func(t *testing.T, b *bed) (path string, end func() error)
		pinned bool
	}{
		{"mount", nil, func(_ *testing.T, b *bed) (string, func() error) {
			return b.ctrPath, func() error { return unmount(b.ctrPath) }
		}, true},
		{"process", nil, func(t *testing.T, b *bed) (string, func() error) {
			sleep := exec.Command("sleep", "60")
			nstest.Start(t, b.ctr, sleep)
			return fmt.Sprintf("/proc/%d/ns/net", sleep.Process.Pid), func() error {
				err := errors.Join(sleep.Process.Kill(), unmount(b.ctrPath))
				_ = sleep.Wait() // killed
				return err
			}
		}, false},
		{"mount that the daemon does not see", []string{"unshare", "--mount", "--propagation", "slave", "sh", "-c", `mount -t tmpfs hidden "$0" && exec "$@"`, "CTR"},
			func(_ *testing.T, b *bed) (string, func() error) {
				return b.ctrPath, func() error { return unmount(b.ctrPath) }
			}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBed(t)
			for i, arg := range test.daemon {
				if arg == "CTR" {
					test.daemon[i] = filepath.Dir(b.ctrPath)
				}
			}
			b.startDaemon(test.daemon...)
			outside := nstest.NewNS(t)
			nstest.Veth(t, b.ctr, outside) // its end outside goes when the container's namespace dies
			path, end := test.place(t, b)
			appears := linkEvents(t, b.host)
			result, err := b.run(cmdAdd, b.config(nil), nil, "CNI_NETNS="+path)
			if err != nil {
				t.Fatal(err)
			}
			if got := appears(); got == test.pinned {
				t.Errorf("the device appeared outside of the container: %v, want %v", got, !test.pinned)
			}
			check := b.config(map[string]any{"prevResult": result})
			if _, err := b.run(cmdCheck, check, nil, "CNI_NETNS="+path); err != nil {
				t.Error(err)
			}
			b.ctr.Close()
			if err := end(); err != nil {
				t.Fatal(err)
			}
			nstest.WaitFor(t, 2*time.Second, func() bool {
				links, err := b.client.Links(t.Context(), "")
				return err == nil && len(links) == 0
			})
			nstest.WaitFor(t, 10*time.Second, func() bool {
				return nstest.Exec(t, outside, "ip", "-o", "link", "show", "type", "veth") == ""
			})
		})
	}
}

// linkEvents listens in a namespace and returns a function that reports whether
// an interface has come or gone there since.
func linkEvents(t *testing.T, ns *netns.Handle) func() bool {
	t.Helper()
	events, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	t.Cleanup(func() { close(done) })
	nstest.In(t, ns, func() error { return netlink.LinkSubscribe(events, done) })
	return func() bool {
		own, _ := nstest.Veth(t, ns, nstest.NewNS(t)) // behind which none of the ADD's comes
		first := <-events
		return first.Link.Attrs().Name != own
	}
}
