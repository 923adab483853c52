//go:build runtimes

package test

import (
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/nstest"
)

// TestPodmanDropIn runs podman as root, on networks that podman itself makes,
// of which usernet serves every plugin. podman reserves published ports, as it
// does by default.
func TestPodmanDropIn(t *testing.T) {
	p := newPodmanBed(t, "")
	const documented, here = "/usr/libexec/usernet/cni", "/opt/usernet/cni"
	conf := documentedConf(t, "/etc/containers/containers.conf")
	if !strings.Contains(conf, documented) {
		t.Fatalf("docs/podman.md does not name %s", documented)
	}
	p.write("/etc/containers/containers.conf", strings.ReplaceAll(conf, documented, here))
	p.do("usernet", "cni", "install", "--drop-in", "--bin-dir", here)
	p.importImage()
	create := func(args ...string) { p.do(append([]string{"podman", "network", "create"}, args...)...) }
	create("--ipv6", "--subnet", "10.87.0.0/24", "--subnet", "fd87::/64", "made")
	create("--ipv6", "--subnet", "10.97.0.0/24", "--subnet", "fd97::/64", "-o", "isolate=true", "apart")
	create("--ipv6", "--subnet", "10.98.0.0/24", "--subnet", "fd98::/64", "--internal", "closed")
	for _, file := range []string{"made", "apart", "closed"} {
		list, err := os.ReadFile(p.path("/etc/cni/net.d/" + file + ".conflist"))
		if err != nil || !strings.Contains(string(list), `"bridge"`) {
			t.Fatalf("podman wrote %s, %v", list, err)
		}
	}
	made := podmanNet{name: "made", other: "apart", closed: "closed", v4: "10.87.0.", v6: "fd87::", made: true}
	p.onNetworks(t, made, slices.Concat(podmanTests, []podmanTest{
		{"many at once", (*podmanBed).testManyAtOnce},
		{"default network", (*podmanBed).testDefaultNetwork},
		{"isolate", (*podmanBed).testIsolate},
		{"remove networks", (*podmanBed).testRemoveNetworks}, // the last: it leaves none
	}))
}

// testManyAtOnce starts containers at the same time, and removes them so.
func (p *podmanBed) testManyAtOnce(n podmanNet) {
	names := []string{"m0", "m1", "m2", "m3", "m4"}
	each := func(argv func(name string) []string) {
		var wg sync.WaitGroup
		for _, name := range names {
			wg.Go(func() {
				if _, err := p.try(argv(name)...); err != nil {
					p.t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	each(func(name string) []string {
		argv := append([]string{"podman", "run", "-d", "--name", name, "--network", n.name + "," + n.other}, p.parent()...)
		return append(argv, image, "sleep", "1000")
	})
	owner := map[string]string{}
	links := p.links()
	for _, link := range links {
		for _, addr := range link.Addrs {
			if owner[addr.String()] != "" {
				p.t.Errorf("%s and %s have the address %s", owner[addr.String()], link.ID, addr)
			}
			owner[addr.String()] = link.ID
		}
	}
	if len(links) != 2*len(names) {
		p.t.Errorf("%d links of %d containers on two networks", len(links), len(names))
	}
	each(func(name string) []string { return []string{"podman", "rm", "--force", "--time", "0", name} })
}

// testDefaultNetwork is podman run without any network named: that network has
// IPv4 alone, and yet a port of the host's IPv6 loopback leads there.
func (p *podmanBed) testDefaultNetwork(podmanNet) {
	echo(p.t, p.outside, "outside", ":7100")
	ns := p.start("plain", []string{"80"}, "-p", "8080:80", "-p", "[::1]:8082:80", "-p", "[::1]:8082:80/udp")
	p.answers(p.host, "tcp", "[::1]:8082", "plain", "10.88.0.1")
	p.answers(p.host, "udp", "[::1]:8082", "plain", "10.88.0.1")
	p.answers(p.outside, "tcp", "203.0.113.1:8080", "plain", "203.0.113.2")
	p.answers(ns, "tcp", "203.0.113.2:7100", "outside", "203.0.113.1")
	p.remove("plain")
}

// testIsolate holds that a network and an isolated one do not meet, either way.
func (p *podmanBed) testIsolate(n podmanNet) {
	open := p.start("open", []string{"7000"}, "--network", n.name)
	apart := p.start("apart", []string{"7000"}, "--network", n.other)
	beside := p.start("beside", nil, "--network", n.other)
	for _, addr := range p.links()["apart "+n.other].Addrs {
		address := net.JoinHostPort(addr.Addr().String(), "7000")
		p.answers(beside, "tcp", address, "apart", "")
		ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Second)
		if c, err := nstest.DialContext(ctx, open, "tcp", address); err == nil {
			c.Close()
			p.t.Errorf("%s is reached from another network", address)
		}
		cancel()
	}
	for _, addr := range p.links()["open "+n.name].Addrs {
		address := net.JoinHostPort(addr.Addr().String(), "7000")
		ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Second)
		if c, err := nstest.DialContext(ctx, apart, "tcp", address); err == nil {
			c.Close()
			p.t.Errorf("%s is reached from an isolated network", address)
		}
		cancel()
	}
	p.remove("open", "apart", "beside")
}

// testRemoveNetworks removes networks: in use, by force, and what nobody uses.
func (p *podmanBed) testRemoveNetworks(n podmanNet) {
	p.start("user", nil, "--network", n.name)
	if _, err := p.try("podman", "network", "rm", n.name); err == nil || !strings.Contains(err.Error(), "being used") {
		p.t.Errorf("remove a network in use: %v", err)
	}
	p.do("podman", "network", "prune", "--force")
	if out := p.do("podman", "network", "ls", "--format", "{{.Name}}"); !slices.Equal(strings.Fields(out), []string{n.name, "podman"}) {
		p.t.Errorf("networks after prune: %s", out)
	}
	p.do("podman", "network", "rm", "--force", n.name)
	if links := p.links(); len(links) != 0 {
		p.t.Errorf("links after the removal of their network: %v", links)
	}
	left, err := os.ReadDir(p.path("/etc/cni/net.d"))
	for _, file := range left {
		if strings.HasSuffix(file.Name(), ".conflist") {
			p.t.Errorf("%s is left", file.Name())
		}
	}
	if err != nil {
		p.t.Error(err)
	}
}
