package netstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

func families(t *testing.T, f func(t *testing.T, v4 bool)) {
	t.Run("v4", func(t *testing.T) { f(t, true) })
	t.Run("v6", func(t *testing.T) { f(t, false) })
}

func TestPeersExchangePacketsVerbatim(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		a, b := h.attach("a", 2, nil), h.attach("b", 3, nil)
		sent := udpPacket(ap(a.addr(v4), 1000), ap(b.addr(v4), 2000), 64, []byte("hello"))
		a.send(sent)
		_, got := b.receive()
		hdr := parse(t, got)
		if hdr.HopLimit != 63 {
			t.Errorf("hop limit %d, want 63", hdr.HopLimit)
		}
		if !packet.ValidL4Checksum(&hdr, [][]byte{got}) {
			t.Error("UDP checksum is wrong")
		}
		if !bytes.Equal(got[hdr.L4:], sent[hdr.L4:]) {
			t.Errorf("payload changed:\n% x\n% x", sent, got)
		}
		b.send(udpPacket(ap(b.addr(v4), 2000), ap(a.addr(v4), 1000), 64, []byte("back")))
		a.receive()
		a.wantDrops(map[string]uint64{})

		// A packet is counted after it is sent.
		nstest.WaitFor(t, testTimeout, func() bool {
			flows := h.s.Flows()
			return len(flows) != 1 || flows[0].ToContainer.Packets > 0
		})
		flows := h.s.Flows()
		if len(flows) != 1 {
			t.Fatalf("%d flows, want 1: %+v", len(flows), flows)
		}
		f := flows[0]
		if f.Link != "a" || f.Peer != "b" || f.Direction != FlowPeer || f.Proto != "udp" ||
			f.FromContainer.Packets != 1 || f.ToContainer.Packets != 1 {
			t.Errorf("flow %+v", f)
		}
	})
}

// tcpSuperframe is what a container's kernel hands over for one big write: one
// set of headers, the checksum left open, the segment size in the header.
func tcpSuperframe(src, dst netip.AddrPort, payload []byte, mss int) (tunnel.Header, []byte) {
	b := packet.AppendIP(nil, packet.ProtoTCP, src.Addr(), dst.Addr(), 64, 0, 20+len(payload), 7, true)
	l4 := len(b)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 1, 5<<4, packet.FlagACK, 0xff, 0xff, 0, 0, 0, 0)
	sum := packet.PseudoHeaderSum(packet.ProtoTCP, src.Addr(), dst.Addr(), 20+len(payload))
	binary.BigEndian.PutUint16(b[l4+16:], sum)
	gso := uint8(tunnel.GSOTCPv4)
	if src.Addr().Is6() {
		gso = tunnel.GSOTCPv6
	}
	hdr := tunnel.Header{
		Flags: tunnel.FlagNeedsCsum, GSOType: gso, HdrLen: uint16(l4 + 20), GSOSize: uint16(mss),
		CsumStart: uint16(l4), CsumOffset: 16,
	}
	return hdr, append(b, payload...)
}

func TestPeersExchangeSuperframesWhole(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		a, b := h.attach("a", 2, nil), h.attach("b", 3, nil)
		payload := bytes.Repeat([]byte("0123456789abcdef"), 3900) // 62,400 bytes
		hdr, pkt := tcpSuperframe(ap(a.addr(v4), 1000), ap(b.addr(v4), 2000), payload, 1400)
		a.sendFrame(hdr, pkt)
		gotHdr, got := b.receive()
		if gotHdr != hdr {
			t.Errorf("virtio header %+v, want %+v", gotHdr, hdr)
		}
		if !bytes.HasSuffix(got, payload) || len(got) != len(pkt) {
			t.Errorf("superframe of %d bytes arrived as %d", len(pkt), len(got))
		}
	})
}

func TestHopLimitEndsAtTheSwitch(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		for _, target := range []string{"peer", "outside"} {
			t.Run(target, func(t *testing.T) {
				h := newHarness(t, nil)
				a, b := h.attach("a", 2, nil), h.attach("b", 3, nil)
				dst := b.addr(v4)
				if target == "outside" {
					dst = outside(v4)
				}
				a.send(udpPacket(ap(a.addr(v4), 1000), ap(dst, 33434), 1, nil))
				_, got := a.receive()
				hdr := parse(t, got)
				wantType, wantCode := uint8(11), uint8(0) // RFC 792: time exceeded in transit
				if !v4 {
					wantType = 3 // RFC 4443 §3.3
				}
				if hdr.Src != h.s.gateway(v4) || hdr.ICMPType != wantType || hdr.ICMPCode != wantCode {
					t.Errorf("answer %+v, want time exceeded from the gateway", hdr)
				}
				b.quiet()
				a.wantDrops(map[string]uint64{"hop_limit": 1})
			})
		}
	})
}

func outside(v4 bool) netip.Addr {
	if v4 {
		return netip.MustParseAddr("203.0.113.7")
	}
	return netip.MustParseAddr("2001:db8::7")
}

func TestPeerMTU(t *testing.T) {
	small := func(c *LinkConfig) { c.MTU = 1280 }
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		a, b := h.attach("a", 2, nil), h.attach("b", 3, small)
		hdr, pkt := tcpSuperframe(ap(a.addr(v4), 1), ap(b.addr(v4), 2), make([]byte, 30000), 1440)
		a.sendFrame(hdr, pkt)
		_, got := a.receive()
		answer := parse(t, got)
		if v4 {
			if answer.ICMPType != 3 || answer.ICMPCode != 4 { // RFC 1191: fragmentation needed
				t.Errorf("answer %+v, want fragmentation needed", answer)
			}
			if mtu := binary.BigEndian.Uint16(got[answer.L4+6:]); mtu != 1280 {
				t.Errorf("next-hop MTU %d, want 1280", mtu)
			}
		} else {
			if answer.ICMPType != 2 { // RFC 4443 §3.2: packet too big
				t.Errorf("answer %+v, want packet too big", answer)
			}
			if mtu := binary.BigEndian.Uint32(got[answer.L4+4:]); mtu != 1280 {
				t.Errorf("MTU %d, want 1280", mtu)
			}
		}
		b.quiet()
		a.wantDrops(map[string]uint64{"too_big": 1})

		// Segments that fit pass, however big the superframe is.
		hdr, pkt = tcpSuperframe(ap(a.addr(v4), 1), ap(b.addr(v4), 2), make([]byte, 30000), 1200)
		a.sendFrame(hdr, pkt)
		b.receive()
	})
}

func TestPeerFragmentsWhatMayBeFragmented(t *testing.T) {
	h := newHarness(t, nil)
	a, b := h.attach("a", 2, nil), h.attach("b", 3, func(c *LinkConfig) { c.MTU = 1280 })
	payload := bytes.Repeat([]byte("x"), 1400)
	a.send(udpPacket(ap(a.v4, 1), ap(b.v4, 2), 64, payload)) // DF clear
	whole := packet.NewReassembler(packet.ReassemblyLimits{})
	for range 2 {
		_, frag := b.receive()
		if len(frag) > 1280 {
			t.Errorf("fragment of %d bytes", len(frag))
		}
		hdr := parse(t, frag)
		if got, _ := whole.Add(&hdr, [][]byte{frag}, testNow); got != nil {
			if !bytes.HasSuffix(got, payload) {
				t.Error("payload changed")
			}
			return
		}
	}
	t.Error("fragments do not make the datagram")
}

// TestHostileFrames sends what no honest kernel would. Each is counted once,
// under one name, and nothing else happens but the answer stated.
func TestHostileFrames(t *testing.T) {
	h := newHarness(t, nil)
	victim := h.attach("victim", 9, nil)
	n := byte(9)
	for _, tt := range hostileFrames() {
		t.Run(tt.name, func(t *testing.T) {
			n++
			a := h.attach(fmt.Sprintf("a%d", n), n, nil)
			a.t = t
			hdr, pkt := tt.frame(a, victim)
			a.sendFrame(hdr, pkt)
			a.wantDrops(map[string]uint64{tt.drop: 1})
			victim.quiet()
			if tt.answered {
				a.receive()
			}
			a.quiet()
		})
	}
}

type hostileFrame struct {
	name     string
	drop     string
	answered bool
	frame    func(a, victim *end) (tunnel.Header, []byte)
}

func plain(build func(a, victim *end) []byte) func(a, victim *end) (tunnel.Header, []byte) {
	return func(a, victim *end) (tunnel.Header, []byte) { return tunnel.Header{}, build(a, victim) }
}

func hostileFrames() []hostileFrame {
	to := func(proto uint8, dst string) func(a, victim *end) []byte {
		return func(a, victim *end) []byte {
			d := netip.MustParseAddr(dst)
			return append(packet.AppendIP(nil, proto, a.addr(d.Is4()), d, 64, 0, 8, 1, false), 130, 0, 0, 0, 0, 0, 0, 0)
		}
	}
	icmp := func(typ byte, v4 bool) func(a, victim *end) []byte {
		return func(a, victim *end) []byte {
			proto := packet.ProtoICMPv6
			if v4 {
				proto = packet.ProtoICMP
			}
			b := packet.AppendIP(nil, proto, a.addr(v4), victim.addr(v4), 255, 0, 48, 1, false)
			return append(b, append([]byte{typ}, make([]byte, 47)...)...)
		}
	}
	udp := func(port uint16, src func(a, victim *end) netip.Addr, dst func(a, victim *end) netip.Addr) func(a, victim *end) []byte {
		return func(a, victim *end) []byte {
			return udpPacket(ap(src(a, victim), 999), ap(dst(a, victim), port), 64, []byte("x"))
		}
	}
	own4 := func(a, _ *end) netip.Addr { return a.v4 }
	own6 := func(a, _ *end) netip.Addr { return a.v6 }
	victim4 := func(_, v *end) netip.Addr { return v.v4 }
	victim6 := func(_, v *end) netip.Addr { return v.v6 }
	fixed := func(s string) func(a, v *end) netip.Addr {
		return func(_, _ *end) netip.Addr { return netip.MustParseAddr(s) }
	}
	return []hostileFrame{
		{"truncated", "truncated", false, plain(func(a, v *end) []byte { return udp(1, own4, victim4)(a, v)[:15] })},
		{"version 5", "version", false, plain(func(a, v *end) []byte {
			b := udp(1, own4, victim4)(a, v)
			b[0] = 5<<4 | 5
			return b
		})},
		{"length beyond the frame", "length", false, plain(func(a, v *end) []byte {
			b := udp(1, own6, victim6)(a, v)
			b[5] += 9
			return b
		})},
		{"virtio checksum outside the packet", "virtio_header", false, func(a, v *end) (tunnel.Header, []byte) {
			return tunnel.Header{Flags: tunnel.FlagNeedsCsum, CsumStart: 60000, CsumOffset: 16}, udp(1, own4, victim4)(a, v)
		}},
		{"superframe without segment size", "virtio_header", false, func(a, v *end) (tunnel.Header, []byte) {
			hdr, pkt := tcpSuperframe(ap(a.v4, 1), ap(v.v4, 2), make([]byte, 3000), 0)
			return hdr, pkt
		}},
		{"spoofed v4", "spoofed_source", false, plain(udp(1, victim4, victim4))},
		{"spoofed v6", "spoofed_source", false, plain(udp(1, fixed("fd00:88::77"), victim6))},
		{"source 0.0.0.0", "spoofed_source", false, plain(udp(1, fixed("0.0.0.0"), victim4))},
		{"source is the gateway", "spoofed_source", false, plain(udp(1, fixed("10.88.0.1"), victim4))},
		{"to itself v4", "loop", false, plain(udp(1, own4, own4))},
		{"to itself v6", "loop", false, plain(udp(1, own6, own6))},
		{"router advertisement", "router_advertisement", false, plain(icmp(134, false))},
		{"redirect v6", "router_advertisement", false, plain(icmp(137, false))},
		{"redirect v4", "router_advertisement", false, plain(icmp(5, true))},
		{"neighbour advertisement", "neighbor_discovery", false, plain(icmp(136, false))},
		{"DHCP", "dhcp", false, plain(udp(67, own4, fixed("255.255.255.255")))},
		{"DHCPv6", "dhcp", false, plain(udp(547, own6, fixed("ff02::1:2")))},
		{"IGMP", "neighbor_discovery", false, plain(to(2, "224.0.0.22"))},
		{"multicast", "policy_multicast", false, plain(udp(5353, own4, fixed("224.0.0.251")))},
		{"broadcast", "policy_broadcast", false, plain(udp(9, own4, fixed("10.88.0.255")))},
		{"host's loopback", "policy_loopback", true, plain(udp(9, own4, fixed("127.0.0.1")))},
		{"cloud metadata", "policy_metadata", true, plain(udp(9, own4, fixed("169.254.169.254")))},
		{"nobody's address", "policy_no_such_link", true, plain(udp(9, own4, fixed("10.88.0.200")))},
		{"gateway's closed port", "policy_no_service", true, plain(udp(9, own4, fixed("10.88.0.1")))},
		{"SCTP to the outside", "protocol", true, plain(to(132, "203.0.113.7"))},
	}
}

// TestClosedGatewayPortResets also proves that policy judges TCP fragments as
// the segment that they make.
func TestClosedGatewayPortResets(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		a := h.attach("a", 2, nil)
		_, syn := tcpSuperframe(ap(a.addr(v4), 1000), ap(h.s.gateway(v4), 81), make([]byte, 1300), 0)
		var hdr packet.Header
		if fault := hdr.Parse(syn, len(syn)); fault != packet.FaultNone {
			t.Fatal(fault)
		}
		syn[hdr.L4+13] = packet.FlagSYN
		for _, mtu := range []int{1500, 1280} {
			sendFragments(t, a, syn, mtu)
			_, got := a.receive()
			if rst := parse(t, got); rst.Proto != packet.ProtoTCP || rst.TCPFlags&packet.FlagRST == 0 || rst.DstPort != 1000 {
				t.Errorf("answer %+v, want a reset", rst)
			}
		}
		a.wantDrops(map[string]uint64{"policy_no_service": 2})
	})
}

// TestStrayFragmentedSegmentIsReset: the stack gets segments whole, and resets
// what belongs to no connection.
func TestStrayFragmentedSegmentIsReset(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		a := h.attach("a", 2, nil)
		_, seg := tcpSuperframe(ap(a.addr(v4), 1000), ap(outside(v4), 80), make([]byte, 1300), 0)
		var hdr packet.Header
		if fault := hdr.Parse(seg, len(seg)); fault != packet.FaultNone {
			t.Fatal(fault)
		}
		seg[hdr.L4+16], seg[hdr.L4+17] = 0, 0
		sum := packet.PseudoHeaderSum(packet.ProtoTCP, a.addr(v4), outside(v4), len(seg)-hdr.L4)
		binary.BigEndian.PutUint16(seg[hdr.L4+16:], ^packet.Checksum(seg[hdr.L4:], sum))
		sendFragments(t, a, seg, 1280)
		_, got := a.receive()
		if rst := parse(t, got); rst.Proto != packet.ProtoTCP || rst.TCPFlags&packet.FlagRST == 0 {
			t.Errorf("answer %+v, want a reset", rst)
		}
		a.wantDrops(map[string]uint64{})

		seg[len(seg)-1] ^= 1 // what nobody vouches for is checked
		sendFragments(t, a, seg, 1280)
		a.wantDrops(map[string]uint64{"checksum": 1})
		a.quiet()
	})
}

// sendFragments sends a packet in pieces of at most mtu bytes.
func sendFragments(t *testing.T, from *end, pkt []byte, mtu int) {
	t.Helper()
	if len(pkt) <= mtu {
		from.send(pkt)
		return
	}
	if pkt[0]>>4 == 4 {
		pkt[6] &^= 0x40 // DF
		pkt[10], pkt[11] = 0, 0
		binary.BigEndian.PutUint16(pkt[10:], ^packet.Checksum(pkt[:20], 0))
	}
	n := 0
	if err := packet.Fragments(pkt, mtu, 99, func(frag []byte) error { n++; from.send(bytes.Clone(frag)); return nil }); err != nil || n < 2 {
		t.Fatalf("%d fragments, %v", n, err)
	}
}

func TestFamilyWithoutGatewayIsOff(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Gateways = c.Gateways[:1] })
	a := h.attach("a", 2, nil)
	a.send(udpPacket(ap(a.v6, 1), ap(outside(false), 2), 64, nil))
	a.wantDrops(map[string]uint64{"family_off": 1})
}

func TestPeerFlowLimit(t *testing.T) {
	h := newHarness(t, nil)
	a := h.attach("a", 2, func(c *LinkConfig) { c.Limits = &Limits{PeerFlows: 3} })
	b := h.attach("b", 3, nil)
	for port := range uint16(5) {
		a.send(udpPacket(ap(a.v4, 1000+port), ap(b.v4, 2), 64, nil))
	}
	for range 3 {
		b.receive()
	}
	a.wantDrops(map[string]uint64{"flow_limit": 2})
	// Only the offender suffers.
	b.send(udpPacket(ap(b.v4, 5), ap(a.v4, 6), 64, nil))
	a.receive()
}

func TestPeerTCPFlowEndsByFIN(t *testing.T) {
	h := newHarness(t, nil)
	a, b := h.attach("a", 2, nil), h.attach("b", 3, nil)
	segment := func(from, to *end, sport, dport uint16, flags uint8) {
		_, pkt := tcpSuperframe(ap(from.v4, sport), ap(to.v4, dport), nil, 0)
		pkt[20+13] = flags
		from.sendFrame(tunnel.Header{Flags: tunnel.FlagDataValid}, pkt)
		to.receive()
	}
	segment(a, b, 1, 2, packet.FlagSYN)
	segment(b, a, 2, 1, packet.FlagSYN|packet.FlagACK)
	segment(a, b, 1, 2, packet.FlagFIN|packet.FlagACK)
	segment(b, a, 2, 1, packet.FlagFIN|packet.FlagACK)
	var flows []Flow
	nstest.WaitFor(t, testTimeout, func() bool { // the reader counts a packet after it is sent
		h.s.flows.sweep() // sees the last packets, and the next time none since
		flows = h.s.Flows()
		return len(flows) != 1 || flows[0].End != nil
	})
	if len(flows) != 1 || flows[0].Verdict != FlowForwarded || flows[0].Reason != "" {
		t.Errorf("flows %+v, want one that ended in order", flows)
	}
	if n := a.link.peerFlows.Load(); n != 0 {
		t.Errorf("link still counts %d flows", n)
	}
}
