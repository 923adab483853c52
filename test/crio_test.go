//go:build runtimes

package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/usernet/usernet/internal/nstest"
)

// crio runs a client of CRI-O's network library in the host namespace, with the
// JSON of in as its standard input.
func (b *bed) crio(in any, argv ...string) (string, error) {
	b.t.Helper()
	text, err := json.Marshal(in)
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "CONF_PATH="+b.conf, "BIN_PATH="+program("cni"))
	cmd.Stdin = bytes.NewReader(text)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := b.host.Do(cmd.Start); err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// mustCRIO is crio for what has to succeed.
func (b *bed) mustCRIO(in any, argv ...string) string {
	b.t.Helper()
	out, err := b.crio(in, argv...)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// TestCRIO is the path of CRI-O, by its own library: ADD with a CHECK right
// after it, STATUS before any pod, GC at start, DEL of what is there and of
// what is not.
func TestCRIO(t *testing.T) {
	need(t, "ocicnitool", "crio", "ping")
	b := newBed(t)
	daemon := b.startDaemon()
	b.network("web", "1.1.0", nil)
	b.mustCRIO(nil, "crio", "status")
	alice, bob := b.container(), b.container()
	pod := func(verb, name, netns string) string {
		return b.mustCRIO(nil, "ocicnitool", verb, "shop", name, "id-"+name, netns)
	}
	added := pod("add", "alice", alice.path)
	if !strings.Contains(added, "IP: 10.88.0.") || !strings.Contains(added, "IP: fd88::") {
		t.Errorf("add printed %q", added)
	}
	if checked := pod("status", "alice", alice.path); checked != added {
		t.Errorf("add printed %q, status %q", added, checked)
	}
	setup := keys{
		"Namespace": "shop", "Name": "bob", "ID": "id-bob", "UID": "u", "NetNS": bob.path,
		"Aliases": keys{"web": []string{"robert"}},
		"RuntimeConfig": keys{"web": keys{"IP": "10.88.0.77", "MAC": "02:11:22:33:44:55", "CgroupPath": "/pods/bob",
			"Bandwidth": keys{"IngressRate": 20_000_000, "IngressBurst": uint64(math.MaxUint32)*8 - 1}}},
	}
	r := b.parse(b.mustCRIO(setup, "crio", "setup"))
	if r.ip(0) != "10.88.0.77" || r.Interfaces[0].Mac != "02:11:22:33:44:55" {
		t.Errorf("result %+v", r)
	}
	links, err := b.client.Links(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Container != "id-bob" {
			continue
		}
		if bw := l.Bandwidth; bw == nil || bw.ToContainer.BitsPerSecond != 20_000_000 || bw.ToContainer.BurstBits > 20_000_000 {
			t.Errorf("bandwidth %+v", bw)
		}
		if !slices.Contains(l.Names, "robert") || !slices.Contains(l.Names, "bob.shop") {
			t.Errorf("names %q", l.Names)
		}
	}
	for n := range 2 {
		nstest.Exec(t, alice.ns, "ping", "-c1", "-W5", r.ip(n))
	}
	b.mustCRIO(setup, "crio", "teardown")
	for _, netns := range []string{alice.path, alice.path, "", "/nowhere"} {
		pod("del", "alice", netns)
	}
	if got := b.links(); len(got) != 0 {
		t.Errorf("links %q", got)
	}
	b.kill(daemon)
	if _, err := b.crio(nil, "crio", "status"); err == nil || !strings.Contains(err.Error(), "daemon is not running") {
		t.Errorf("status without a daemon: %v", err)
	}
}

// TestCRIOGC: at its start CRI-O tells which pods there are. What else is on
// the network goes, whether its library remembers it or not; what is on other
// networks stays.
func TestCRIOGC(t *testing.T) {
	need(t, "crio")
	b := newBed(t)
	b.startDaemon()
	b.network("web", "1.1.0", nil)
	pods := []keys{}
	for _, name := range []string{"a", "b", "c"} {
		pod := keys{"Namespace": "shop", "Name": name, "ID": "id-" + name, "NetNS": b.container().path}
		b.mustCRIO(pod, "crio", "setup")
		pods = append(pods, pod)
	}
	other := b.rawConfig("other", "1.1.0", keys{"ipam": ranges("10.87.0.0/24")})
	if status, out := b.raw("ADD", other, "CNI_CONTAINERID=id-a", "CNI_IFNAME=eth0", "CNI_NETNS="+b.container().path); status != 0 {
		t.Fatal(out)
	}
	for _, test := range []struct {
		name  string
		valid []keys // nil is sent as null
		want  []string
	}{
		{"all", pods, []string{"other/id-a/eth0", "web/id-a/eth0", "web/id-b/eth0", "web/id-c/eth0"}},
		{"two", pods[:2], []string{"other/id-a/eth0", "web/id-a/eth0", "web/id-b/eth0"}},
		{"one, and nothing is remembered", pods[:1], []string{"other/id-a/eth0", "web/id-a/eth0"}},
		{"none", nil, []string{"other/id-a/eth0"}},
	} {
		if strings.Contains(test.name, "remembered") {
			if err := os.RemoveAll("/var/lib/cni/results"); err != nil {
				t.Fatal(err)
			}
		}
		b.mustCRIO(test.valid, "crio", "gc")
		if got := b.links(); !slices.Equal(got, test.want) {
			t.Errorf("valid: %s: links %q, want %q", test.name, got, test.want)
		}
	}
}
