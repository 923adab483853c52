package plugin

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

// foreign is the configuration of another plugin that has host-local lease.
func (b *bed) foreign(version string, more map[string]any) string {
	ipam := map[string]any{"type": "host-local", "socket": b.socket, "autostart": false,
		"ranges": []any{[]any{map[string]any{"subnet": "10.88.0.0/24"}}, []any{map[string]any{"subnet": "fd88::/64"}}},
		"routes": []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0", "gw": "fd88::9"}}}
	for k, v := range more {
		ipam[k] = v
	}
	return encode(b.t, map[string]any{"cniVersion": version, "name": "web", "type": "ptp", "ipMasq": true, "ipam": ipam})
}

// hostLocal runs a verb as another plugin would.
func (b *bed) hostLocal(verb, config string, env ...string) (*types100.Result, error) {
	b.t.Helper()
	return b.runAs(nameHostLocal, verb, config, nil, env...)
}

func (b *bed) leases() []control.Lease {
	b.t.Helper()
	list, err := b.client.Leases(context.Background(), "")
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

// TestNetnsHostLocalVersions: the result has each version's form, and no interface.
func TestNetnsHostLocalVersions(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	for _, version := range SupportedVersions {
		r, err := b.hostLocal(cmdAdd, b.foreign(version, nil))
		if err != nil {
			t.Fatal(version, err)
		}
		if len(r.Interfaces) != 0 || len(r.IPs) != 2 || len(r.Routes) != 2 || r.Routes[0].GW != nil && version > "0.2.0" || r.Routes[1].GW.String() != "fd88::9" {
			t.Errorf("%s: %+v", version, r)
		}
		for n, ip := range r.IPs {
			if ip.Interface != nil || ip.Gateway.String() != []string{"10.88.0.1", "fd88::1"}[n] {
				t.Errorf("%s: %+v", version, ip)
			}
		}
		if _, err := b.hostLocal(cmdDel, b.foreign(version, nil)); err != nil {
			t.Error(version, err)
		}
	}
	if left := b.leases(); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}

// TestNetnsHostLocalVerbs: CHECK, GC and STATUS.
func TestNetnsHostLocalVerbs(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	config := b.foreign("1.1.0", nil)
	r, err := b.hostLocal(cmdAdd, config)
	if err != nil {
		t.Fatal(err)
	}
	l := b.leases()[0]
	if l.ID != "web/c1/eth0" || l.Owner != "test" || l.Netns != b.ctr.Inode() || l.NetnsPath != b.ctrPath {
		t.Errorf("%+v", l)
	}
	checked := func(prev *types100.Result) string {
		var conf map[string]any
		decode(t, config, &conf)
		conf["prevResult"] = prev
		return encode(t, conf)
	}
	if _, err := b.hostLocal(cmdCheck, checked(r)); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if _, err := b.hostLocal(cmdCheck, config); err != nil {
		t.Errorf("CHECK without prevResult, which the reference does not look at: %v", err)
	}
	other := *r
	other.IPs = slices.Clone(r.IPs)[1:]
	_, err = b.hostLocal(cmdCheck, checked(&other))
	wantError(t, err, ErrAttachment, "10.88.0.2", "prevResult")
	elsewhere := nstest.Path(t, nstest.NewNS(t))
	_, err = b.hostLocal(cmdCheck, config, "CNI_NETNS="+elsewhere)
	wantError(t, err, ErrAttachment, "net:[", elsewhere)
	_, err = b.hostLocal(cmdCheck, config, "CNI_IFNAME=eth1")
	wantError(t, err, ErrAttachment, "web/c1/eth1")

	// Again in the same namespace, as the reference refuses.
	_, err = b.hostLocal(cmdAdd, config)
	wantError(t, err, types.ErrInvalidNetworkConfig, "10.88.0.2", "DEL it first")
	// Requests, by the capability and by CNI_ARGS.
	_, err = b.hostLocal(cmdAdd, config, "CNI_CONTAINERID=c2", "CNI_ARGS=IP=10.88.0.2")
	wantError(t, err, ErrAddressInUse, "10.88.0.2", "c1", "CNI_ARGS IP")
	_, err = b.hostLocal(cmdAdd, config, "CNI_CONTAINERID=c2", "CNI_ARGS=IP=10.99.0.2")
	wantError(t, err, types.ErrInvalidNetworkConfig, "10.99.0.2", "CNI_ARGS IP")

	if _, err := b.hostLocal(cmdStatus, config); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	small := b.foreign("1.1.0", map[string]any{"ranges": []any{[]any{map[string]any{"subnet": "10.88.0.0/30"}}}})
	_, err = b.hostLocal(cmdAdd, small, "CNI_CONTAINERID=c2")
	wantError(t, err, ErrExhausted, "10.88.0.1-10.88.0.2", "ipam.ranges")
	_, err = b.hostLocal(cmdStatus, small)
	wantError(t, err, ErrNotAvailable, "no address left")

	if _, err = b.hostLocal(cmdAdd, config, "CNI_CONTAINERID=c2"); err != nil {
		t.Fatal(err)
	}
	var conf map[string]any
	decode(t, config, &conf)
	conf["cni.dev/valid-attachments"] = []any{map[string]any{"containerID": "c2", "ifname": "eth0"}}
	b.runtime = "another"
	if _, err := b.hostLocal(cmdGC, encode(t, conf)); err != nil || len(b.leases()) != 2 {
		t.Errorf("GC of another runtime: %v, left %+v", err, b.leases())
	}
	b.runtime = ""
	if _, err := b.hostLocal(cmdGC, encode(t, conf)); err != nil || len(b.leases()) != 1 || b.leases()[0].Container != "c2" {
		t.Errorf("GC: %v, left %+v", err, b.leases())
	}
}

// TestNetnsHostLocalUndo: an ADD whose result is not printed leaves nothing.
func TestNetnsHostLocalUndo(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	boom := errors.New("boom")
	_, err := b.runAs(nameHostLocal, cmdAdd, b.foreign("1.0.0", nil), func(string) error { return boom })
	if !errors.Is(err, boom) || len(b.leases()) != 0 {
		t.Errorf("%v, left %+v", err, b.leases())
	}
}

// TestNetnsHostLocalDelWithoutDaemon: DEL succeeds, leaves a tombstone, and the
// next daemon releases what it is about; with half a configuration, too.
func TestNetnsHostLocalDelWithoutDaemon(t *testing.T) {
	b := newBed(t)
	kill := b.startDaemon()
	config := b.foreign("1.0.0", nil)
	for _, id := range []string{"c1", "c2"} {
		if _, err := b.hostLocal(cmdAdd, config, "CNI_CONTAINERID="+id); err != nil {
			t.Fatal(err)
		}
	}
	kill()
	for range 2 {
		if _, err := b.hostLocal(cmdDel, config, "CNI_NETNS="); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(b.stone()); err != nil {
		t.Error(err)
	}
	_, err := b.hostLocal(cmdAdd, config, "CNI_CONTAINERID=c3")
	wantError(t, err, types.ErrTryAgainLater, b.socket)
	b.startDaemon()
	if left := b.leases(); len(left) != 1 || left[0].Container != "c2" {
		t.Errorf("left %+v", left)
	}
	half := encode(t, map[string]any{"cniVersion": "1.0.0", "name": "web", "ipam": map[string]any{"socket": b.socket, "ranges": "edited since"}})
	if _, err := b.hostLocal(cmdDel, half, "CNI_CONTAINERID=c2", "CNI_NETNS=/gone"); err != nil {
		t.Error(err)
	}
	if left := b.leases(); len(left) != 0 {
		t.Errorf("left %+v", left)
	}
}

// TestNetnsHostLocalLostAnswer: an answer that is lost with the connection is
// asked for again, and is the same lease.
func TestNetnsHostLocalLostAnswer(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	relay := filepath.Join(t.TempDir(), "relay.sock")
	l, err := net.Listen("unix", relay)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var asked atomic.Int32
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			relayOnce(c.(*net.UnixConn), b.socket, asked.Add(1) > 1)
		}
	}()
	r, err := b.hostLocal(cmdAdd, b.foreign("1.0.0", map[string]any{"socket": relay}))
	if err != nil {
		t.Fatal(err)
	}
	if left := b.leases(); asked.Load() < 2 || len(left) != 1 || left[0].Addrs[0].Addr().String() != r.IPs[0].Address.IP.String() {
		t.Errorf("asked %d times, result %+v, leases %+v", asked.Load(), r.IPs, left)
	}
}

// relayOnce passes one request on, and its answer only if told to: the daemon has
// done what it was asked by then.
func relayOnce(c *net.UnixConn, socket string, answer bool) {
	defer c.Close()
	d, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer d.Close()
	request := make([]byte, 64<<10)
	n, err := c.Read(request)
	if err != nil {
		return
	}
	if _, err := d.Write(request[:n]); err != nil {
		return
	}
	reply := make([]byte, 64<<10)
	if n, err = d.Read(reply); err == nil && answer {
		_, _ = c.Write(reply[:n])
		_, _ = io.Copy(io.Discard, c) // until the client is done
	}
}

// TestNetnsHostLocalNamespaceEnds: a lease of a namespace that ends without DEL is
// free again; one of a path that is none waits for its DEL.
func TestNetnsHostLocalNamespaceEnds(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	config := b.foreign("1.0.0", nil)
	dies := nstest.NewNS(t)
	path := nstest.Path(t, dies)
	if _, err := b.hostLocal(cmdAdd, config, "CNI_NETNS="+path); err != nil {
		t.Fatal(err)
	}
	if _, err := b.hostLocal(cmdAdd, config, "CNI_CONTAINERID=c2", "CNI_NETNS=/no/namespace"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	nstest.WaitFor(t, 5*time.Second, func() bool { return len(b.leases()) == 1 })
	if l := b.leases()[0]; l.Container != "c2" || l.Netns != 0 || l.NetnsPath != "" {
		t.Errorf("%+v", l)
	}
}

// TestNetnsHostLocalBesideBridge: the drop-in bridge leases from the daemon by
// itself, and from the same pool as host-local does for others.
func TestNetnsHostLocalBesideBridge(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	lease, err := b.hostLocal(cmdAdd, b.foreign("1.0.0", nil), "CNI_CONTAINERID=foreign")
	if err != nil {
		t.Fatal(err)
	}
	var conf map[string]any
	decode(t, b.foreign("1.0.0", nil), &conf)
	conf["type"], conf["socket"], conf["autostart"], conf["isGateway"] = "bridge", b.socket, false, false
	native, err := b.runAs(nameBridge, cmdAdd, encode(t, conf), nil)
	if err != nil {
		t.Fatal(err)
	}
	if lease.IPs[0].Address.IP.Equal(native.IPs[0].Address.IP) || len(b.leases()) != 1 {
		t.Errorf("host-local gave %v, bridge %v; leases %+v", lease.IPs[0], native.IPs[0], b.leases())
	}
	_, err = b.runAs(nameBridge, cmdAdd, encode(t, conf), nil, "CNI_CONTAINERID=c2", "CNI_ARGS=IP="+lease.IPs[0].Address.IP.String(), "CNI_NETNS="+nstest.Path(t, nstest.NewNS(t)))
	wantError(t, err, ErrAddressInUse, "foreign")
	// The container was another plugin's, and the DEL comes by way of bridge.
	if _, err := b.runAs(nameBridge, cmdDel, encode(t, conf), nil, "CNI_CONTAINERID=foreign", "CNI_NETNS="); err != nil || len(b.leases()) != 0 {
		t.Errorf("%v, left %+v", err, b.leases())
	}
	if _, err := b.runAs(nameBridge, cmdDel, encode(t, conf), nil); err != nil {
		t.Error(err)
	}
}
