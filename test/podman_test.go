//go:build runtimes

package test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// TestPodman runs podman as root, on networks whose configuration "usernet cni"
// wrote, and without podman's reservation of ports.
func TestPodman(t *testing.T) {
	p := newPodmanBed(t, "")
	p.write("/etc/containers/containers.conf", documentedConf(t, "/etc/containers/containers.conf"))
	p.write("/etc/containers/containers.conf.d/ports.conf", "[engine]\nenable_port_reservation = false\n")
	p.do("usernet", "cni", "install")
	p.importImage()
	p.write("/etc/cni/net.d/other.conflist", p.do("usernet", "cni", "conflist", "--name", "other", "--subnet", "10.85.0.0/24", "--subnet", "fd85::/64"))
	p.write("/etc/cni/net.d/closed.conflist", p.do("usernet", "cni", "conflist", "--name", "closed", "--subnet", "10.86.0.0/24", "--subnet", "fd86::/64", "--internal"))
	p.onNetworks(t, podmanNet{name: "usernet", other: "other", closed: "closed", v4: "10.84.0.", v6: "fd84:7573:6572::"}, podmanTests)
}

// podmanTest is one of the tests of containers.
type podmanTest struct {
	name string
	run  func(*podmanBed, podmanNet)
}

var podmanTests = []podmanTest{
	{"ports", (*podmanBed).testPorts},
	{"wishes", (*podmanBed).testWishes},
	{"names", (*podmanBed).testNames},
	{"several networks", (*podmanBed).testSeveralNetworks},
	{"pod", (*podmanBed).testPod},
	{"play kube", (*podmanBed).testPlayKube},
	{"internal", (*podmanBed).testInternal},
	{"build", (*podmanBed).testBuild},
	{"daemon's death", (*podmanBed).testDaemonsDeath},
}

// podmanNet is the networks that the tests of podman run on.
type podmanNet struct {
	name, other, closed string
	v4, v6              string // what the addresses of name begin with
	made                bool   // by podman, for the drop-in names
}

// onNetworks runs the tests of containers, and looks after each for what it
// has left behind.
func (p *podmanBed) onNetworks(t *testing.T, n podmanNet, tests []podmanTest) {
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			sub := p.with(t)
			test.run(sub, n)
			if !t.Failed() {
				sub.nothingLeft()
			}
		})
	}
}

// documentedConf returns the block of docs/podman.md that follows a file's name.
func documentedConf(t *testing.T, file string) string {
	t.Helper()
	page, err := os.ReadFile("../docs/podman.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(page), "`"+file+"`")
	_, after, ok2 := strings.Cut(after, "```toml\n")
	block, _, ok3 := strings.Cut(after, "```")
	if !ok || !ok2 || !ok3 {
		t.Fatalf("docs/podman.md has no block for %s", file)
	}
	return block
}

// ask asks who answers at an address, "tcp" or "udp", and returns the name and
// the address that the server saw, without its port.
func ask(t *testing.T, from *netns.Handle, network, address string) (name, seen string) {
	t.Helper()
	reply := nstest.Ask(t, from, network, address)
	name, seen, _ = strings.Cut(reply, " ")
	if _, err := netip.ParseAddr(seen); err != nil {
		return reply, "" // it tells why there is no answer
	}
	return name, seen
}

// answers holds that a container answers at an address and sees who asks.
func (p *podmanBed) answers(from *netns.Handle, network, address, name, seen string) {
	p.t.Helper()
	if gotName, gotSeen := ask(p.t, from, network, address); gotName != name || seen != "" && gotSeen != seen {
		p.t.Errorf("%s %s: %q saw %q, want %q to see %q", network, address, gotName, gotSeen, name, seen)
	}
}

// reachedEverywhere holds that a container answers at port 8080 of every address
// of the host, both protocols, and sees who asks from outside.
func (p *podmanBed) reachedEverywhere(name string) {
	p.t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		p.answers(p.outside, proto, "203.0.113.1:8080", name, "203.0.113.2")
		p.answers(p.outside, proto, "[2001:db8::1]:8080", name, "2001:db8::2")
		p.answers(p.host, proto, "127.0.0.1:8080", name, "")
		p.answers(p.host, proto, "[::1]:8080", name, "")
	}
}

// testPorts publishes ports in every form that podman has.
func (p *podmanBed) testPorts(n podmanNet) {
	p.start("web", []string{"80", "81", "7000", "7001"}, "--network", n.name,
		"-p", "8080:80", "-p", "8080:80/udp", "-p", "9000-9001:7000-7001",
		"-p", "127.0.0.2:8081:81", "-p", "[::1]:8082:81", "-p", "203.0.113.1:8083:81/udp")
	reached := func() {
		p.t.Helper()
		p.reachedEverywhere("web")
		p.answers(p.outside, "tcp", "203.0.113.1:9000", "web", "203.0.113.2")
		p.answers(p.outside, "tcp", "203.0.113.1:9001", "web", "203.0.113.2")
		p.answers(p.host, "tcp", "127.0.0.2:8081", "web", "")
		p.answers(p.host, "tcp", "[::1]:8082", "web", "")
		p.answers(p.outside, "udp", "203.0.113.1:8083", "web", "203.0.113.2")
	}
	reached()
	for _, address := range []string{"203.0.113.1:8081", "[2001:db8::1]:8082", "203.0.113.1:7000"} {
		if c, err := nstest.Dial(p.t, p.outside, "tcp", address); err == nil {
			c.Close()
			p.t.Errorf("%s answers outside", address)
		}
	}
	if out := p.do("podman", "port", "web"); !strings.Contains(out, "7001/tcp -> 0.0.0.0:9001") || !strings.Contains(out, "80/udp -> 0.0.0.0:8080") {
		p.t.Errorf("podman port: %s", out)
	}
	_, err := p.try("podman", "run", "--rm", "--network", n.name, "-p", "8080:80", image, "sleep", "0")
	if err == nil || !strings.Contains(err.Error(), ":8080/tcp is in use by ") {
		p.t.Errorf("a port that is taken: %v", err)
	}
	if len(p.links()) != 1 {
		p.t.Errorf("links after the port that is taken: %v", p.links())
	}
	before := p.links()["web "+n.name]
	p.do("podman", "restart", "--time", "0", "web")
	p.answer("web", "80", "81", "7000", "7001")
	after := p.links()["web "+n.name]
	if after.Netns == before.Netns || len(after.Publications) != len(before.Publications) {
		p.t.Errorf("after the restart: %+v, before: %+v", after, before)
	}
	reached()
	p.remove("web")
}

// testWishes asks for addresses, of both families and of the interface.
func (p *podmanBed) testWishes(n podmanNet) {
	const mac = "02:11:22:33:44:55"
	ns := p.start("fixed", nil, "--network", n.name, "--ip", n.v4+"77", "--ip6", n.v6+"77", "--mac-address", mac)
	addrs := nstest.Exec(p.t, ns, "ip", "-o", "addr", "show", "eth0")
	for _, want := range []string{n.v4 + "77/", n.v6 + "77/"} {
		if !strings.Contains(addrs, want) {
			p.t.Errorf("no address %s in\n%s", want, addrs)
		}
	}
	if out := nstest.Exec(p.t, ns, "ip", "link", "show", "eth0"); strings.Contains(out, "link/ether "+mac) != n.made {
		p.t.Errorf("the interface of a network that podman made, %v: %s", n.made, out)
	}
	got := p.do("podman", "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}} {{.MacAddress}} {{.Gateway}}{{end}}", "fixed")
	if want := fmt.Sprintf("%s77 %s77 %s %s1", n.v4, n.v6, mac, n.v4); got != want {
		p.t.Errorf("podman inspect: %q, want %q", got, want)
	}
	_, err := p.try("podman", "run", "--rm", "--network", n.name, "--ip", n.v4+"77", image, "sleep", "0")
	if err == nil || !strings.Contains(err.Error(), n.v4+"77") {
		p.t.Errorf("an address that is taken: %v", err)
	}
	p.remove("fixed")
}

// testNames has containers find each other by name and alias, through the
// resolver that podman wrote into their resolv.conf.
func (p *podmanBed) testNames(n podmanNet) {
	a := p.start("alice", nil, "--network", n.name)
	p.start("bob", []string{"7000"}, "--network", n.name, "--network-alias", "robert")
	if out := p.do("podman", "exec", "alice", "nc", "-w", "10", "bob", "7000"); !strings.HasPrefix(out, "bob ") {
		p.t.Errorf("bob answers %q", out)
	}
	if out := p.do("podman", "run", "--rm", "--network", n.name, image, "nc", "-w", "10", "robert", "7000"); !strings.HasPrefix(out, "bob ") {
		p.t.Errorf("bob's alias answers %q", out)
	}
	link := p.links()["bob "+n.name]
	for _, addr := range link.Addrs {
		p.answers(a, "tcp", net.JoinHostPort(addr.Addr().String(), "7000"), "bob", "")
		p.answers(a, "udp", net.JoinHostPort(addr.Addr().String(), "7000"), "bob", "")
	}
	p.remove("bob")
	if out, err := p.try("podman", "exec", "alice", "nslookup", "bob."); err == nil {
		p.t.Errorf("a name outlives its container: %s", out)
	}
	// Egress, over both families.
	echo(p.t, p.outside, "outside", ":7100")
	for _, address := range []string{"203.0.113.2:7100", "[2001:db8::2]:7100"} {
		for _, proto := range []string{"tcp", "udp"} {
			p.answers(a, proto, address, "outside", map[bool]string{true: "203.0.113.1", false: "2001:db8::1"}[address[0] == '2'])
		}
	}
	p.remove("alice")
}

// testSeveralNetworks moves a container between networks while it runs.
func (p *podmanBed) testSeveralNetworks(n podmanNet) {
	peer := p.start("peer", []string{"7000"}, "--network", n.other)
	ns := p.start("multi", nil, "--network", n.name+","+n.other)
	address := func(name, network string) string {
		return p.links()[name+" "+network].Addrs[0].Addr().String()
	}
	reaches := func() {
		p.t.Helper()
		p.answers(ns, "tcp", net.JoinHostPort(address("peer", n.other), "7000"), "peer", address("multi", n.other))
	}
	reaches()
	if got := len(p.links()); got != 3 {
		p.t.Errorf("%d links, want 3: %v", got, p.links())
	}
	// Reloaded, a container keeps its addresses and is there again.
	before := p.links()["multi "+n.other]
	mac := p.macOf("multi", n.other)
	p.do("podman", "network", "reload", "multi")
	after := p.links()["multi "+n.other]
	if fmt.Sprint(after.Addrs) != fmt.Sprint(before.Addrs) || after.Created == before.Created {
		p.t.Errorf("after reload: %+v, before: %+v", after, before)
	}
	if got := p.macOf("multi", n.other); got != mac {
		p.t.Errorf("after reload the MAC address is %s, was %s", got, mac)
	}
	reaches()
	// Disconnected, it has no way; connected again, another address.
	p.do("podman", "network", "disconnect", n.other, "multi")
	if _, there := p.links()["multi "+n.other]; there {
		p.t.Errorf("links after disconnect: %v", p.links())
	}
	if out := p.interfaces(ns); strings.Contains(out, before.IfName) {
		p.t.Errorf("interfaces after disconnect:\n%s", out)
	}
	p.do("podman", "network", "connect", "--alias", "second", n.other, "multi")
	again := p.links()["multi "+n.other]
	if fmt.Sprint(again.Addrs) == fmt.Sprint(before.Addrs) || p.macOf("multi", n.other) == mac {
		p.t.Errorf("after connecting again: %+v", again)
	}
	reaches()
	echo(p.t, ns, "multi", ":7000")
	p.answers(peer, "tcp", net.JoinHostPort(address("multi", n.other), "7000"), "multi", address("peer", n.other))
	if out := p.do("podman", "exec", "peer", "nslookup", "second"); !strings.Contains(out, address("multi", n.other)) {
		p.t.Errorf("the alias of the new connection: %s", out)
	}
	p.remove("multi", "peer")
}

// macOf is the MAC address that podman knows of a container on a network.
func (p *podmanBed) macOf(name, network string) string {
	p.t.Helper()
	return p.do("podman", "inspect", "--format", `{{(index .NetworkSettings.Networks "`+network+`").MacAddress}}`, name)
}

// testPod has two containers share a network and its published port.
func (p *podmanBed) testPod(n podmanNet) {
	p.do(append([]string{"podman", "pod", "create", "--name", "pod", "--network", n.name, "-p", "8090:80",
		"--infra-name", "pod-infra", "--infra-image", image, "--infra-command", "/bin/sleep 1000"}, p.parent()...)...)
	p.do("podman", "run", "-d", "--pod", "pod", "--name", "one", image, "sleep", "1000")
	p.do("podman", "run", "-d", "--pod", "pod", "--name", "two", image, "nc", "-l", "-p", "7005", "-e", "cat", "/etc/resolv.conf")
	p.answer("pod-infra", "80")
	p.answers(p.outside, "tcp", "203.0.113.1:8090", "pod-infra", "203.0.113.2")
	p.answers(p.outside, "tcp", "[2001:db8::1]:8090", "pod-infra", "2001:db8::2")
	if links := p.links(); len(links) != 1 {
		p.t.Errorf("links of the pod: %v", p.links())
	}
	if out := p.do("podman", "exec", "one", "nc", "-w", "10", "127.0.0.1", "7005"); !strings.Contains(out, "nameserver "+n.v4+"1") {
		p.t.Errorf("resolv.conf of the other container: %q", out)
	}
	p.do("podman", "pod", "rm", "--force", "--time", "0", "pod")
}

// testInternal has a network without a way out.
func (p *podmanBed) testInternal(n podmanNet) {
	echo(p.t, p.outside, "outside", ":7100")
	a := p.start("alice", nil, "--network", n.closed)
	p.start("bob", []string{"7000"}, "--network", n.closed)
	bob := "bob"
	if n.made { // podman gives internal networks no dnsname
		bob = p.links()["bob "+n.closed].Addrs[0].Addr().String()
	}
	if out := p.do("podman", "exec", "alice", "nc", "-w", "10", bob, "7000"); !strings.HasPrefix(out, "bob ") {
		p.t.Errorf("bob answers %q", out)
	}
	// Neither the missing route keeps it in, nor one that the container makes.
	for _, gateway := range p.links()["alice "+n.closed].Gateways {
		nstest.Exec(p.t, a, "ip", "route", "add", "default", "via", gateway.String(), "dev", "eth0", "onlink")
	}
	for _, address := range []string{"203.0.113.2:7100", "[2001:db8::2]:7100"} {
		ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Second)
		c, err := nstest.DialContext(ctx, a, "tcp", address)
		cancel()
		if err == nil {
			c.Close()
			p.t.Errorf("an internal network reaches %s", address)
		}
	}
	p.remove("alice", "bob")
}

// testBuild runs the commands of a build with a network, under podman and under
// buildah. Both give builds the host's resolvers whatever the network says, so
// names of containers need --dns.
func (p *podmanBed) testBuild(n podmanNet) {
	serveHTTP(p.t, p.outside, ":8000")
	p.start("peer", []string{"7000"}, "--network", n.name)
	file := func(wanted string) string {
		dir := p.t.TempDir()
		text := "FROM " + image + "\n" +
			"RUN wget -q -O /v4 http://203.0.113.2:8000/ && wget -q -O /v6 'http://[2001:db8::2]:8000/' && nc -w 10 peer 7000 >/peer\n" +
			"RUN read name address </peer; test \"$(cat /v4) $(cat /v6) $name\" = '" + wanted + "'\n"
		if err := os.WriteFile(dir+"/Containerfile", []byte(text), 0o644); err != nil {
			p.t.Fatal(err)
		}
		return dir
	}
	good := file("203.0.113.1 2001:db8::1 peer")
	build := func(tool, dir string) (string, error) {
		return p.try(tool, "build", "--no-cache", "--layers=false", "--network", n.name, "--dns", n.v4+"1", dir)
	}
	for _, tool := range []string{"podman", "buildah"} {
		if _, err := build(tool, good); err != nil {
			p.t.Error(err)
		}
	}
	if out, err := build("podman", file("something else")); err == nil {
		p.t.Errorf("a build whose command fails: %s", out)
	}
	p.remove("peer")
}

// testDaemonsDeath has podman give containers their networks again after the
// daemon, and with it every network, has died.
func (p *podmanBed) testDaemonsDeath(n podmanNet) {
	ns := p.start("web", []string{"80"}, "--network", n.name, "-p", "8080:80")
	before := p.links()["web "+n.name]
	for _, pid := range p.processes("usernet") {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			p.t.Fatal(err)
		}
	}
	nstest.WaitFor(p.t, 10*time.Second, func() bool { return !strings.Contains(p.interfaces(ns), "eth0") })
	p.do("podman", "network", "reload", "--all")
	after := p.links()["web "+n.name]
	if after.State != control.LinkAttached || fmt.Sprint(after.Addrs) != fmt.Sprint(before.Addrs) || len(after.Publications) != len(before.Publications) {
		p.t.Errorf("after the reload: %+v, before: %+v", after, before)
	}
	p.answers(p.outside, "tcp", "203.0.113.1:8080", "web", "203.0.113.2")
	p.remove("web")
}
