//go:build runtimes

package test

import (
	"strings"
	"testing"

	"github.com/usernet/usernet/internal/nstest"
)

// TestPodmanReservesPorts runs podman as root with its own reservation of ports,
// which is its default, on a network of type usernet: conmon listens on what is
// published, and clients come to the container past it.
func TestPodmanReservesPorts(t *testing.T) {
	need(t, "nft")
	p := newPodmanBed(t, "")
	p.write("/etc/containers/containers.conf", documentedConf(t, "/etc/containers/containers.conf"))
	p.do("usernet", "cni", "install")
	p.importImage()
	p.testReservedPorts("usernet")
	if !t.Failed() {
		p.nothingLeft()
	}
	if out := nstest.Exec(t, p.host, "nft", "list", "ruleset"); strings.Contains(out, "usernet") {
		t.Errorf("rules left:\n%s", out)
	}
}

func (p *podmanBed) testReservedPorts(network string) {
	publish := []string{"--network", network, "-p", "8080:80", "-p", "8080:80/udp", "-p", "127.0.0.1:8081:80", "-p", "9000-9002:80-82"}
	p.start("web", []string{"80", "82"}, publish...)
	reached := func() {
		p.t.Helper()
		p.reachedEverywhere("web")
		p.answers(p.host, "tcp", "127.0.0.1:8081", "web", "")
		p.answers(p.outside, "tcp", "203.0.113.1:9002", "web", "203.0.113.2")
		if out := nstest.Exec(p.t, p.host, "ss", "-Htlnp", "sport = :8080"); !strings.Contains(out, "conmon") {
			p.t.Errorf("podman has not reserved the port: %s", out)
		}
	}
	reached()
	_, err := p.try("podman", "run", "--rm", "--network", network, "-p", "127.0.0.1:8080:80", image, "sleep", "0")
	if err == nil || !strings.Contains(err.Error(), "by the container of the link "+network+"/") {
		p.t.Errorf("a port of another container: %v", err)
	}
	stranger := nstest.Listen(p.t, p.host, "tcp", "127.0.0.1:7777")
	_, err = p.try("podman", "run", "--rm", "--network", network, "-p", "127.0.0.1:7777:80", image, "sleep", "0")
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:7777/tcp is in use") {
		p.t.Errorf("a port of a stranger: %v", err)
	}
	stranger.Close()
	// The network comes and goes while conmon keeps the ports.
	p.do("podman", "network", "reload", "web")
	p.answer("web")
	reached()
	p.do("podman", "network", "disconnect", network, "web")
	p.do("podman", "network", "connect", network, "web")
	reached()
	p.do("podman", "restart", "--time", "0", "web")
	p.answer("web", "80", "82")
	reached()
	p.remove("web")
}
