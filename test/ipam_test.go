//go:build runtimes

package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

// ipamPath is a CNI_PATH whose host-local is usernet's and whose other plugins
// are the reference's.
func ipamPath() string { return "CNI_PATH=" + program("ipam") + ":" + refPlugins }

// foreignList writes the list of a network that the reference's plugin makes and
// for which usernet's host-local leases.
func (b *bed) foreignList(name, main string, more keys) {
	b.t.Helper()
	p := keys{"type": main, "ipMasq": false, "capabilities": allCapabilities, "ipam": keys{
		"type": "host-local", "socket": b.socket, "autostart": false,
		"ranges": [][]keys{{{"subnet": "10.86.0.0/24"}}, {{"subnet": "fd86::/64"}}}, "routes": []keys{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}}}
	for k, v := range more {
		p[k] = v
	}
	text, err := json.Marshal(keys{"cniVersion": "1.0.0", "name": name, "plugins": []keys{p}})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.conf, name+".conflist"), text, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// leaseAddrs returns the addresses of the daemon's leases by container. cnitool
// names a container after its namespace's path.
func (b *bed) leaseAddrs() map[string][]string {
	b.t.Helper()
	list, err := b.client.Leases(b.t.Context(), "")
	if err != nil {
		b.t.Fatal(err)
	}
	all := map[string][]string{}
	for _, l := range list {
		if l.Owner != "cnitool" || l.Netns == 0 || l.NetnsPath == "" {
			b.t.Errorf("lease %+v, want the runtime's name and the namespace", l)
		}
		for _, a := range l.Addrs {
			all[l.NetnsPath] = append(all[l.NetnsPath], a.String())
		}
	}
	return all
}

// TestCNIHostLocalForReferencePlugins: the reference's bridge and ptp with
// usernet's host-local, over the life of containers and of the daemon.
func TestCNIHostLocalForReferencePlugins(t *testing.T) {
	need(t, "ping")
	for main, more := range map[string]keys{"bridge": {"bridge": "ref0", "isGateway": true}, "ptp": {}} {
		t.Run(main, func(t *testing.T) {
			b := newBed(t)
			daemon := b.startDaemon()
			b.foreignList("foreign", main, more)
			path := ipamPath()
			one, two := b.container(), b.container()
			r1, r2 := b.add("foreign", one, path), b.add("foreign", two, path)
			for n, want := range []string{"10.86.0.2/24", "fd86::2/64"} {
				if r1.IPs[n].Address != want || r2.IPs[n].Address == want {
					t.Fatalf("addresses %+v and %+v", r1.IPs, r2.IPs)
				}
			}
			want := map[string][]string{
				one.path: {r1.IPs[0].Address, r1.IPs[1].Address}, two.path: {r2.IPs[0].Address, r2.IPs[1].Address},
			}
			if got := b.leaseAddrs(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("leases %v, want %v", got, want)
			}
			if len(b.links()) > 0 {
				t.Errorf("links %v: the interfaces are the reference's", b.links())
			}
			for n, target := range []string{r1.IPs[0].Gateway, r1.IPs[1].Gateway} {
				nstest.Exec(t, one.ns, "ping", "-c1", "-W3", target)
				nstest.Exec(t, one.ns, "ping", "-c1", "-W3", strings.Split(r2.IPs[n].Address, "/")[0])
			}
			b.must("check", "foreign", one, path)
			for range 2 {
				b.must("del", "foreign", one, path)
			}
			if got := b.leaseAddrs(); len(got) != 1 || got[one.path] != nil {
				t.Errorf("after DEL %v", got)
			}
			// A request by value, and one that another holds.
			three := b.container()
			if r := b.add("foreign", three, path, "CNI_ARGS=IgnoreUnknown=1;IP=10.86.0.77"); r.IPs[0].Address != "10.86.0.77/24" {
				t.Errorf("asked for .77, got %+v", r.IPs)
			}
			if _, err := b.cnitool("add", "foreign", b.container(), path, "CNI_ARGS=IgnoreUnknown=1;IP=10.86.0.77"); err == nil || !strings.Contains(err.Error(), "address in use") {
				t.Errorf("an address of another: %v", err)
			}
			// A namespace that ends without DEL.
			if err := errors.Join(unix.Unmount(three.path, unix.MNT_DETACH), os.Remove(three.path)); err != nil {
				t.Fatal(err)
			}
			nstest.WaitFor(t, 5*time.Second, func() bool { return b.leaseAddrs()[three.path] == nil })

			// The daemon dies: DEL succeeds, ADD does not, and a lease outlives it.
			four := b.container()
			b.add("foreign", four, path)
			b.kill(daemon)
			b.must("del", "foreign", two, path)
			if _, err := b.cnitool("add", "foreign", b.container(), path); err == nil || !strings.Contains(err.Error(), "daemon is not running") {
				t.Errorf("ADD without a daemon: %v", err)
			}
			b.startDaemon()
			if got := b.leaseAddrs(); len(got) != 1 || got[four.path] == nil {
				t.Errorf("after the restart %v", got)
			}
			b.must("check", "foreign", four, path)
			b.must("del", "foreign", four, path)
			if got := b.leaseAddrs(); len(got) != 0 {
				t.Errorf("left: %v", got)
			}
		})
	}
}

// TestCNIHostLocalForUsernet: usernet's own plugin may have host-local lease, too.
// The two are one container's, and GC ends both.
func TestCNIHostLocalForUsernet(t *testing.T) {
	need(t, "ping")
	b := newBed(t)
	b.startDaemon()
	b.network("local", "1.1.0", keys{"ipam": keys{"type": "host-local",
		"ranges": [][]keys{{{"subnet": "10.90.0.0/24", "rangeStart": "10.90.0.100"}}, {{"subnet": "fd90::/64"}}}}})
	path := "CNI_PATH=" + program("ipam") + ":" + program("cni")
	one, two := b.container(), b.container()
	r1, r2 := b.add("local", one, path), b.add("local", two, path)
	if r1.IPs[0].Address != "10.90.0.100/24" || r2.IPs[0].Address != "10.90.0.101/24" || len(b.links()) != 2 || len(b.leaseAddrs()) != 2 {
		t.Errorf("%+v %+v, links %v, leases %v", r1.IPs, r2.IPs, b.links(), b.leaseAddrs())
	}
	for n := range 2 {
		nstest.Exec(t, one.ns, "ping", "-c1", "-W2", r2.ip(n))
	}
	b.must("check", "local", one, path)
	b.must("status", "local", one, path)
	b.must("del", "local", one, path)
	if len(b.links()) != 1 || len(b.leaseAddrs()) != 1 {
		t.Errorf("after DEL: links %v, leases %v", b.links(), b.leaseAddrs())
	}
	b.must("gc", "local", two, path)
	if len(b.links()) != 0 || len(b.leaseAddrs()) != 0 {
		t.Errorf("after GC: links %v, leases %v", b.links(), b.leaseAddrs())
	}
}

// TestCNIHostLocalAtOnce: many containers of the reference's ptp at the same time.
func TestCNIHostLocalAtOnce(t *testing.T) {
	need(t, "cnitool")
	b := newBed(t)
	b.startDaemon()
	b.foreignList("foreign", "ptp", nil)
	const many = 12
	boxes := make([]container, many)
	for n := range boxes {
		boxes[n] = b.container()
	}
	each := func(verb string) {
		var wg sync.WaitGroup
		for _, c := range boxes {
			wg.Go(func() {
				if _, err := b.cnitool(verb, "foreign", c, ipamPath()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	each("add")
	var all []string
	for _, addrs := range b.leaseAddrs() {
		all = append(all, addrs...)
	}
	slices.Sort(all)
	if n := len(slices.Compact(slices.Clone(all))); n != 2*many {
		t.Errorf("%d addresses of %d containers: %v", n, many, all)
	}
	each("del")
	if left := b.leaseAddrs(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestCNIHostLocalStartsTheDaemon: as the plugin does, also for another's list that
// says nothing of usernet.
func TestCNIHostLocalStartsTheDaemon(t *testing.T) {
	b := newBed(t)
	b.foreignList("foreign", "ptp", keys{"ipam": keys{"type": "host-local", "socket": b.socket, "subnet": "10.86.0.0/24"}})
	one := b.container()
	b.add("foreign", one, ipamPath(), "USERNET_BINARY="+program("usernet"))
	t.Cleanup(func() {
		s, err := b.client.Status(context.Background(), "")
		if err == nil {
			err = unix.Kill(s.PID, unix.SIGTERM)
		}
		if err != nil {
			t.Error(err)
		}
	})
	if got := b.leaseAddrs()[one.path]; !slices.Equal(got, []string{"10.86.0.2/24"}) {
		t.Errorf("leases %v", got)
	}
	b.must("del", "foreign", one, ipamPath())
	var none *control.Error
	if _, err := b.client.Lease(t.Context(), control.LinkKey{Network: "foreign", Container: "x", IfName: "eth0"}); !errors.As(err, &none) {
		t.Errorf("%v", err)
	}
}
