package netstack

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// hostSide is a namespace that plays the host: a real TUN with the gateway's
// addresses, as a kernel bridge would have them.
func (h *harness) hostSide() *container {
	h.t.Helper()
	c := &container{ns: nstest.NewNS(h.t), v4: h.s.gateway4, v6: h.s.gateway6}
	dev := nstest.TUN(h.t, c.ns, netns.Interface{Name: "un-test", MTU: 1500, Addrs: h.s.cfg.Gateways})
	link, err := h.s.AttachHost(dev, HostLinkConfig{Name: "host", MTU: 1500})
	if err != nil {
		h.t.Fatal(err)
	}
	c.link = link
	return c
}

func TestNetnsHostReachesContainers(t *testing.T) {
	nstest.Require(t)
	h := newHarness(t, nil)
	host, c := h.hostSide(), h.container("c", 2, 1500)
	for _, addr := range []netip.Addr{c.v4, c.v6} {
		for _, size := range []string{"56", "5000"} {
			if out := nstest.Exec(t, host.ns, "ping", "-n", "-c", "2", "-i", "0.2", "-s", size, addr.String()); !strings.Contains(out, " 0% packet loss") {
				t.Errorf("ping %v: %s", addr, out)
			}
		}
		transfer(t, host, c, addr, 16<<20)
	}
	for _, f := range h.s.Flows() {
		if f.Proto == "tcp" && (f.Direction != FlowHost || f.ToContainer.Bytes/f.ToContainer.Packets < 8*1500) {
			t.Errorf("flow %+v: want superframes from the host", f)
		}
	}
	if d := host.link.Stats().Drops; d["spoofed_source"]+d["no_flow"]+d["checksum"] > 0 {
		t.Errorf("drops %v", d)
	}
}

// TestNetnsHostHearsOfFailure: the kernel believes the errors that it gets.
func TestNetnsHostHearsOfFailure(t *testing.T) {
	nstest.Require(t)
	h := newHarness(t, nil)
	host, c := h.hostSide(), h.container("c", 2, 1500)
	for _, addr := range []netip.Addr{c.v4, c.v6} {
		_, err := nstest.Dial(t, host.ns, "tcp", ap(addr, 9).String())
		isErr(t, err, syscall.ECONNREFUSED)
		_, err = nstest.Dial(t, host.ns, "tcp", ap(addr.Next(), 9).String())
		if !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("dial nobody: %v", err)
		}
		conn, err := nstest.Dial(t, host.ns, "udp", ap(addr, 9).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err = conn.Read(make([]byte, 1))
		isErr(t, err, syscall.ECONNREFUSED)
	}
}

// TestNetnsContainerCannotReachHostServices: what listens on every address of
// the host's namespace hears nothing.
func TestNetnsContainerCannotReachHostServices(t *testing.T) {
	nstest.Require(t)
	h := newHarness(t, nil)
	host, c := h.hostSide(), h.container("c", 2, 1500)
	ln := nstest.Listen(t, host.ns, "tcp", "[::]:7777")
	udp := nstest.ListenPacket(t, host.ns, "udp", "[::]:7777")
	for _, gw := range []netip.Addr{host.v4, host.v6} {
		conn, err := nstest.Dial(t, host.ns, "tcp", ap(gw, 7777).String()) // it does listen there
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if accepted, err := ln.Accept(); err != nil {
			t.Fatal(err)
		} else {
			accepted.Close()
		}
		_, err = nstest.Dial(t, c.ns, "tcp", ap(gw, 7777).String())
		isErr(t, err, syscall.ECONNREFUSED)
		q, err := nstest.Dial(t, c.ns, "udp", ap(gw, 7777).String())
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		if _, err := q.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := q.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err = q.Read(make([]byte, 1))
		isErr(t, err, syscall.ECONNREFUSED) // the switch's answer, not the host's
	}
	if err := udp.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n, from, err := udp.ReadFrom(make([]byte, 9)); err == nil {
		t.Errorf("the host heard %d bytes from %v", n, from)
	}
	if d := c.link.Stats().Drops["policy_no_service"]; d < 4 {
		t.Errorf("%d refusals counted, want 4", d)
	}
}
