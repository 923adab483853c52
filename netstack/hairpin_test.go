package netstack

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

// The host's addresses in tests of hairpins; nothing listens there.
var hairpinHost = []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}

// pinned is a switch whose host has addresses, with a publication of b's port
// 80 on all of them, whose listener is on loopback: no packet of a hairpin can
// reach it.
func pinned(t *testing.T, change func(*Config)) (h *harness, a, b *end, port uint16) {
	t.Helper()
	h = newHarness(t, change)
	h.s.SetHostAddrs(hairpinHost, nil)
	a, b = h.attach("a", 2, nil), h.attach("b", 3, nil)
	return h, a, b, publishAll(t, h, "b")
}

// publishAll publishes a link's port 80 at all addresses of the host.
func publishAll(t *testing.T, h *harness, link string) (port uint16) {
	t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		for _, host := range []string{"0.0.0.0", "::"} {
			p, err := h.s.Publish(PublishConfig{Link: link, Proto: proto, Host: netip.AddrPortFrom(netip.MustParseAddr(host), port), Port: 80})
			if err != nil {
				t.Fatal(err)
			}
			port = p.Host().Port()
		}
	}
	return port
}

// conversation sends a datagram to a host address and back, and returns the
// source that the publication's link saw.
func conversation(t *testing.T, from, to *end, via netip.AddrPort) netip.AddrPort {
	t.Helper()
	client := ap(from.addr(via.Addr().Is4()), 5000)
	from.send(udpPacket(client, via, 64, []byte("ask")))
	_, pkt := to.receive()
	got := parse(t, pkt)
	if got.DstAddrPort() != ap(to.addr(via.Addr().Is4()), 80) || got.HopLimit != 63 || string(pkt[got.Payload:]) != "ask" || !packet.ValidL4Checksum(&got, [][]byte{pkt}) {
		t.Errorf("to %v: b got %+v: % x", via, got, pkt)
	}
	if got.Version == 4 && packet.Checksum(pkt[:20], 0) != 0xffff {
		t.Errorf("to %v: header checksum of % x", via, pkt)
	}
	to.send(udpPacket(got.DstAddrPort(), got.SrcAddrPort(), 64, []byte("answer")))
	_, pkt = from.receive()
	back := parse(t, pkt)
	if back.SrcAddrPort() != via || back.DstAddrPort() != client || string(pkt[back.Payload:]) != "answer" || !packet.ValidL4Checksum(&back, [][]byte{pkt}) {
		t.Errorf("to %v: a got %+v: % x", via, back, pkt)
	}
	return got.SrcAddrPort()
}

// TestHairpin: a container reaches its neighbour's and its own published port
// at the host's addresses and at the gateway, within the switch, as one flow.
func TestHairpin(t *testing.T) {
	h, a, b, port := pinned(t, nil)
	flows := 0
	for _, from := range []*end{a, b} {
		for _, host := range append(hairpinHost, h.s.gateway4, h.s.gateway6) {
			if src := conversation(t, from, b, ap(host, port)); src.Addr() != h.s.gateway(host.Is4()) {
				t.Errorf("b sees %v", src)
			}
			flows++
		}
	}
	if got := h.s.Flows(); len(got) != flows {
		t.Errorf("%d flows, want %d", len(got), flows)
	}
	for _, f := range h.s.Flows() {
		if f.Direction != FlowPeer || f.Peer != "b" || f.Target == nil || f.Target.Port() != 80 || f.Destination.Port() != port || f.FromContainer.Packets != 1 {
			t.Errorf("flow %+v", f)
		}
	}
	// What is not published stays the host's.
	a.send(udpPacket(ap(a.v4, 1), ap(hairpinHost[0], port+1), 64, nil))
	if _, pkt := a.receive(); !prohibited(parse(t, pkt)) {
		t.Errorf("another port of the host: % x", pkt)
	}
	a.wantDrops(map[string]uint64{"policy_host_address": 1})
	b.wantDrops(map[string]uint64{})
	if err := b.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := h.s.pins.count.Load(); n != 0 {
		t.Errorf("%d hairpins are left", n)
	}
	a.send(udpPacket(ap(a.v4, 5000), ap(hairpinHost[0], port), 64, nil))
	if _, pkt := a.receive(); !prohibited(parse(t, pkt)) {
		t.Errorf("after the publication's end: % x", pkt)
	}
}

// TestHairpinAcrossNetworks: publications are open to every container of the
// fabric whose network lets it, whatever the ingress policies.
func TestHairpinAcrossNetworks(t *testing.T) {
	h, _, b, port := pinned(t, func(cfg *Config) { cfg.Policy = Policy{Ingress: IngressIsolated} })
	n := newNeighbour(t, h, "other", 7, Policy{})
	n.s.SetHostAddrs(hairpinHost, nil)
	c := n.attach("c", 2, nil)
	for _, host := range hairpinHost {
		if src := conversation(t, c, b, ap(host, port)); src.Addr() != h.s.gateway(host.Is4()) {
			t.Errorf("b sees %v, want its own gateway", src)
		}
	}
	if f := n.s.Flows(); len(f) != 2 || f[0].PeerNetwork != "test" {
		t.Errorf("flows %+v", f)
	}
	if err := n.s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := h.s.pins.count.Load(); got != 0 {
		t.Errorf("%d hairpins are left", got)
	}
}

// TestHairpinRefused: by policy at once, in known flows too, and by an internal
// network.
func TestHairpinRefused(t *testing.T) {
	for reason, change := range map[string]func(*Config){
		"hairpin":  func(cfg *Config) { cfg.Policy.NoHairpin = true },
		"internal": func(cfg *Config) { cfg.Internal = true },
	} {
		t.Run(reason, func(t *testing.T) {
			_, a, b, port := pinned(t, change)
			for _, host := range hairpinHost {
				a.send(udpPacket(ap(a.addr(host.Is4()), 1), ap(host, port), 64, nil))
				if _, pkt := a.receive(); !prohibited(parse(t, pkt)) {
					t.Errorf("%v: % x", host, pkt)
				}
			}
			b.quiet()
			a.wantDrops(map[string]uint64{"policy_" + reason: 2})
			a.wantRefusals(t, "policy_"+reason, reason, "", "")
		})
	}
	t.Run("later", func(t *testing.T) {
		h, a, b, port := pinned(t, nil)
		conversation(t, a, b, ap(hairpinHost[0], port))
		if err := h.s.SetPolicy(Policy{NoHairpin: true}); err != nil {
			t.Fatal(err)
		}
		if f := h.s.Flows(); len(f) != 1 || f[0].Reason != "policy: hairpin" || h.s.pins.count.Load() != 0 {
			t.Errorf("flows %+v", f)
		}
		a.send(udpPacket(ap(a.v4, 5000), ap(hairpinHost[0], port), 64, nil))
		if _, pkt := a.receive(); !prohibited(parse(t, pkt)) {
			t.Errorf("% x", pkt)
		}
	})
	t.Run("unpublished", func(t *testing.T) {
		h, a, b, port := pinned(t, nil)
		conversation(t, a, b, ap(hairpinHost[0], port))
		for _, p := range h.s.Publications() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		a.send(udpPacket(ap(a.v4, 5000), ap(hairpinHost[0], port), 64, nil))
		if _, pkt := a.receive(); !prohibited(parse(t, pkt)) {
			t.Errorf("% x", pkt)
		}
		if f := h.s.Flows(); len(f) != 2 || f[0].Reason != "unpublished" {
			t.Errorf("flows %+v", f)
		}
	})
}

// TestHairpinPortUnreachable: the client hears that nobody listens, in terms of
// what it has sent.
func TestHairpinPortUnreachable(t *testing.T) {
	_, a, b, port := pinned(t, nil)
	for _, host := range hairpinHost {
		client, via := ap(a.addr(host.Is4()), 5000), ap(host, port)
		a.send(udpPacket(client, via, 64, []byte("ask")))
		_, pkt := b.receive()
		b.send(packet.AppendICMPError(nil, packet.ErrPortUnreachable, b.addr(host.Is4()), 0, pkt))
		_, pkt = a.receive()
		got := parse(t, pkt)
		q, ok := got.Quoted(pkt)
		if !ok || got.Src != host || q.Src != client || q.Dst != via || q.Proto != packet.ProtoUDP {
			t.Errorf("%v: %+v quotes %+v, %v", host, got, q, ok)
		}
	}
	a.wantDrops(map[string]uint64{})
	b.wantDrops(map[string]uint64{})
}

// TestHairpinDoesNotAllocate: a frame of a known flow costs nothing but its
// bytes.
func TestHairpinDoesNotAllocate(t *testing.T) {
	for _, payload := range []int{1, 60000} {
		s, l, f, _ := forwarder(t, payload, false)
		s.SetHostAddrs(hairpinHost, nil)
		pub, err := s.Publish(PublishConfig{Link: "b", Proto: "tcp", Host: netip.MustParseAddrPort("0.0.0.0:0"), Port: 80})
		if err != nil {
			t.Fatal(err)
		}
		via := ap(hairpinHost[0], pub.Host().Port())
		n := fill(f, tunnel.Header{}, tcpPacket(ap(l.addrs[0], 5000), via, packet.FlagSYN))
		f.prepare()
		if reason := f.decode(n); reason != dropNone {
			t.Fatal(reason)
		}
		s.fromContainer(l, f)
		if s.pins.count.Load() != 2 {
			t.Fatalf("%d hairpin entries: %v", s.pins.count.Load(), l.Stats().Drops)
		}
		hdr, pkt := tcpSuperframe(ap(l.addrs[0], 5000), via, make([]byte, payload), 1400)
		if payload <= 1400 {
			hdr.GSOType, hdr.GSOSize = 0, 0
		}
		raw := make([]byte, tunnel.HeaderLen)
		hdr.Encode(raw)
		raw = append(raw, pkt...)
		allocs := testing.AllocsPerRun(500, func() {
			n, rest := len(raw), raw
			for _, b := range f.prepare() {
				rest = rest[copy(b, rest):]
			}
			if reason := f.decode(n); reason != dropNone {
				t.Fatal(reason)
			}
			s.fromContainer(l, f)
		})
		if allocs != 0 || len(l.Stats().Drops) != 0 {
			t.Errorf("payload %d: %v allocations, drops %v", payload, allocs, fmt.Sprint(l.Stats().Drops))
		}
	}
}
