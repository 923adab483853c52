package packet

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func netipPort(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

func mapped(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }

// TestBuildersMatchGopacket: what we build is byte for byte what gopacket
// builds, in front of what the buffer held.
func TestBuildersMatchGopacket(t *testing.T) {
	for _, n := range []int{0, 1, 2, 101, 1400} {
		payload := pattern(n)
		want := samples(t, payload)
		prefix := []byte("prefix")
		udpPacket := func(src, dst netip.Addr) []byte {
			b := AppendIP(bytes.Clone(prefix), ProtoUDP, src, dst, 9, 3, 8+n, 77, false)
			b = AppendUDPHeader(b, netipPort(src, 5353), netipPort(dst, 53), scatter(payload, 7))
			return append(b, payload...)
		}
		for name, got := range map[string][]byte{
			"UDP over IPv4": udpPacket(a4, b4),
			"UDP over IPv6": udpPacket(a6, b6),
		} {
			if diff := cmp.Diff(append([]byte("prefix"), want[name]...), got); diff != "" {
				t.Errorf("%s with %d bytes (-gopacket +ours):\n%s", name, n, diff)
			}
		}
		if got := udpPacket(mapped(a4), mapped(b4)); !bytes.Equal(got[6:], want["UDP over IPv4"]) {
			t.Errorf("IPv4-mapped addresses: got % x", got)
		}
		for name, got := range map[string][]byte{
			"ICMP":   AppendEcho(bytes.Clone(prefix), false, a4, b4, 0x0102, 0x0304, 9, payload),
			"ICMPv6": AppendEcho(bytes.Clone(prefix), false, a6, b6, 0x0102, 0x0304, 9, payload),
		} {
			w := bytes.Clone(want[name])
			w[1] = got[6+1] // gopacket's TOS 3; ours is always 0
			if name == "ICMP" {
				w[4], w[5] = 1, 2 // the echo identifier is the IP identification
				reseal(w)
			}
			if diff := cmp.Diff(append([]byte("prefix"), w...), got); diff != "" {
				t.Errorf("%s with %d bytes (-gopacket +ours):\n%s", name, n, diff)
			}
		}
	}
}

func TestAppendEcho(t *testing.T) {
	for _, c := range []struct {
		src, dst netip.Addr
		reply    bool
		typ      uint8
	}{{a4, b4, false, 8}, {a4, b4, true, 0}, {a6, b6, false, 128}, {a6, b6, true, 129}} {
		pkt := AppendEcho(nil, c.reply, c.src, c.dst, 7, 8, 0, []byte("hello"))
		h := parse(t, pkt)
		if h.Src != c.src || h.Dst != c.dst || h.ICMPType != c.typ || h.SrcPort != 7 || h.DstPort != 7 || h.ICMPSeq != 8 || h.HopLimit != 64 {
			t.Errorf("got %+v", h)
		}
		if h.IsEchoReply() != c.reply || h.IsEchoRequest() == c.reply || string(pkt[h.Payload:]) != "hello" {
			t.Errorf("reply %v: got %+v with %q", c.reply, h, pkt[h.Payload:])
		}
		if !ValidL4Checksum(&h, [][]byte{pkt}) {
			t.Error("checksum is wrong")
		}
	}
}

// TestAppendIPMixedFamilies: a caller's mistake costs a packet, not the process.
func TestAppendIPMixedFamilies(t *testing.T) {
	AppendIP(nil, 17, a6, b4, 64, 0, 8, 0, false)
	AppendIP(nil, 17, a4, b6, 64, 0, 8, 0, false)
	AppendIP(nil, 17, netip.Addr{}, b4, 64, 0, 8, 0, false)
	AppendUDPHeader(nil, netipPort(a6, 1), netipPort(b4, 1), nil)
}

// TestNoAllocations: nothing on the path of every packet allocates, given a
// buffer with room.
func TestNoAllocations(t *testing.T) {
	v4, v6 := samples(t, pattern(1400))["TCP over IPv4"], samples(t, pattern(1400))["UDP over IPv6"]
	bufs4, bufs6 := scatter(v4, 118), scatter(v6, 118)
	var h4, h6 Header
	h4.Parse(v4, len(v4))
	h6.Parse(v6, len(v6))
	buf := make([]byte, 0, 2048)
	for name, f := range map[string]func(){
		"Parse":             func() { h4.Parse(bufs4[0], len(v4)); h6.Parse(bufs6[0], len(v6)) },
		"DecrementHopLimit": func() { DecrementHopLimit(v4) },
		"Checksum":          func() { Checksum(v4, 0); ChecksumSlices(bufs4, 0) },
		"ValidL4Checksum":   func() { ValidL4Checksum(&h4, bufs4); ValidL4Checksum(&h6, bufs6) },
		"AppendIP":          func() { AppendIP(buf, 17, a4, b4, 64, 0, 8, 0, true); AppendIP(buf, 17, a6, b6, 64, 0, 8, 0, true) },
		"AppendUDPHeader":   func() { AppendUDPHeader(buf, netipPort(a6, 1), netipPort(b6, 2), bufs6) },
		"AppendEcho":        func() { AppendEcho(buf, true, a6, b6, 1, 2, 3, v4) },
		"AppendICMPError": func() {
			AppendICMPError(buf, ErrTooBig, b6, 1400, v6)
			AppendICMPError(buf, ErrAdminProhibited, b4, 0, v4)
		},
		"AppendTCPReset": func() { AppendTCPReset(buf, v4) },
		"Ends":           func() { h4.SrcAddrPort(); h6.DstAddrPort() },
	} {
		v4[8] = 200
		reseal(v4)
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	packets := samples(b, pattern(1400))
	packets["UDP over IPv6 with options"] = ip6(0, opts6(60), opts6(17), udp(pattern(1400)...))
	packets["superframe"] = ip4(6, 0, nil, tcp(16, pattern(65000)...))
	for name, pkt := range packets {
		b.Run(name, func(b *testing.B) {
			var h Header
			head := pkt[:min(HeadLen, len(pkt))]
			b.ReportAllocs()
			for b.Loop() {
				if h.Parse(head, len(pkt)) != FaultNone {
					b.Fatal("fault")
				}
			}
		})
	}
}
