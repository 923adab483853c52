package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// buildUsernet builds the real daemon, once.
var buildUsernet = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "usernet-plugin-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "usernet")
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

// startDaemon starts the real daemon in the host namespace.
func (b *bed) startDaemon() {
	b.t.Helper()
	binary, err := buildUsernet()
	if err != nil {
		b.t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(binary, "daemon", "--socket", b.socket, "--state-dir", filepath.Join(b.t.TempDir(), "state"))
	cmd.Stdout, cmd.Stderr = &log, &log
	nstest.Start(b.t, b.host, cmd)
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("the daemon said:\n%s", log.String())
		}
	})
	nstest.WaitFor(b.t, 10*time.Second, func() bool {
		_, err := b.client.Version(context.Background())
		return err == nil
	})
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
	var stdout, stderr bytes.Buffer
	inv := &invocation{Process: Process{
		Env:   append([]string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=" + b.ctrPath}, env...),
		Stdin: strings.NewReader(config), Stdout: &stdout, Stderr: &stderr, Runtime: "test",
	}, version: newestVersion, afterStep: hook}
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

var errInjected = errors.New("made to fail by the test")

// TestNetnsAddUndoesEachStep fails each step of an ADD in turn, with native
// and with delegated addresses, and compares the world before and after. Then
// the same ADD succeeds, which shows that nothing was in its way.
func TestNetnsAddUndoesEachStep(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	path, dir := installIPAM(t)
	ports := map[string]any{"portMappings": []any{
		map[string]any{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
		map[string]any{"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
	}}
	native := b.config(map[string]any{"runtimeConfig": ports})
	delegated := b.config(map[string]any{"name": "other", "runtimeConfig": ports, "ipam": ipamConf{
		Type: ipamName, Dir: dir, Addresses: []string{"10.99.0.5/24 10.99.0.1", "fd99::5/64 fd99::1"}}})
	for name, config := range map[string]string{"native": native, "delegated": delegated} {
		t.Run(name, func(t *testing.T) {
			before := b.world(dir)
			files := openFiles(t)
			var steps []string
			failAt := func(step string) func(string) error {
				return func(done string) error {
					if step == "" {
						steps = append(steps, done)
					}
					if done == step {
						return errInjected
					}
					return nil
				}
			}
			add := func(step string) error {
				_, err := b.run(cmdAdd, config, failAt(step), "CNI_PATH="+path)
				return err
			}
			if err := add(""); err != nil {
				t.Fatal(err)
			}
			if attached := b.world(dir); len(attached) < len(before)+8 {
				t.Fatalf("the world does not show an attachment:\n%s", strings.Join(attached, "\n"))
			}
			if _, err := b.run(cmdDel, config, nil, "CNI_PATH="+path); err != nil {
				t.Fatal(err)
			}
			for _, step := range append(slices.Clip(steps), "del") {
				if step != "del" { // the first round compares what the DEL left
					if err := add(step); !errors.Is(err, errInjected) {
						t.Fatalf("step %s: got %v", step, err)
					}
				}
				if diff := cmp.Diff(before, b.world(dir)); diff != "" {
					t.Errorf("after a failure behind step %q the world is not as before:\n%s", step, diff)
				}
			}
			if after := openFiles(t); after != files {
				t.Errorf("%d descriptors before, %d after", files, after)
			}
			if err := add(""); err != nil {
				t.Errorf("after all failures: %v", err)
			}
			if _, err := b.run(cmdDel, config, nil, "CNI_PATH="+path); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNetnsAddInterrupted: a runtime that gives up gets its world back.
func TestNetnsAddInterrupted(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	before := b.world("")
	ctx, cancel := context.WithCancel(context.Background())
	var stdout, stderr bytes.Buffer
	inv := &invocation{Process: Process{
		Env:   []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=" + b.ctrPath},
		Stdin: strings.NewReader(b.config(nil)), Stdout: &stdout, Stderr: &stderr,
	}, version: newestVersion, afterStep: func(step string) error {
		if step == "verify" {
			cancel()
		}
		return nil
	}}
	err := b.host.Do(func() error { return inv.run(ctx) })
	wantError(t, err, 11, "interrupted", "commit")
	if diff := cmp.Diff(before, b.world("")); diff != "" || stdout.Len() > 0 || stderr.Len() > 0 {
		t.Errorf("stdout %q, stderr %q, world %s", stdout.String(), stderr.String(), diff)
	}
}

// fullPipe is a standard output whose reader is gone.
type fullPipe struct{}

func (fullPipe) Write([]byte) (int, error) { return 0, os.ErrClosed }

// TestNetnsAddUnheard: a runtime that cannot read the result has no container.
func TestNetnsAddUnheard(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	before := b.world("")
	var stderr bytes.Buffer
	err := b.host.Do(func() error {
		status := Run(context.Background(), Process{
			Env:   []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=" + b.ctrPath},
			Stdin: strings.NewReader(b.config(nil)), Stdout: fullPipe{}, Stderr: &stderr,
		})
		if status == 0 {
			return errors.New("status 0")
		}
		return nil
	})
	if err != nil || !strings.Contains(stderr.String(), "write the output") {
		t.Errorf("%v, stderr %q", err, stderr.String())
	}
	if diff := cmp.Diff(before, b.world("")); diff != "" {
		t.Error(diff)
	}
}

// TestNetnsAddAndCheck compares what an ADD printed with what the container has,
// and runs CHECK, with each thing that it compares changed in turn.
func TestNetnsAddAndCheck(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	runtime := map[string]any{"mac": "02:00:00:00:00:77", "portMappings": []any{map[string]any{"hostPort": 8080, "containerPort": 80}}}
	r, err := b.run(cmdAdd, b.config(map[string]any{"mtu": 1400, "runtimeConfig": runtime}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Interfaces) != 1 || *r.Interfaces[0] != (types100.Interface{Name: "eth0", Mac: "02:00:00:00:00:77", Mtu: 1400, Sandbox: b.ctrPath}) {
		t.Errorf("interfaces %+v", r.Interfaces[0])
	}
	if len(r.IPs) != 2 || len(r.Routes) != 2 || r.IPs[0].Gateway.String() != "10.88.0.1" || r.IPs[1].Gateway.String() != "fd88::1" {
		t.Errorf("ips %v routes %v", r.IPs, r.Routes)
	}
	if fmt.Sprint(r.DNS.Nameservers) != "[10.88.0.1 fd88::1]" && fmt.Sprint(r.DNS.Nameservers) != "[10.88.0.1]" {
		t.Errorf("dns %+v", r.DNS)
	}
	check := func() error {
		_, err := b.run(cmdCheck, b.config(map[string]any{"mtu": 1400, "runtimeConfig": runtime, "prevResult": r}), nil)
		return err
	}
	if err := check(); err != nil {
		t.Fatalf("CHECK right after ADD: %v", err)
	}
	eth0 := func(change func(netlink.Link) error) func() error {
		return func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return change(l)
		}
	}
	addr := &netlink.Addr{IPNet: &r.IPs[0].Address}
	for _, change := range []struct {
		name       string
		make, undo func() error
		words      []string
	}{
		{"mtu", eth0(func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1300) }),
			eth0(func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1400) }), []string{"1300", "1400"}},
		{"address", eth0(func(l netlink.Link) error { return netlink.AddrDel(l, addr) }),
			eth0(func(l netlink.Link) error {
				if err := netlink.AddrAdd(l, addr); err != nil {
					return err
				}
				return netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: r.IPs[0].Gateway})
			}), []string{r.IPs[0].Address.String()}},
		{"down", eth0(netlink.LinkSetDown), nil, []string{"down"}},
	} {
		nstest.In(t, b.ctr, change.make)
		wantError(t, check(), ErrAttachment, append(change.words, "eth0")...)
		if change.undo != nil {
			nstest.In(t, b.ctr, change.undo)
			if err := check(); err != nil {
				t.Errorf("%s changed back: %v", change.name, err)
			}
		}
	}
	if _, err := b.client.Detach(context.Background(), control.LinkKey{Network: "web", Container: "c1", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	wantError(t, check(), ErrAttachment, "eth0")
}

// TestNetnsDelWithoutDaemon: a device that bears the link's mark goes, one that
// took its name does not.
func TestNetnsDelWithoutDaemon(t *testing.T) {
	b := newBed(t)
	key := control.LinkKey{Network: "web", Container: "c1", IfName: "eth0"}
	for alias, stays := range map[string]bool{"": true, "usernet web/c2/eth0": true, linkAlias(key): false} {
		nstest.TUN(t, b.ctr, netns.Interface{Name: "eth0", MTU: 1500, Addrs: []netip.Prefix{netip.MustParsePrefix("10.88.0.5/24")}})
		eth0 := func() error {
			_, err := netlink.LinkByName("eth0")
			return err
		}
		nstest.In(t, b.ctr, func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil || alias == "" {
				return err
			}
			return netlink.LinkSetAlias(l, alias)
		})
		if _, err := b.run(cmdDel, b.config(nil), nil); err != nil {
			t.Fatal(err)
		}
		if there := b.ctr.Do(eth0) == nil; there != stays {
			t.Errorf("alias %q: the device is there: %v, want %v", alias, there, stays)
		}
		nstest.In(t, b.ctr, func() error { return netns.DeleteLink("eth0") })
	}
}

// TestNetnsAddRefuses: what cannot be done is said before anything is made.
func TestNetnsAddRefuses(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	nstest.TUN(t, b.ctr, netns.Interface{Name: "eth1", MTU: 1500})
	nstest.Listen(t, b.host, "tcp", "127.0.0.1:8080")
	path, dir := installIPAM(t)
	before := b.world(dir)
	port := map[string]any{"portMappings": []any{map[string]any{"hostPort": 8080, "containerPort": 80}}}
	for _, test := range []struct {
		name  string
		more  map[string]any
		env   []string
		code  uint
		words []string
	}{
		{"interface exists", nil, []string{"CNI_IFNAME=eth1"}, 4, []string{"CNI_IFNAME", "eth1", b.ctrPath}},
		{"port in use", map[string]any{"runtimeConfig": port}, nil, 100, []string{"8080"}},
		{"address out of range", nil, []string{"CNI_ARGS=IP=10.77.0.5"}, 7, []string{"10.77.0.5"}},
		{"gateway asked for", nil, []string{"CNI_ARGS=IP=10.88.0.1"}, 7, []string{"10.88.0.1"}},
		{"CNI_ARGS gateway", nil, []string{"CNI_ARGS=GATEWAY=10.88.0.1"}, 2, []string{"GATEWAY", "10.88.0.1"}},
		{"no such plugin", map[string]any{"ipam": ipamConf{Type: "absent"}}, []string{"CNI_PATH=" + path}, 7, []string{"absent", path}},
		{"plugin fails", map[string]any{"ipam": ipamConf{Type: ipamName, Dir: dir, Fail: "ADD"}}, []string{"CNI_PATH=" + path}, 142, []string{"told to fail"}},
		{"plugin gives nothing", map[string]any{"ipam": ipamConf{Type: ipamName, Dir: dir}}, []string{"CNI_PATH=" + path}, 7, []string{"no address"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := b.run(cmdAdd, b.config(test.more), nil, test.env...)
			wantError(t, err, test.code, test.words...)
			if diff := cmp.Diff(before, b.world(dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
