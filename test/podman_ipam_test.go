//go:build runtimes

package test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

// TestPodmanHostLocal: podman on its own bridges, of which usernet's host-local
// leases the addresses, as docs/host-local.md sets it up.
func TestPodmanHostLocal(t *testing.T) {
	p := newPodmanBed(t, "")
	page, err := os.ReadFile("../docs/host-local.md")
	if err != nil {
		t.Fatal(err)
	}
	const dir = "/usr/libexec/usernet/ipam"
	_, block, _ := strings.Cut(string(page), "```toml\n")
	block, _, found := strings.Cut(block, "```")
	if !found || !strings.Contains(block, dir) {
		t.Fatalf("docs/host-local.md has no block that names %s", dir)
	}
	const here = "/opt/usernet/ipam" // that directory is the machine's own
	p.write("/etc/containers/containers.conf", strings.ReplaceAll(block, dir, here))
	p.do("install", "-D", "/opt/bin/usernet-cni", here+"/host-local")
	p.importImage()
	p.do("podman", "network", "create", "--ipv6", "--subnet", "10.86.0.0/24", "--subnet", "fd86::/64", "ref")
	leases := func() map[string]control.Lease {
		var list []control.Lease
		p.ask(&list, "leases", "ref")
		all := map[string]control.Lease{}
		for _, l := range list {
			all[l.Container] = l
		}
		return all
	}
	id := func(name string) string { return p.do("podman", "inspect", "--format", "{{.Id}}", name) }
	one := p.start("one", []string{"80"}, "--network", "ref")
	p.start("two", nil, "--network", "ref", "--ip", "10.86.0.77")
	got := leases()
	l1, l2 := got[id("one")], got[id("two")]
	if len(got) != 2 || l1.Addrs[0].String() != "10.86.0.2/24" || l2.Addrs[0].String() != "10.86.0.77/24" || l1.Owner != "podman" || l1.NetnsPath == "" {
		t.Fatalf("leases %+v", got)
	}
	if len(p.links()) != 0 {
		t.Errorf("links %v: the interfaces are the reference's", p.links())
	}
	for _, a := range l2.Addrs {
		nstest.Exec(t, one, "ping", "-c1", "-W3", a.Addr().String())
	}
	// podman asks for the same address again.
	p.do("podman", "network", "reload", "one")
	if l := leases()[id("one")]; len(l.Addrs) != 2 || l.Addrs[0] != l1.Addrs[0] {
		t.Errorf("after a reload %+v, had %+v", l, l1)
	}
	if _, err := p.try(append([]string{"podman", "run", "-d", "--name", "three", "--network", "ref", "--ip", "10.86.0.77"}, append(p.parent(), image, "true")...)...); err == nil || !strings.Contains(err.Error(), "address in use") {
		t.Errorf("the address of another: %v", err)
	}
	// A container that vanishes: its namespace goes, and no DEL comes.
	// The lease may be gone as soon as the namespace is, before its file.
	p.do("umount", "--lazy", l2.NetnsPath)
	p.do("rm", l2.NetnsPath)
	nstest.WaitFor(t, 5*time.Second, func() bool { return len(leases()) == 1 })
	p.remove("one", "two", "three")
	if got := leases(); len(got) != 0 {
		t.Errorf("left: %+v", got)
	}
	p.do("podman", "network", "rm", "ref")
}
