package plugin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/internal/redirect"
)

// buildUsernet builds the real daemon, once, below the test binary's directory,
// which go test removes.
var buildUsernet = sync.OnceValues(func() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), "daemon", "usernet")
	cmd := exec.Command("go", "build", "-o", path, "github.com/usernet/usernet/cmd/usernet")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the daemon: %w\n%s", err, out)
	}
	return path, nil
})

// bed is a host namespace with a daemon in it, and a container's namespace.
type bed struct {
	t         *testing.T
	host, ctr *netns.Handle
	ctrPath   string
	socket    string
	client    *control.Client
	daemon    *exec.Cmd // of startDaemon
	runtime   string    // that runs the plugin; "test" if empty
	caller    int       // its process; 0: unknown
}

// newBed makes namespaces without a daemon.
func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{t: t, host: nstest.NewNS(t), ctr: nstest.NewNS(t)}
	b.ctrPath = nstest.Path(t, b.ctr)
	b.socket = filepath.Join(t.TempDir(), "run", "usernet.sock")
	b.client = control.Dial(b.socket)
	return b
}

// startDaemon starts the real daemon in the host namespace, by the command
// before if there is one; kill kills it.
func (b *bed) startDaemon(before ...string) (kill func()) {
	b.t.Helper()
	binary, err := buildUsernet()
	if err != nil {
		b.t.Fatal(err)
	}
	var log bytes.Buffer
	argv := append(before, binary, "daemon", "--socket", b.socket, "--state-dir", filepath.Join(filepath.Dir(filepath.Dir(b.socket)), "state"))
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &log, &log
	nstest.Start(b.t, b.host, cmd)
	b.daemon = cmd
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("the daemon said:\n%s", log.String())
		}
	})
	nstest.WaitFor(b.t, 10*time.Second, func() bool {
		_, err := b.client.Version(context.Background())
		return err == nil
	})
	return func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// config returns a configuration for the bed's daemon; more replaces keys.
func (b *bed) config(more map[string]any) string {
	keys := map[string]any{
		"cniVersion": "1.1.0", "name": "web", "type": "usernet", "socket": b.socket, "autostart": false,
		"ipam": map[string]any{"type": "usernet", "ranges": []any{
			[]any{map[string]any{"subnet": "10.88.0.0/24"}}, []any{map[string]any{"subnet": "fd88::/64"}}}},
	}
	maps.Copy(keys, more)
	text, err := json.Marshal(keys)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// run runs a verb as the runtime would, in the host namespace. hook is the
// invocation's afterStep.
func (b *bed) run(verb, config string, hook func(string) error, env ...string) (*types100.Result, error) {
	b.t.Helper()
	return b.runAs(nameNative, verb, config, hook, env...)
}

// calledBy is a runtime of a test's choice.
func calledBy(name string, pid int) func() (int, string) {
	return func() (int, string) { return pid, name }
}

// oneByOne is a hook for steps that run beside each other.
func oneByOne(hook func(string) error) func(string) error {
	if hook == nil {
		return nil
	}
	var mu sync.Mutex
	return func(step string) error {
		mu.Lock()
		defer mu.Unlock()
		return hook(step)
	}
}

// runAs is run under one of the executable's names.
func (b *bed) runAs(name, verb, config string, hook func(string) error, env ...string) (*types100.Result, error) {
	b.t.Helper()
	var stdout, stderr bytes.Buffer
	inv := &invocation{Process: Process{
		Name:  "/usr/libexec/cni/" + name,
		Env:   append([]string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=" + b.ctrPath}, env...),
		Stdin: strings.NewReader(config), Stdout: &stdout, Stderr: &stderr, Caller: calledBy(cmp.Or(b.runtime, "test"), b.caller),
	}, version: newestVersion, afterStep: oneByOne(hook)}
	err := b.host.Do(func() error { return inv.run(context.Background()) })
	if undone := stderr.String(); strings.Contains(undone, "undo:") {
		b.t.Errorf("%s: %s", verb, undone)
	}
	if err != nil || stdout.Len() == 0 {
		return nil, err
	}
	result, err := parseResult(stdout.Bytes(), inv.version)
	if err != nil {
		b.t.Fatalf("%s printed %s: %v", verb, stdout.String(), err)
	}
	return result, nil
}

// world describes everything that an ADD may change.
func (b *bed) world(ipamDir string) []string {
	b.t.Helper()
	var world []string
	for name, ns := range map[string]*netns.Handle{"host": b.host, "container": b.ctr} {
		nstest.In(b.t, ns, func() error {
			links, err := netlink.LinkList() //nolint:forbidigo // nothing else changes this namespace
			if err != nil {
				return err
			}
			for _, l := range links {
				world = append(world, fmt.Sprintf("%s: link %s alias %q", name, l.Attrs().Name, l.Attrs().Alias))
			}
			for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				routes, err := netlink.RouteList(nil, family) //nolint:forbidigo // nothing else changes this namespace
				if err != nil {
					return err
				}
				for _, r := range routes {
					world = append(world, fmt.Sprintf("%s: route %v", name, r))
				}
			}
			for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
				text, err := os.ReadFile("/proc/thread-self/net/" + table)
				if err != nil {
					return err
				}
				for line := range strings.Lines(string(text)) {
					if col := strings.Fields(line); len(col) > 3 && col[0] != "sl" {
						world = append(world, fmt.Sprintf("%s: %s socket %s state %s", name, table, col[1], col[3]))
					}
				}
			}
			return nil
		})
	}
	for _, table := range b.redirects() {
		world = append(world, fmt.Sprintf("host: redirects of %s: %v", table.Owner, table.Rules))
	}
	nstest.In(b.t, b.ctr, func() error {
		value, err := netns.Sysctl("ipv4/tcp_fin_timeout")
		world = append(world, "container: net.ipv4.tcp_fin_timeout is "+value)
		return err
	})
	links, err := b.client.Links(context.Background(), "")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, l := range links {
		world = append(world, fmt.Sprintf("daemon: link %s %s %v", l.ID, l.State, l.Addrs))
	}
	networks, err := b.client.Networks(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, n := range networks {
		if n.Pool.Leased > 0 {
			world = append(world, fmt.Sprintf("daemon: %s has %d addresses leased", n.Name, n.Pool.Leased))
		}
	}
	if ipamDir != "" {
		leases, err := filepath.Glob(filepath.Join(ipamDir, "lease-*"))
		if err != nil {
			b.t.Fatal(err)
		}
		world = append(world, leases...)
	}
	slices.Sort(world)
	return world
}

// redirects lists what the host redirects.
func (b *bed) redirects() []redirect.Table {
	b.t.Helper()
	var tables []redirect.Table
	nstest.In(b.t, b.host, func() (err error) {
		tables, err = redirect.List()
		return err
	})
	return tables
}

// stone is where the bed's DEL leaves its tombstone.
func (b *bed) stone() string {
	return filepath.Join(filepath.Dir(b.socket), "tombstones", "web~c1~eth0")
}

// decode and encode are for configurations that a test changes.
func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatal(err)
	}
}

func encode(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
