//go:build runtimes

package test

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/nstest"
)

// userScript makes an ordinary user of the machine, who may open /dev/net/tun.
const userScript = `
mkdir /run/etc
for file in passwd group subuid subgid; do
	touch /etc/$file
	cp /etc/$file /run/etc/$file
done
echo tester:x:4711:4711::/home/tester:/bin/sh >>/run/etc/passwd
echo tester:x:4711: >>/run/etc/group
echo tester:200000:65536 | tee -a /run/etc/subuid >>/run/etc/subgid
for file in passwd group subuid subgid; do mount --bind /run/etc/$file /etc/$file; done
mount -t tmpfs -o mode=0755 tmpfs /dev/net
mknod -m 666 /dev/net/tun c 10 200
mkdir -p /run/user/4711 /home/tester/.config/containers /home/tester/.config/cni/net.d
chown -R tester:tester /run/user/4711 /home/tester
chmod 700 /run/user/4711
`

const testerUID = 4711

// TestPodmanRootless runs podman as an ordinary user, whose own daemon is
// outside of the namespace in which podman executes plugins.
func TestPodmanRootless(t *testing.T) {
	need(t, "newuidmap", "slirp4netns")
	p := newPodmanBed(t, userScript)
	p.uid, p.home, p.netns = testerUID, "/home/tester", "/run/user/4711/netns"
	p.write("/etc/containers/storage.conf", "[storage]\ndriver = \"vfs\"\n")
	conf := documentedConf(t, "~/.config/containers/containers.conf")
	p.write("/home/tester/.config/containers/containers.conf", strings.ReplaceAll(conf, "/home/me/", "/home/tester/"))
	for range 2 { // done twice is done
		p.do("usernet", "cni", "install")
		p.do("usernet", "cni", "install", "--drop-in")
	}
	p.importImage()
	conflist := p.do("usernet", "cni", "conflist", "--name", "other", "--subnet", "10.85.0.0/24", "--subnet", "fd85::/64")
	p.write("/home/tester/.config/cni/net.d/other.conflist", conflist)

	_, err := p.try("podman", "run", "--rm", "--network", "usernet", image, "sleep", "0")
	if err == nil || !strings.Contains(err.Error(), "start the daemon outside of it, as the same user: usernet daemon") {
		t.Fatalf("without a daemon: %v", err)
	}
	nstest.Start(t, p.host, p.command(t.Context(), "usernet", "daemon"))
	nstest.WaitFor(t, 10*time.Second, func() bool { _, err := p.try("usernet", "ps"); return err == nil })
	// podman ends what it started for the namespace of its plugins with its last
	// container, and the attempt without a daemon made none.
	p.do("podman", "run", "--rm", "--network", "usernet", image, "sleep", "0")
	p.onNetworks(t, podmanNet{name: "usernet", other: "other", v4: "10.84.0.", v6: "fd84:7573:6572::"}, []podmanTest{
		{"egress", (*podmanBed).testRootlessEgress},
		{"ports", (*podmanBed).testRootlessPorts},
		{"names", (*podmanBed).testNames},
		{"several networks", (*podmanBed).testSeveralNetworks},
		{"pod", (*podmanBed).testRootlessPod},
	})
	p.do("podman", "network", "create", "--ipv6", "--subnet", "10.87.0.0/24", "--subnet", "fd87::/64", "made")
	p.onNetworks(t, podmanNet{name: "made", other: "podman", v4: "10.87.0.", v6: "fd87::", made: true}, []podmanTest{
		{"made, wishes", (*podmanBed).testWishes},
		{"made, names", (*podmanBed).testNames},
		{"made, ports", (*podmanBed).testRootlessPorts},
	})
	var left []int
	defer func() {
		if len(left) != 0 {
			t.Errorf("processes left: %v", left)
		}
	}()
	// podman does not wait for the processes that it ends with a container.
	nstest.WaitFor(t, 10*time.Second, func() bool {
		left = p.processes("slirp4netns", "rootlessport")
		return len(left) == 0
	})
}

// testRootlessEgress has a container reach the outside while slirp4netns, which
// podman runs for the namespace of its plugins, is stopped.
func (p *podmanBed) testRootlessEgress(n podmanNet) {
	echo(p.t, p.outside, "outside", ":7100")
	ns := p.start("alice", nil, "--network", n.name)
	slirps := p.processes("slirp4netns")
	if len(slirps) != 1 {
		p.t.Fatalf("processes of slirp4netns: %v", slirps)
	}
	if err := unix.Kill(slirps[0], unix.SIGSTOP); err != nil {
		p.t.Fatal(err)
	}
	for _, proto := range []string{"tcp", "udp"} {
		p.answers(ns, proto, "203.0.113.2:7100", "outside", "203.0.113.1")
		p.answers(ns, proto, "[2001:db8::2]:7100", "outside", "2001:db8::1")
	}
	if err := unix.Kill(slirps[0], unix.SIGCONT); err != nil {
		p.t.Fatal(err)
	}
	if uid := p.do("podman", "exec", "alice", "cat", "/proc/self/uid_map"); !strings.Contains(uid, "4711") {
		p.t.Errorf("the container's user namespace: %s", uid)
	}
	p.remove("alice")
}

// testRootlessPorts publishes by podman, whose rootlessport hides who asks, and
// by usernet, which does not.
func (p *podmanBed) testRootlessPorts(n podmanNet) {
	p.start("web", []string{"80", "7000", "7001"}, "--network", n.name, "-p", "8080:80", "-p", "9000-9001:7000-7001", "-p", "8081:80/udp", "-p", "127.0.0.1:8082:80")
	reached := func() {
		p.t.Helper()
		for _, address := range []string{"203.0.113.1:8080", "[2001:db8::1]:8080", "203.0.113.1:9000", "203.0.113.1:9001"} {
			p.answers(p.outside, "tcp", address, "web", "")
		}
		p.answers(p.outside, "udp", "203.0.113.1:8081", "web", "")
		p.answers(p.host, "tcp", "127.0.0.1:8082", "web", "")
	}
	reached()
	p.do("usernet", "publish", "web", "0.0.0.0:8090:80", "0.0.0.0:8090:80/udp", "[::]:8090:80")
	for _, proto := range []string{"tcp", "udp"} {
		p.answers(p.outside, proto, "203.0.113.1:8090", "web", "203.0.113.2")
	}
	p.answers(p.outside, "tcp", "[2001:db8::1]:8090", "web", "2001:db8::2")
	p.do("podman", "restart", "--time", "0", "web")
	p.answer("web", "80", "7000", "7001")
	reached()
	p.remove("web")
}

// testRootlessPod has two containers share a network.
func (p *podmanBed) testRootlessPod(n podmanNet) {
	p.do("podman", "pod", "create", "--name", "pod", "--network", n.name, "-p", "8090:80",
		"--infra-name", "pod-infra", "--infra-image", image, "--infra-command", "/bin/sleep 1000")
	p.do("podman", "run", "-d", "--pod", "pod", "--name", "one", image, "sleep", "1000")
	p.answer("pod-infra", "80")
	p.answers(p.outside, "tcp", "203.0.113.1:8090", "pod-infra", "")
	if links := p.links(); len(links) != 1 {
		p.t.Errorf("links of the pod: %v", links)
	}
	p.do("podman", "pod", "rm", "--force", "--time", "0", "pod")
}
