//go:build runtimes

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/nstest"
)

// TestCNIDelWhatever: DEL needs no more than the names of network, container and
// interface. Whatever else is missing or has become something else, the link
// goes, with a daemon or when there is one again, and a bystander stays.
func TestCNIDelWhatever(t *testing.T) {
	b := newBed(t)
	daemon := b.startDaemon()
	bystander := b.container()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	add := func(id string, c container) {
		if status, out := b.raw("ADD", b.rawConfig("web", "1.1.0", nil), "CNI_CONTAINERID="+id, "CNI_IFNAME=eth0", "CNI_NETNS="+c.path); status != 0 {
			t.Fatalf("ADD %s: %s", id, out)
		}
	}
	tests := []struct {
		name, path string // path "own": the container's
		config     keys
		text       string // instead of config
	}{
		{name: "nothing missing", path: "own"},
		{name: "no namespace", path: ""},
		{name: "namespace gone", path: "/run/netns/not-there"},
		{name: "process gone", path: "/proc/4194305/ns/net"},
		{name: "no namespace but a file", path: file},
		{name: "another's namespace", path: bystander.path},
		{name: "the plugin's own namespace", path: "/proc/self/ns/net"},
		{name: "no ranges", path: "own", config: keys{"ipam": nil}},
		{name: "other ranges", path: "own", config: keys{"ipam": ranges("10.99.0.0/24")}},
		{name: "broken ranges", path: "own", config: keys{"ipam": keys{"ranges": 7}}},
		{name: "other device", path: "own", config: keys{"device": "tap"}},
		{name: "unknown keys and bad values", path: "own", config: keys{"bridge": "cni0", "mtu": "large", "dns": 3}},
		{name: "a result of another kind", path: "own", config: keys{"prevResult": 7}},
		{name: "bad capability arguments", path: "own", config: keys{"runtimeConfig": keys{"portMappings": "x", "ips": []string{"y"}}}},
		{name: "lost but for the names", path: "", text: fmt.Sprintf(`{"name":"web","socket":%q}`, b.socket)},
	}
	run := func(t *testing.T, n int) (config, path, id string, c container) {
		tt := tests[n]
		id, c = fmt.Sprintf("c%d", n), b.container()
		add(id, c)
		if path = tt.path; path == "own" {
			path = c.path
		}
		if config = tt.text; config == "" {
			config = b.rawConfig("web", "1.1.0", tt.config)
		}
		return config, path, id, c
	}
	del := func(t *testing.T, config, path, id string) {
		for range 2 {
			if status, out := b.raw("DEL", config, "CNI_CONTAINERID="+id, "CNI_IFNAME=eth0", "CNI_NETNS="+path); status != 0 || out != "" {
				t.Errorf("DEL: status %d, %s", status, out)
			}
		}
	}
	add("bystander", bystander)
	for n, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			config, path, id, c := run(t, n)
			del(t, config, path, id)
			if got := b.links(); !slices.Equal(got, []string{"web/bystander/eth0"}) {
				t.Errorf("links %v", got)
			}
			nstest.WaitFor(t, 10*time.Second, func() bool {
				devices, err := tunDevices(c.ns)
				return err == nil && len(devices) == 0
			})
		})
	}
	nstest.Exec(t, bystander.ns, "ping", "-c1", "-W5", "10.88.0.1")
	// All of them again, with no daemon at the time of the DEL.
	type deletion struct{ config, path, id string }
	var all []deletion
	for n := range tests {
		config, path, id, _ := run(t, n)
		all = append(all, deletion{config, path, id})
	}
	b.kill(daemon)
	for n, d := range all {
		t.Run(tests[n].name+", no daemon", func(t *testing.T) { del(t, d.config, d.path, d.id) })
	}
	b.startDaemon()
	if got := b.links(); !slices.Equal(got, []string{"web/bystander/eth0"}) {
		t.Errorf("links after the restart: %v", got)
	}
	b.wantLeased("web", 2)
}

// wantLeased checks how many addresses a network has leased.
func (b *bed) wantLeased(network string, want int64) {
	b.t.Helper()
	n, err := b.client.Network(b.t.Context(), network)
	if err != nil || n.Pool.Leased != want {
		b.t.Errorf("network %s: %d addresses leased, want %d (%v)", network, n.Pool.Leased, want, err)
	}
}

// TestCNIDelWithoutItsIPAM: a DEL whose IPAM plugin is missing must fail, since
// nobody else can free the address; the link goes all the same.
func TestCNIDelWithoutItsIPAM(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	leases := t.TempDir()
	config := b.rawConfig("web", "1.0.0", keys{"ipam": keys{"type": "host-local", "dataDir": leases, "subnet": "10.92.0.0/24"}})
	env := []string{"CNI_CONTAINERID=c", "CNI_IFNAME=eth0", "CNI_NETNS=" + b.container().path}
	if status, out := b.raw("ADD", config, env...); status != 0 {
		t.Fatal(out)
	}
	status, out := b.raw("DEL", config, append(env, "CNI_PATH=/nowhere")...)
	if code, err := errCode(out); status == 0 || err != nil || code != 7 || !strings.Contains(out, "host-local") || !strings.Contains(out, "/nowhere") {
		t.Errorf("DEL without the IPAM plugin: status %d, %s", status, out)
	}
	if got := b.links(); len(got) != 0 {
		t.Errorf("links %v", got)
	}
	if status, out := b.raw("DEL", config, env...); status != 0 {
		t.Errorf("DEL with the IPAM plugin: %s", out)
	}
	if _, err := os.Stat(leases + "/web/10.92.0.2"); !os.IsNotExist(err) {
		t.Errorf("the address is still leased: %v", err)
	}
}

// TestCNIDeathWithoutDel: when a container's namespace dies its link, addresses,
// publication and listener go, at once where the daemon has the device and
// within two seconds where it was lost; also when the namespace dies while no
// daemon runs, from the start of the next. The log tells how long it took: on a
// busy machine that is no reason to fail.
func TestCNIDeathWithoutDel(t *testing.T) {
	for _, device := range []string{"tun", "tap"} {
		t.Run(device, func(t *testing.T) {
			c := newChaos(t, map[string]keys{
				"web":  {"device": device, "ipam": ranges("10.88.0.0/24", "fd88::/64")},
				"deep": {"device": device, "ipam": ranges("10.87.0.0/24", "fd87::/64")},
			}, 3, 1)
			c.start()
			for _, w := range c.workers {
				if err := w.create(); err != nil {
					t.Fatal(err)
				}
				w.add()
			}
			if ports, err := c.listeners(); err != nil || len(ports) != 3 {
				t.Fatalf("listeners %v, %v", ports, err)
			}
			reclaimed := func(w *chaosWorker, die func()) {
				t.Helper()
				die()
				began := time.Now()
				nstest.WaitFor(t, 20*time.Second, func() bool { return len(c.compare()) == 0 })
				t.Logf("%v: reclaimed after %v", w.key, time.Since(began).Round(time.Millisecond))
			}
			reclaimed(c.workers[0], c.workers[0].die)
			c.kill()
			c.workers[1].die()
			reclaimed(c.workers[1], c.start)
			// Its link is lost by now; the daemon has no device that would tell.
			reclaimed(c.workers[2], c.workers[2].die)
			c.end()
			c.report()
		})
	}
}
