package netstack

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/packet"
)

// attachHost joins a host link whose far end, the host's kernel, the test plays.
func (h *harness) attachHost(name string, change func(*HostLinkConfig)) *end {
	h.t.Helper()
	dev, e := h.newEnd(DefaultMTU, h.s.gateway4, h.s.gateway6)
	cfg := HostLinkConfig{Name: name}
	if change != nil {
		change(&cfg)
	}
	e.begin(h.s.AttachHost(dev, cfg))
	return e
}

// tcpPacket builds a TCP packet without payload.
func tcpPacket(src, dst netip.AddrPort, flags uint8) []byte {
	_, b := tcpSuperframe(src, dst, nil, 0)
	var h packet.Header
	h.Parse(b, len(b))
	b[h.L4+13] = flags
	b[h.L4+16], b[h.L4+17] = 0, 0
	sum := ^packet.Checksum(b[h.L4:], packet.PseudoHeaderSum(packet.ProtoTCP, src.Addr(), dst.Addr(), 20))
	b[h.L4+16], b[h.L4+17] = byte(sum>>8), byte(sum)
	return b
}

func echo(reply bool, src, dst netip.Addr, id uint16) []byte {
	return packet.AppendEcho(nil, reply, src, dst, id, 1, 64, []byte("ping"))
}

// conversations are, by protocol, a packet of the host's and the container's answer to it.
func conversations(host, c netip.Addr) map[string][2][]byte {
	h, a := ap(host, 40000), ap(c, 80)
	raw := func(src, dst netip.Addr) []byte { return packet.AppendIP(nil, 132, src, dst, 64, 0, 0, 1, true) } // SCTP
	return map[string][2][]byte{
		"tcp":  {tcpPacket(h, a, packet.FlagSYN), tcpPacket(a, h, packet.FlagSYN|packet.FlagACK)},
		"udp":  {udpPacket(h, a, 64, []byte("question")), udpPacket(a, h, 64, []byte("answer"))},
		"icmp": {echo(false, host, c, 9), echo(true, c, host, 9)},
		"sctp": {raw(host, c), raw(c, host)},
	}
}

func TestHostReachesContainerAndHearsTheAnswer(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		for name := range conversations(outside(v4), outside(v4)) {
			t.Run(name, func(t *testing.T) {
				h := newHarness(t, nil)
				host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
				both := conversations(host.addr(v4), c.addr(v4))[name]
				host.send(both[0])
				if _, got := c.receive(); !bytes.Equal(got, both[0]) {
					t.Errorf("the packet changed:\n% x\n% x", both[0], got)
				}
				c.send(both[1])
				if _, got := host.receive(); !bytes.Equal(got, both[1]) {
					t.Errorf("the answer changed:\n% x\n% x", both[1], got)
				}
				host.wantDrops(map[string]uint64{})
				c.wantDrops(map[string]uint64{})
				wantHostFlow(t, h, len(both[0]), len(both[1]))
			})
		}
	})
}

func wantHostFlow(t *testing.T, h *harness, toContainer, fromContainer int) {
	t.Helper()
	var f Flow
	eventually(t, func() bool {
		flows := h.s.Flows()
		if len(flows) != 1 {
			t.Fatalf("flows %+v, want one", flows)
		}
		f = flows[0]
		return f.FromContainer.Packets > 0
	})
	if f.Link != "c" || f.Peer != "" || f.Direction != FlowHost || f.Source.Addr() != h.s.gateway(f.Source.Addr().Is4()) {
		t.Errorf("flow %+v", f)
	}
	if want := (Traffic{1, uint64(toContainer)}); f.ToContainer != want {
		t.Errorf("to the container %+v, want %+v", f.ToContainer, want)
	}
	if want := (Traffic{1, uint64(fromContainer)}); f.FromContainer != want {
		t.Errorf("from the container %+v, want %+v", f.FromContainer, want)
	}
}

// TestContainerOpensNothingToTheHost: with a host link and with a live flow of
// the host's beside, a container's own flows meet what they met before.
func TestContainerOpensNothingToTheHost(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		hostAddr := netip.MustParseAddr("192.0.2.99")
		if !v4 {
			hostAddr = netip.MustParseAddr("2001:db8::99")
		}
		cases := map[string]struct {
			packet func(c, gw netip.Addr) []byte
			drop   string
		}{
			"SYN to the gateway":           {func(c, gw netip.Addr) []byte { return tcpPacket(ap(c, 5000), ap(gw, 22), packet.FlagSYN) }, "policy_no_service"},
			"SYN back in the host's flow":  {func(c, gw netip.Addr) []byte { return tcpPacket(ap(c, 80), ap(gw, 40000), packet.FlagSYN) }, "flow_taken"},
			"UDP to the gateway":           {func(c, gw netip.Addr) []byte { return udpPacket(ap(c, 80), ap(gw, 40001), 64, nil) }, "policy_no_service"},
			"SYN to another host address":  {func(c, _ netip.Addr) []byte { return tcpPacket(ap(c, 5000), ap(hostAddr, 22), packet.FlagSYN) }, "policy_host_address"},
			"UDP to another host address":  {func(c, _ netip.Addr) []byte { return udpPacket(ap(c, 80), ap(hostAddr, 40000), 64, nil) }, "policy_host_address"},
			"echo to another host address": {func(c, _ netip.Addr) []byte { return echo(false, c, hostAddr, 9) }, "policy_host_address"},
			"echo reply out of nowhere":    {func(c, gw netip.Addr) []byte { return echo(true, c, gw, 10) }, "protocol"},
			"SCTP to the gateway": {func(c, gw netip.Addr) []byte {
				return packet.AppendIP(nil, 132, c, gw, 64, 0, 0, 1, true)
			}, "policy_no_service"},
			"error about a flow of nobody": {func(c, gw netip.Addr) []byte {
				return packet.AppendICMPError(nil, packet.ErrPortUnreachable, c, 0, udpPacket(ap(gw, 40000), ap(c, 81), 64, nil))
			}, "icmp_error"},
			"error about another's address": {func(c, gw netip.Addr) []byte {
				return packet.AppendICMPError(nil, packet.ErrPortUnreachable, c, 0, udpPacket(ap(gw, 40000), ap(otherThan(c), 80), 64, nil))
			}, "icmp_error"},
		}
		for name, tc := range cases {
			t.Run(name, func(t *testing.T) {
				h := newHarness(t, nil)
				h.s.SetHostAddrs([]netip.Addr{hostAddr}, nil)
				host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
				other := h.attach("other", 3, nil)
				host.send(udpPacket(ap(host.addr(v4), 40000), ap(other.addr(v4), 80), 64, nil))
				other.receive()
				for _, proto := range []string{"tcp", "udp", "icmp"} {
					host.send(conversations(host.addr(v4), c.addr(v4))[proto][0])
					c.receive()
				}
				c.send(tc.packet(c.addr(v4), host.addr(v4)))
				c.wantDrops(map[string]uint64{tc.drop: 1})
				host.quiet()
				host.wantDrops(map[string]uint64{})
			})
		}
	})
}

// otherThan is the address after a.
func otherThan(a netip.Addr) netip.Addr { return a.Next() }

// TestGatewayAnswersBesideAHostLink: what the gateway serves it still serves.
func TestGatewayAnswersBesideAHostLink(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
		host.send(echo(false, host.addr(v4), c.addr(v4), 9))
		c.receive()
		c.send(echo(false, c.addr(v4), host.addr(v4), 9)) // the same identifier, its own question
		_, got := c.receive()
		if hdr := parse(t, got); !hdr.IsEchoReply() {
			t.Errorf("answer %+v, want the gateway's echo reply", hdr)
		}
		host.quiet()
	})
}

func TestHostLearnsWhatCannotBeReached(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
		nobody := otherThan(c.addr(v4))
		host.send(tcpPacket(ap(host.addr(v4), 40000), ap(nobody, 80), packet.FlagSYN))
		_, got := host.receive()
		hdr := parse(t, got)
		// Not from the gateway: the host holds that address and would take an
		// error from itself for a martian.
		if !hdr.IsICMPError() || hdr.Src != nobody || hdr.Dst != host.addr(v4) {
			t.Errorf("answer %+v, want an unreachable from %v", hdr, nobody)
		}
		host.wantDrops(map[string]uint64{"policy_no_such_link": 1})
		if total := h.s.Stats().Drops["policy_no_such_link"]; total != 1 {
			t.Errorf("the network counts %d such drops, want 1", total)
		}
	})
}

func TestHostLinkRefusesForeignSources(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		foreign, own := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("192.0.2.99")
		if !v4 {
			foreign, own = netip.MustParseAddr("2001:db8:1::7"), netip.MustParseAddr("2001:db8::99")
		}
		for name, tc := range map[string]struct {
			src     netip.Addr
			forward bool
			pass    bool
		}{
			"the host's other address":       {own, false, true},
			"forwarded":                      {foreign, false, false},
			"forwarded, allowed":             {foreign, true, true},
			"a container's address":          {netip.MustParseAddr("10.88.0.9"), true, false},
			"a container's address, IPv6":    {netip.MustParseAddr("fd00:88::9"), true, false},
			"loopback":                       {netip.MustParseAddr("127.0.0.1"), true, false},
			"loopback, IPv6":                 {netip.IPv6Loopback(), true, false},
			"link-local, as if it were real": {netip.MustParseAddr("169.254.3.3"), true, false},
		} {
			if tc.src.Is4() != v4 {
				continue
			}
			t.Run(name, func(t *testing.T) {
				h := newHarness(t, nil)
				h.s.SetHostAddrs([]netip.Addr{own, netip.MustParseAddr("127.0.0.1")}, nil)
				host, c := h.attachHost("host", func(cfg *HostLinkConfig) { cfg.Forward = tc.forward }), h.attach("c", 2, nil)
				host.send(udpPacket(ap(tc.src, 40000), ap(c.addr(v4), 80), 64, nil))
				if !tc.pass {
					host.wantDrops(map[string]uint64{"spoofed_source": 1})
					c.quiet()
					return
				}
				c.receive()
				c.send(udpPacket(ap(c.addr(v4), 80), ap(tc.src, 40000), 64, []byte("answer")))
				host.receive()
				c.wantDrops(map[string]uint64{})
			})
		}
	})
}

// TestErrorsPassInTheHostsFlows: each side hears what became of its packets.
func TestErrorsPassInTheHostsFlows(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		for _, proto := range []string{"tcp", "udp", "icmp"} {
			t.Run(proto, func(t *testing.T) {
				h := newHarness(t, nil)
				host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
				both := conversations(host.addr(v4), c.addr(v4))[proto]
				host.send(both[0])
				c.receive()
				about := packet.AppendICMPError(nil, packet.ErrPortUnreachable, c.addr(v4), 0, both[0])
				c.send(about)
				if _, got := host.receive(); !bytes.Equal(got, about) {
					t.Errorf("the host got % x", got)
				}
				c.send(both[1])
				host.receive()
				about = packet.AppendICMPError(nil, packet.ErrPortUnreachable, host.addr(v4), 0, both[1])
				host.send(about)
				if _, got := c.receive(); !bytes.Equal(got, about) {
					t.Errorf("the container got % x", got)
				}
				host.wantDrops(map[string]uint64{})
				c.wantDrops(map[string]uint64{})
			})
		}
	})
}

// TestHostCountsWhatOpensNothing: answers that nobody waits for.
func TestHostCountsWhatOpensNothing(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
		gw := host.addr(v4)
		host.send(tcpPacket(ap(gw, 1), ap(c.addr(v4), 2), packet.FlagRST))
		host.send(echo(true, gw, c.addr(v4), 3))
		host.send(packet.AppendICMPError(nil, packet.ErrPortUnreachable, gw, 0, udpPacket(ap(c.addr(v4), 1), ap(gw, 2), 64, nil)))
		host.send(udpPacket(ap(gw, 68), ap(c.addr(v4), 67), 64, nil))
		host.wantDrops(map[string]uint64{"no_flow": 2, "icmp_error": 1, "dhcp": 1})
		c.quiet()
		if flows := h.s.Flows(); len(flows) != 0 {
			t.Errorf("flows %+v", flows)
		}
	})
}

// TestHostTakesNoFlowOfTheSwitch: the resolver's address and port are its own.
func TestHostTakesNoFlowOfTheSwitch(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
		host.send(udpPacket(ap(host.addr(v4), dnsPort), ap(c.addr(v4), 5353), 64, nil))
		host.wantDrops(map[string]uint64{"flow_taken": 1})
		c.quiet()
	})
}

// TestFragmentedAnswersReachTheHost: the switch judges whole packets, so it puts
// them together.
func TestFragmentedAnswersReachTheHost(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
		big := bytes.Repeat([]byte("fragment"), 500)
		fragmented := func(from *end, pkt []byte) {
			if err := packet.Fragments(pkt, 1500, 77, func(f []byte) error { from.send(f); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		question := udpPacket(ap(host.addr(v4), 40000), ap(c.addr(v4), 80), 64, big)
		fragmented(host, question)
		if got := gathered(t, c); !bytes.Equal(got, big) {
			t.Errorf("the container got %d bytes", len(got))
		}
		fragmented(c, udpPacket(ap(c.addr(v4), 80), ap(host.addr(v4), 40000), 64, big))
		if got := gathered(t, host); !bytes.Equal(got, big) {
			t.Errorf("the host got %d bytes", len(got))
		}
		fragmented(c, udpPacket(ap(c.addr(v4), 80), ap(host.addr(v4), 40001), 64, big))
		c.wantDrops(map[string]uint64{"policy_no_service": 1})
		host.wantDrops(map[string]uint64{})
	})
}

// gathered receives fragments until they make a packet, and returns its payload.
func gathered(t *testing.T, e *end) []byte {
	t.Helper()
	r := packet.NewReassembler(packet.ReassemblyLimits{Bytes: 1 << 20})
	for {
		_, b := e.receive()
		h := parse(t, b)
		if !h.Fragment {
			return b[h.Payload:]
		}
		if whole, _ := r.Add(&h, [][]byte{b}, time.Now()); whole != nil {
			h = parse(t, whole)
			return whole[h.Payload:]
		}
	}
}

func TestSuperframesCrossTheHostLinkWhole(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
		payload := bytes.Repeat([]byte("0123456789abcdef"), 3900)
		hdr, pkt := tcpSuperframe(ap(host.addr(v4), 40000), ap(c.addr(v4), 80), payload, 1400)
		host.sendFrame(hdr, pkt)
		if gotHdr, got := c.receive(); gotHdr != hdr || !bytes.Equal(got, pkt) {
			t.Errorf("to the container: %+v, %d bytes", gotHdr, len(got))
		}
		hdr, pkt = tcpSuperframe(ap(c.addr(v4), 80), ap(host.addr(v4), 40000), payload, 1400)
		c.sendFrame(hdr, pkt)
		if gotHdr, got := host.receive(); gotHdr != hdr || !bytes.Equal(got, pkt) {
			t.Errorf("to the host: %+v, %d bytes", gotHdr, len(got))
		}
	})
}

// TestHostLinkLeavesWithItsFlows: what it had opened ends with it, and the
// container's packets are judged as before.
func TestHostLinkLeavesWithItsFlows(t *testing.T) {
	h := newHarness(t, nil)
	host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
	_, err := h.s.AttachHost(host.dev, HostLinkConfig{Name: "HOST"})
	isErr(t, err, ErrNameInUse)
	host.send(udpPacket(ap(host.v4, 40000), ap(c.v4, 80), 64, nil))
	c.receive()
	if diff := cmp.Diff([]*Link{host.link}, h.s.HostLinks(), cmp.Comparer(func(a, b *Link) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if err := host.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := h.s.flows.hostFlows.Load(); n != 0 || len(h.s.HostLinks()) != 0 {
		t.Errorf("%d host flows, %d host links left", n, len(h.s.HostLinks()))
	}
	c.send(udpPacket(ap(c.v4, 80), ap(host.v4, 40000), 64, nil))
	c.wantDrops(map[string]uint64{"policy_no_service": 1})
	if h.s.Link("c") != c.link {
		t.Error("the container's link went, too")
	}
}

// TestHostFlowsEnd: the sweeper counts them down, and a connection on ports that
// were used before is not swept with the one before.
func TestHostFlowsEnd(t *testing.T) {
	h := newHarness(t, nil)
	host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
	far, near := ap(host.v4, 40000), ap(c.v4, 80)
	exchange := func(flags uint8) {
		host.send(tcpPacket(far, near, flags))
		c.receive()
		c.send(tcpPacket(near, far, flags|packet.FlagACK))
		host.receive()
	}
	exchange(packet.FlagSYN)
	exchange(packet.FlagFIN | packet.FlagACK)
	exchange(packet.FlagSYN)
	h.s.flows.sweep()
	h.s.flows.sweep()
	if n := h.s.flows.hostFlows.Load(); n != 1 {
		t.Fatalf("%d host flows, want the new connection's", n)
	}
	exchange(packet.FlagRST)
	h.s.flows.sweep()
	h.s.flows.sweep()
	if n, peers := h.s.flows.hostFlows.Load(), host.link.peerFlows.Load(); n != 0 || peers != 0 {
		t.Errorf("%d host flows, %d of the link, want none", n, peers)
	}
}

func TestHostLinkConfigIsJudged(t *testing.T) {
	h := newHarness(t, nil)
	for _, cfg := range []HostLinkConfig{{}, {Name: "-"}, {Name: "host", MTU: 100}} {
		if _, err := h.s.AttachHost(newSink(), cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
	if err := h.s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := h.s.AttachHost(newSink(), HostLinkConfig{Name: "host"})
	isErr(t, err, ErrClosed)
}
