package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

var errInjected = errors.New("made to fail by the test")

// TestNetnsAddUndoesEachStep fails each step of an ADD in turn, with native
// and with delegated addresses and with a TAP, and compares the world before and after. Then
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
	tap := b.config(map[string]any{"name": "wire", "device": "tap", "runtimeConfig": ports, "ipam": map[string]any{
		"ranges": []any{[]any{map[string]any{"subnet": "10.87.0.0/24"}}, []any{map[string]any{"subnet": "fd87::/64"}}}}})
	behind := b.config(map[string]any{"name": "behind", "runtimeConfig": ports, "publish": map[string]any{"mode": "redirect"},
		"sysctl": map[string]string{"net.ipv4.tcp_fin_timeout": "33", "net.ipv4.conf.IFNAME.rp_filter": "2"},
		"routes": []any{map[string]any{"dst": "10.9.0.0/16", "table": 77}}, "ipam": map[string]any{
			"ranges": []any{[]any{map[string]any{"subnet": "10.86.0.0/24"}}}}})
	// Like that of the reference plugin tuning, a DEL leaves sysctls as they are:
	// who else has come to rely on them is not known.
	resetSysctl := func() {
		nstest.In(t, b.ctr, func() error { return netns.SetSysctl("ipv4/tcp_fin_timeout", "60") })
	}
	host := b.config(map[string]any{"name": "near", "hostAccess": map[string]any{"enabled": true}, "ipam": map[string]any{
		"ranges": []any{[]any{map[string]any{"subnet": "10.85.0.0/24"}}, []any{map[string]any{"subnet": "fd85::/64"}}}}})
	for name, config := range map[string]string{"native": native, "delegated": delegated, "tap": tap, "redirect": behind, "host": host} {
		t.Run(name, func(t *testing.T) {
			resetSysctl()
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
			resetSysctl()
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
	wantError(t, err, 11, "interrupted", "host")
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

// TestNetnsCheckLooksAtTheDaemon: the interface is as it should be, and the
// rest is not.
func TestNetnsCheckLooksAtTheDaemon(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	runtime := map[string]any{"portMappings": []any{map[string]any{"hostPort": 8080, "containerPort": 80, "hostIP": "127.0.0.1"}}}
	r, err := b.run(cmdAdd, b.config(map[string]any{"runtimeConfig": runtime}), nil)
	if err != nil {
		t.Fatal(err)
	}
	inv := &invocation{conf: &config{}, params: parameters{IfName: "eth0"}}
	iface, err := inv.expected(r)
	if err != nil {
		t.Fatal(err)
	}
	config := b.config(map[string]any{"runtimeConfig": runtime, "prevResult": r})
	// The path leads to another container that looks the same.
	twin := nstest.NewNS(t)
	nstest.TUN(t, twin, iface)
	_, err = b.run(cmdCheck, config, nil, "CNI_NETNS="+nstest.Path(t, twin))
	wantError(t, err, ErrAttachment, "namespace", fmt.Sprint(twin.Inode()), fmt.Sprint(b.ctr.Inode()))
	// Nobody holds the other end of the device.
	idle := nstest.NewNS(t)
	f := nstest.TUNFile(t, idle, iface)
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		t.Fatal(err)
	}
	f.Close()
	_, err = b.run(cmdCheck, config, nil, "CNI_NETNS="+nstest.Path(t, idle))
	wantError(t, err, ErrAttachment, "carrier")
	// The daemon has stopped to listen.
	pubs, err := b.client.Publications(context.Background())
	if err != nil || len(pubs) != 1 {
		t.Fatalf("publications %v, %v", pubs, err)
	}
	if _, err := b.run(cmdCheck, config, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.client.Unpublish(context.Background(), pubs[0].ID); err != nil {
		t.Fatal(err)
	}
	_, err = b.run(cmdCheck, config, nil)
	wantError(t, err, ErrAttachment, "127.0.0.1:8080/tcp", "does not publish")
	// It does not know the link.
	key := control.LinkKey{Network: "web", Container: "c1", IfName: "eth0"}
	if _, err := b.client.Detach(context.Background(), key); err != nil {
		t.Fatal(err)
	}
	nstest.TUN(t, b.ctr, iface)
	_, err = b.run(cmdCheck, config, nil)
	wantError(t, err, ErrAttachment, key.String(), "no link")
}

// TestNetnsGCLeavesOthersAlone: two runtimes may share a network.
func TestNetnsGCLeavesOthersAlone(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	if _, err := b.run(cmdAdd, b.config(nil), nil); err != nil {
		t.Fatal(err)
	}
	for _, runtime := range []string{"other", "test"} { // run is "test"
		status := 0
		nstest.In(t, b.host, func() error {
			status = Run(context.Background(), Process{
				Env: []string{"CNI_COMMAND=GC"}, Stdin: strings.NewReader(b.config(nil)),
				Stdout: os.Stderr, Stderr: os.Stderr, Caller: calledBy(runtime, 0),
			})
			return nil
		})
		links, err := b.client.Links(context.Background(), "")
		if err != nil || status != 0 {
			t.Fatal(status, err)
		}
		if want := map[string]int{"other": 1, "test": 0}[runtime]; len(links) != want {
			t.Errorf("GC of %q leaves %d links, want %d", runtime, len(links), want)
		}
	}
}

// TestNetnsDelMeetsStartingDaemon: a daemon that started after the DEL's first
// try and looked for tombstones before there was one hears of it all the same.
func TestNetnsDelMeetsStartingDaemon(t *testing.T) {
	b := newBed(t)
	if err := os.MkdirAll(filepath.Dir(b.socket), 0o700); err != nil {
		t.Fatal(err)
	}
	var before []control.Tombstone
	_, err := b.run(cmdDel, b.config(nil), func(step string) (err error) {
		if step == "tombstone" {
			before, err = control.Tombstones(b.socket)
			for n := range before { // as if it came after the daemon had looked
				if err := os.Rename(b.stone(), b.socket+".kept"); err != nil {
					return fmt.Errorf("tombstone %d: %w", n, err)
				}
			}
			b.startDaemon()
			return errors.Join(err, os.Rename(b.socket+".kept", b.stone()))
		}
		return err
	})
	if err != nil || len(before) != 1 {
		t.Fatalf("%v, tombstones %v", err, before)
	}
	if after, err := control.Tombstones(b.socket); err != nil || len(after) != 0 {
		t.Errorf("tombstones %v, %v", after, err)
	}
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
