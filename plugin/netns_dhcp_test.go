package plugin

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

// referencePlugins is where Debian has the reference plugins.
const referencePlugins = "/usr/lib/cni"

// dhcpBed is a bed with the reference plugin dhcp's own daemon.
type dhcpBed struct {
	*bed
	ipam map[string]any
	log  string // file of what it said
}

func newDHCPBed(t *testing.T) dhcpBed {
	t.Helper()
	b := newBed(t)
	program := filepath.Join(referencePlugins, dhcpIPAM)
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v: install containernetworking-plugins", err) //nolint:forbidigo // in CI it fails, above
	}
	b.startDaemon()
	dir := t.TempDir()
	socket := filepath.Join(dir, "dhcp.sock")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "daemon", "-socketpath", socket)
	cmd.Stdout, cmd.Stderr = log, log
	nstest.Start(t, b.host, cmd)
	nstest.WaitFor(t, 10*time.Second, func() bool { _, err := os.Stat(socket); return err == nil })
	return dhcpBed{b, map[string]any{"type": dhcpIPAM, "daemonSocketPath": socket, "ranges": []any{
		[]any{map[string]any{"subnet": "10.86.0.0/20"}}, []any{map[string]any{"subnet": "fd86::/64"}}}}, log.Name()}
}

// conf is a configuration in a version that the reference plugin speaks.
func (b dhcpBed) conf(more map[string]any) string {
	keys := map[string]any{"cniVersion": "1.0.0", "name": "wire", "device": "tap", "ipam": b.ipam}
	maps.Copy(keys, more)
	return b.config(keys)
}

func (b dhcpBed) verb(verb, config string, hook func(string) error) error {
	_, err := b.run(verb, config, hook, "CNI_PATH="+referencePlugins)
	return err
}

// TestNetnsDHCP: the reference plugin's daemon asks the switch on the
// container's interface, and what it is told is what the container has.
func TestNetnsDHCP(t *testing.T) {
	b := newDHCPBed(t)
	before := b.world("")
	conf := b.conf(map[string]any{"runtimeConfig": map[string]any{"ips": []string{"10.86.3.7/20"}}})
	r, err := b.run(cmdAdd, conf, nil, "CNI_PATH="+referencePlugins)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.IPs) != 2 || r.IPs[0].Address.String() != "10.86.3.7/20" || r.IPs[1].Address.IP.To4() != nil || len(r.Routes) != 2 {
		t.Errorf("result %v", r)
	}
	link := containerLink(t, b.ctr)
	if r.Interfaces[0].Mac != link.Attrs().HardwareAddr.String() {
		t.Errorf("MAC address %v, result %v", link.Attrs().HardwareAddr, r)
	}
	for _, gw := range []string{"10.86.0.1", "fd86::1"} {
		nstest.Exec(t, b.ctr, "ping", "-n", "-c1", "-W5", gw)
	}
	stats, err := b.client.Stats(t.Context(), "wire")
	if err != nil {
		t.Fatal(err)
	}
	for reason, n := range stats.Networks[0].Drops {
		if strings.HasPrefix(reason, "dhcp") {
			t.Errorf("%d drops for %s", n, reason)
		}
	}
	if err := b.verb(cmdCheck, b.conf(map[string]any{"prevResult": r}), nil); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	for range 2 {
		if err := b.verb(cmdDel, conf, nil); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, b.world("")); diff != "" {
			t.Error(diff)
		}
	}
	said, err := os.ReadFile(b.log)
	if err != nil || !strings.Contains(string(said), "releasing lease") || strings.Contains(string(said), "failed") {
		t.Errorf("the client did not release its lease: %s, %v", said, err)
	}
}

// TestNetnsDHCPOfBridge: in the place of the reference's bridge the default
// route is there when, and only when, there is a way out.
func TestNetnsDHCPOfBridge(t *testing.T) {
	b := newDHCPBed(t)
	before := b.world("")
	for out, routes := range map[bool]int{true: 2, false: 0} {
		conf := b.dropIn(nameBridge, map[string]any{"name": fmt.Sprint("out", out), "isGateway": true, "ipMasq": out, "ipam": b.ipam})
		r, err := b.runAs(nameBridge, cmdAdd, conf, nil, "CNI_PATH="+referencePlugins)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.IPs) != 2 || len(r.Routes) != routes {
			t.Errorf("ipMasq %v: addresses %v, routes %v", out, r.IPs, r.Routes)
		}
		if _, err := b.runAs(nameBridge, cmdDel, conf, nil, "CNI_PATH="+referencePlugins); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, b.world("")); diff != "" {
			t.Error(diff)
		}
	}
}

// TestNetnsDHCPUndoesEachStep is TestNetnsAddUndoesEachStep with DHCP.
func TestNetnsDHCPUndoesEachStep(t *testing.T) {
	b := newDHCPBed(t)
	before := b.world("")
	var steps []string
	conf := b.conf(nil)
	if err := b.verb(cmdAdd, conf, func(step string) error { steps = append(steps, step); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := b.verb(cmdDel, conf, nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(steps, "dhcp") {
		t.Fatalf("steps %q", steps)
	}
	for _, step := range steps {
		err := b.verb(cmdAdd, conf, func(done string) error {
			if done == step {
				return errInjected
			}
			return nil
		})
		if err == nil {
			t.Errorf("step %s did not fail", step)
		}
		if diff := cmp.Diff(before, b.world("")); diff != "" {
			t.Errorf("after a failure behind step %q the world is not as before:\n%s", step, diff)
		}
	}
}

// TestNetnsDHCPCannot: what is refused leaves nothing behind, and a DEL does
// not need the client's daemon.
func TestNetnsDHCPCannot(t *testing.T) {
	b := newDHCPBed(t)
	before := b.world("")
	wantError(t, b.verb(cmdAdd, b.conf(map[string]any{"device": "tun"}), nil), types.ErrInvalidNetworkConfig, "ipam.type", "dhcp", "tap")
	six := maps.Clone(b.ipam)
	six["ranges"] = []any{[]any{map[string]any{"subnet": "fd85::/64"}}}
	wantError(t, b.verb(cmdAdd, b.conf(map[string]any{"name": "six", "ipam": six}), nil), types.ErrInvalidNetworkConfig, "dhcp", "six")
	if diff := cmp.Diff(before, b.world("")); diff != "" {
		t.Error(diff)
	}
	alone := maps.Clone(b.ipam)
	alone["daemonSocketPath"] = filepath.Join(t.TempDir(), "none")
	if err := b.verb(cmdDel, b.conf(map[string]any{"ipam": alone}), nil); err != nil {
		t.Errorf("DEL without the client's daemon: %v", err)
	}
}

// udhcpc is busybox's client in the container, with the events that it told
// its script.
type udhcpc struct {
	cmd    *exec.Cmd
	events string
}

func (b *bed) startUDHCPC() *udhcpc {
	b.t.Helper()
	dir := b.t.TempDir()
	u := &udhcpc{events: filepath.Join(dir, "events")}
	script := filepath.Join(dir, "script")
	text := fmt.Sprintf("#!/bin/sh\necho \"$1 ip=$ip mask=$mask router=$router dns=$dns mtu=$mtu lease=$lease serverid=$serverid domain=$domain;\" >>%s\n", u.events)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil { //nolint:gosec // it is run
		b.t.Fatal(err)
	}
	u.cmd = exec.Command("busybox", "udhcpc", "-f", "-i", "eth0", "-s", script, "-O", "mtu", "-t", "20", "-T", "1")
	nstest.Start(b.t, b.ctr, u.cmd)
	return u
}

// await waits for an event of a kind after the first n characters, and returns
// it, and how many there are then.
func (u *udhcpc) await(t *testing.T, kind string, n int) (event string, end int) {
	t.Helper()
	nstest.WaitFor(t, 20*time.Second, func() bool {
		text, err := os.ReadFile(u.events)
		if err != nil || len(text) < n {
			return false
		}
		_, after, _ := strings.Cut(string(text[n:]), kind+" ")
		var whole bool
		event, _, whole = strings.Cut(after, ";\n")
		end = len(text)
		return whole
	})
	return event, end
}

// TestNetnsDHCPClientInContainer: a client inside the container is told what
// the link has; it renews and releases, and gets the same again.
func TestNetnsDHCPClientInContainer(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	r, err := b.run(cmdAdd, b.config(map[string]any{"device": "tap", "mtu": 1400}), nil)
	if err != nil {
		t.Fatal(err)
	}
	addr := r.IPs[0].Address.IP.String()
	u := b.startUDHCPC()
	want := "ip=" + addr + " mask=24 router=10.88.0.1 dns=10.88.0.1 mtu=1400 lease=3600 serverid=10.88.0.1 domain=usernet.internal"
	got, n := u.await(t, "bound", 0)
	if got != want {
		t.Errorf("bound to %q\nwant     %q", got, want)
	}
	signal := func(s syscall.Signal) {
		if err := u.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGUSR1)
	if got, n = u.await(t, "renew", n); got != want {
		t.Errorf("renewed %q\nwant    %q", got, want)
	}
	signal(syscall.SIGUSR2)
	_, n = u.await(t, "deconfig", n)
	signal(syscall.SIGUSR1)
	if got, _ = u.await(t, "bound", n); got != want {
		t.Errorf("after the release %q\nwant              %q", got, want)
	}
	// The link has its address still: a release is the client's affair.
	l, err := b.client.Link(t.Context(), control.LinkKey{Network: "web", Container: "c1", IfName: "eth0"})
	if err != nil || l.Addrs[0].Addr().String() != addr {
		t.Errorf("the daemon's link has %v, %v", l.Addrs, err)
	}
	nstest.In(t, b.ctr, func() error {
		_, err := netlink.LinkByName("eth0")
		return err
	})
}
