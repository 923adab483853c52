package netstack

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"
)

// publishUDP publishes port 7 of a link on a loopback port.
func (h *harness) publishUDP(link string, host string) *Publication {
	h.t.Helper()
	p, err := h.s.Publish(PublishConfig{Link: link, Proto: "udp", Host: netip.MustParseAddrPort(host), Port: 7})
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

func dialUDP(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	return c
}

// A client of a family that the link lacks stands at the gateway of the other.
func TestPublishUDPAcrossFamilies(t *testing.T) {
	for host, gateway := range map[string]string{"127.0.0.1:0": "fd00:88::1/64", "[::1]:0": "10.88.0.1/24"} {
		t.Run(host, func(t *testing.T) {
			h := newHarness(t, func(c *Config) { c.Gateways = []netip.Prefix{netip.MustParsePrefix(gateway)} })
			a := h.attach("a", 2, nil)
			c := dialUDP(t, h.publishUDP("a", host).Host())
			if _, err := c.Write([]byte("one")); err != nil {
				t.Fatal(err)
			}
			_, pkt := a.receive()
			in := parse(t, pkt)
			if in.Src != h.s.gatewayAddrs()[0] || in.DstPort != 7 {
				t.Fatalf("the container sees %v to %v", in.SrcAddrPort(), in.DstAddrPort())
			}
			a.send(udpPacket(in.DstAddrPort(), in.SrcAddrPort(), 64, []byte("re: one")))
			buf := make([]byte, 100)
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != "re: one" {
				t.Errorf("client got %q, %v", buf[:n], err)
			}
			a.wantDrops(map[string]uint64{})
		})
	}
}

// Clients on loopback stand at ports of the gateway, each at its own, and get
// their own answers.
func TestPublishUDP(t *testing.T) {
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(host, func(t *testing.T) {
			// An internal network may be published into as well.
			h := newHarness(t, func(c *Config) { c.Internal = true })
			a := h.attach("a", 2, nil)
			p := h.publishUDP("a", host)
			v4 := p.Host().Addr().Is4()
			var seen []netip.AddrPort
			for _, text := range []string{"one", "two"} {
				c := dialUDP(t, p.Host())
				if _, err := c.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
				hdr, pkt := a.receive()
				in := parse(t, pkt)
				if in.Src != h.s.gateway(v4) || in.DstPort != 7 {
					t.Fatalf("the container sees %v to %v", in.SrcAddrPort(), in.DstAddrPort())
				}
				src := in.SrcAddrPort()
				got := wantUDP(t, hdr, pkt, src, ap(a.addr(v4), 7))
				seen = append(seen, src)
				a.send(udpPacket(ap(a.addr(v4), 7), src, 64, append([]byte("re: "), got...)))
				buf := make([]byte, 100)
				n, err := c.Read(buf)
				if err != nil || string(buf[:n]) != "re: "+text {
					t.Errorf("client got %q, %v", buf[:n], err)
				}
			}
			if seen[0] == seen[1] {
				t.Errorf("two clients stand at one port %v", seen[0])
			}
			if p.Flows() != 2 {
				t.Errorf("%d flows counted", p.Flows())
			}
			a.wantDrops(map[string]uint64{})
			for _, f := range h.s.Flows() {
				if f.Direction != FlowIngress || f.Destination != p.Host() || *f.Target != ap(a.addr(v4), 7) {
					t.Errorf("flow %+v", f)
				}
			}
		})
	}
}

func TestPublishUDPCloses(t *testing.T) {
	h := newHarness(t, nil)
	a := h.attach("a", 2, nil)
	p := h.publishUDP("a", "127.0.0.1:0")
	c := dialUDP(t, p.Host())
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_, pkt := a.receive()
	in := parse(t, pkt)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if n := a.link.nat.published.size(); n != 0 {
		t.Errorf("%d flows left", n)
	}
	if f := h.s.Flows(); len(f) != 1 || f[0].Reason != "unpublished" {
		t.Errorf("flows %+v", f)
	}
	// The port is free again, and an answer that comes late goes nowhere.
	h.publishUDP("a", p.Host().String())
	a.send(udpPacket(ap(a.v4, 7), in.SrcAddrPort(), 64, []byte("late")))
	a.wantDrops(map[string]uint64{"policy_no_service": 1})
}

// A publication ends with its link, and a flood of clients takes no place of
// the container's own flows.
func TestPublishUDPLimitsAreApart(t *testing.T) {
	target := echoServer(t)
	h := serviceHarness(t, target, func(c *Config) { c.Limits.UDPFlows = 2 })
	a := h.attach("a", 2, nil)
	p := h.publishUDP("a", "127.0.0.1:0")
	a.send(udpPacket(ap(a.v4, 1), ap(h.s.gateway4, target.Port()), 64, []byte("x")))
	a.receive()
	for range 5 {
		if _, err := dialUDP(t, p.Host()).Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		a.receive()
	}
	if n, m := a.link.nat.published.size(), a.link.nat.udp.size(); n != 2 || m != 1 {
		t.Errorf("%d published and %d own flows, want 2 and 1", n, m)
	}
	if err := a.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp4", p.Host().String())
	if err != nil {
		t.Fatalf("the host port is not free after the link has gone: %v", err)
	}
	pc.Close()
}

// A closed port of a client is reported to the container.
func TestPublishUDPClientGone(t *testing.T) {
	h := newHarness(t, nil)
	a := h.attach("a", 2, nil)
	p := h.publishUDP("a", "127.0.0.1:0")
	c := dialUDP(t, p.Host())
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_, pkt := a.receive()
	in := parse(t, pkt)
	c.Close()
	a.send(udpPacket(ap(a.v4, 7), in.SrcAddrPort(), 64, []byte("too late")))
	_, answer := a.receive()
	if h := parse(t, answer); h.ICMPType != 3 || h.ICMPCode != 3 {
		t.Errorf("%+v, want port unreachable", h)
	}
}

func TestPublishUDPBigDatagram(t *testing.T) {
	h := newHarness(t, nil)
	a := h.attach("a", 2, nil)
	c := dialUDP(t, h.publishUDP("a", "127.0.0.1:0").Host())
	sent := bytes.Repeat([]byte("0123456789"), 500)
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	got := 0
	for got < len(sent) {
		_, frag := a.receive()
		if len(frag) > testMTU {
			t.Fatalf("%d bytes on a link of %d", len(frag), testMTU)
		}
		in := parse(t, frag)
		got += len(frag) - in.L4
		if in.FragOffset == 0 {
			got -= 8
		}
	}
	if got != len(sent) {
		t.Errorf("%d bytes of %d", got, len(sent))
	}
}
