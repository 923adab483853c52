package netstack

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/usernet/usernet/internal/packet"
)

// newNeighbour is a second network of a fabric, which both refuse to reach by
// way of the outside, as the daemon's do.
func newNeighbour(t *testing.T, h *harness, name string, third byte, p Policy) *harness {
	t.Helper()
	gateways := []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, third, 1}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x88, 7: third, 15: 1}), 64),
	}
	other := newHarness(t, func(cfg *Config) {
		cfg.Name, cfg.Gateways, cfg.Fabric, cfg.Policy = name, gateways, h.s.cfg.Fabric, p
		cfg.Refuse = h.s.cfg.Gateways
	})
	if err := h.s.SetRefuse(gateways); err != nil {
		t.Fatal(err)
	}
	return other
}

// exchange sends a datagram of a family and reports whether it arrived; if not,
// how it was answered.
func exchange(t *testing.T, from, to *end, v4 bool) (arrived bool, refusal packet.Header) {
	t.Helper()
	pkt := udpPacket(ap(from.addr(v4), 1000), ap(to.addr(v4), 2000), 64, []byte("hello"))
	from.send(pkt)
	select {
	case got := <-to.got:
		h := parse(t, got[10:])
		if h.HopLimit != 63 || h.Src != from.addr(v4) || string(got[10+h.Payload:]) != "hello" {
			t.Errorf("arrived as %+v: % x", h, got)
		}
		return true, packet.Header{}
	case got := <-from.got:
		return false, parse(t, got[10:])
	}
}

func (e *end) network() *Switch { return e.link.s }

// TestIngressPolicies holds every pair of policies of two networks against what
// passes between their links, in both directions and families.
func TestIngressPolicies(t *testing.T) {
	policies := []Policy{
		{}, {Ingress: IngressSameBridge}, {Ingress: IngressOpen}, {Ingress: IngressIsolated},
		{PortIsolation: true}, {Ingress: IngressOpen, PortIsolation: true},
	}
	h := newHarness(t, nil)
	n := newNeighbour(t, h, "other", 7, Policy{})
	a, a2, b := h.attach("a", 2, nil), h.attach("a2", 3, nil), n.attach("b", 2, nil)
	for _, p := range policies {
		for _, q := range policies {
			for _, err := range []error{h.s.SetPolicy(p), n.s.SetPolicy(q)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			joined := p.Ingress == IngressOpen && q.Ingress == IngressOpen
			apart := p.Ingress == IngressIsolated || p.PortIsolation
			for _, v4 := range []bool{true, false} {
				for _, pair := range []struct {
					from, to *end
					want     bool
				}{{a, b, joined}, {b, a, joined}, {a, a2, !apart}, {a2, a, !apart}} {
					what := fmt.Sprintf("%v and %v, %s to %s, v4 %v", p, q, pair.from.link.name, pair.to.link.name, v4)
					arrived, refusal := exchange(t, pair.from, pair.to, v4)
					if arrived != pair.want {
						t.Errorf("%s: arrived %v", what, arrived)
					}
					if !arrived && !prohibited(refusal) {
						t.Errorf("%s: answered by %+v", what, refusal)
					}
				}
			}
		}
	}
	// Every refusal has its counter, and is among the flows.
	a.wantRefusals(t, "policy_port_isolation", "port_isolation", "a2", "")
	a.wantRefusals(t, "policy_other_network", "other_network", "", "")
	b.wantRefusals(t, "policy_other_network", "other_network", "", "")
}

func prohibited(h packet.Header) bool {
	return h.Version == 4 && h.ICMPType == 3 && h.ICMPCode == 13 || h.Version == 6 && h.ICMPType == 1 && h.ICMPCode == 1
}

// wantRefusals looks for drops under a counter, and for a flow of the reason.
func (e *end) wantRefusals(t *testing.T, counter, reason, peer, network string) {
	t.Helper()
	if e.link.Stats().Drops[counter] == 0 {
		t.Errorf("%s: no drops %s: %v", e.link.name, counter, e.link.Stats().Drops)
	}
	if !slices.ContainsFunc(e.network().Flows(), func(f Flow) bool {
		return f.Link == e.link.name && f.Reason == reason && f.Verdict == FlowDropped && f.Peer == peer && f.PeerNetwork == network
	}) {
		t.Errorf("%s: no flow dropped for %s with peer %q", e.link.name, reason, peer)
	}
}

// TestJoinedNetworksHaveOneFlow: what crosses two switches is one flow, where
// it began, with both directions counted; it ends with either link, and when a
// policy no longer lets it be.
func TestJoinedNetworksHaveOneFlow(t *testing.T) {
	open := Policy{Ingress: IngressOpen}
	for name, end := range map[string]func(h, n *harness, a, b *end) error{
		"link detached":         func(_, _ *harness, _, b *end) error { return b.link.Detach(t.Context()) },
		"policy: other_network": func(_, n *harness, _, _ *end) error { return n.s.SetPolicy(Policy{}) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, func(cfg *Config) { cfg.Policy = open })
			n := newNeighbour(t, h, "other", 7, open)
			a, b := h.attach("a", 2, nil), n.attach("b", 2, nil)
			a.send(udpPacket(ap(a.v4, 1000), ap(b.v4, 2000), 64, []byte("ask")))
			b.receive()
			b.send(udpPacket(ap(b.v4, 2000), ap(a.v4, 1000), 64, []byte("answer")))
			a.receive()
			eventually(t, func() bool { // each is counted after it was sent, by the sender's worker
				flows := h.s.Flows()
				return len(flows) == 1 && flows[0].FromContainer.Packets == 1 && flows[0].ToContainer.Packets == 1
			})
			if f := h.s.Flows()[0]; f.Direction != FlowPeer || f.Link != "a" || f.Peer != "b" || f.PeerNetwork != "other" ||
				f.End != nil {
				t.Errorf("flow %+v", f)
			}
			if flows := n.s.Flows(); len(flows) != 0 {
				t.Errorf("the other network has flows %+v", flows)
			}
			if err := end(h, n, a, b); err != nil {
				t.Fatal(err)
			}
			if f := h.s.Flows()[0]; f.End == nil || f.Reason != name {
				t.Errorf("flow did not end by %q: %+v", name, f)
			}
		})
	}
}

// TestJoinedNetworksEdges: hop limit and MTU hold across networks, no address
// and no gateway of another network answers, and an internal one is not joined.
func TestJoinedNetworksEdges(t *testing.T) {
	open := Policy{Ingress: IngressOpen}
	h := newHarness(t, func(cfg *Config) { cfg.Policy = open })
	n := newNeighbour(t, h, "other", 7, open)
	inner := newHarness(t, func(cfg *Config) {
		cfg.Name, cfg.Fabric, cfg.Policy, cfg.Internal = "inner", h.s.cfg.Fabric, open, true
		cfg.Gateways = []netip.Prefix{netip.MustParsePrefix("10.88.9.1/24")}
	})
	a := h.attach("a", 2, nil)
	b := n.attach("b", 2, func(cfg *LinkConfig) { cfg.MTU = MinMTU })
	c := inner.attach("c", 2, nil)
	if err := h.s.SetRefuse([]netip.Prefix{netip.MustParsePrefix("10.88.7.0/24"), netip.MustParsePrefix("10.88.9.0/24")}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name       string
		pkt        []byte
		icmp, code uint8
	}{
		{"hop limit", udpPacket(ap(a.v4, 1), ap(b.v4, 2), 1, nil), 11, 0},
		{"MTU", udpPacket(ap(a.v6, 1), ap(b.v6, 2), 64, make([]byte, 1300)), 2, 0},
		{"no such link", udpPacket(ap(a.v4, 1), ap(n.addr(true, 99), 2), 64, nil), 3, 1},
		{"gateway", udpPacket(ap(a.v4, 1), ap(n.addr(true, 1), 2), 64, nil), 3, 1},
		{"internal", udpPacket(ap(a.v4, 1), ap(c.v4, 2), 64, nil), 3, 13},
	} {
		a.send(tt.pkt)
		_, pkt := a.receive()
		if got := parse(t, pkt); got.ICMPType != tt.icmp || got.ICMPCode != tt.code || got.Src != h.s.gateway(got.Version == 4) {
			t.Errorf("%s: answered by %+v", tt.name, got)
		}
	}
	c.send(udpPacket(ap(c.v4, 1), ap(a.v4, 2), 64, nil))
	if _, pkt := c.receive(); !prohibited(parse(t, pkt)) {
		t.Errorf("from internal: % x", pkt)
	}
	b.quiet()
	a.wantDrops(map[string]uint64{"hop_limit": 1, "too_big": 1, "policy_no_such_link": 2, "policy_other_network": 1})
	c.wantDrops(map[string]uint64{"policy_internal": 1})
}

func TestFabricRefusesOverlaps(t *testing.T) {
	h := newHarness(t, nil)
	for _, prefix := range []string{"10.88.0.1/24", "10.88.0.129/25", "10.0.0.1/8", "fd00:88::9/64"} {
		_, err := New(Config{Name: "x", Fabric: h.s.cfg.Fabric, Gateways: []netip.Prefix{netip.MustParsePrefix(prefix)}})
		if err == nil || !strings.Contains(err.Error(), "of network test") {
			t.Errorf("%s: %v", prefix, err)
		}
	}
	if got := h.s.cfg.Fabric.list(); len(got) != 1 {
		t.Errorf("%d switches in the fabric", len(got))
	}
	if err := h.s.SetPolicy(Policy{Ingress: "Open"}); err == nil || h.s.Policy() != (Policy{}) {
		t.Errorf("policy Open: %v, now %+v", err, h.s.Policy())
	}
}

// TestFabricForgetsSwitches: a prefix is free again when its network is gone.
func TestFabricForgetsSwitches(t *testing.T) {
	h := newHarness(t, nil)
	for range 2 {
		s, err := New(Config{Name: "x", Fabric: h.s.cfg.Fabric, Gateways: []netip.Prefix{netip.MustParsePrefix("10.99.0.1/24")}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
