package packet

import (
	"net/netip"
	"testing"
)

// TestParseIPv4TCP reads a SYN byte by byte.
func TestParseIPv4TCP(t *testing.T) {
	pkt := []byte{
		0x45,       // version 4, header of 5 words
		0x10,       // TOS: low delay
		0x00, 0x2c, // total length 44
		0xbe, 0xef, // identification
		0x40, 0x00, // flags: DF; offset 0
		0x3f,       // TTL 63
		0x06,       // protocol TCP
		0xb0, 0x75, // header checksum
		0x0a, 0x05, 0x00, 0x02, // source 10.5.0.2
		0xc0, 0x00, 0x02, 0x50, // destination 192.0.2.80
		0x9c, 0x40, // source port 40000
		0x01, 0xbb, // destination port 443
		0x00, 0x00, 0x00, 0x01, // sequence number
		0x00, 0x00, 0x00, 0x00, // acknowledgment number
		0x60,       // data offset: 6 words
		0xc2,       // flags: CWR ECE SYN
		0xff, 0xff, // window
		0x00, 0x00, // checksum, left to the device
		0x00, 0x00, // urgent pointer
		0x02, 0x04, 0x05, 0xb4, // option: MSS 1460
	}
	want := Header{
		Version: 4, Proto: ProtoTCP, HopLimit: 63, TOS: 0x10, FragID: 0xbeef, DontFragment: true,
		Src: a4, Dst: b4, SrcPort: 40000, DstPort: 443, TCPFlags: FlagSYN, L4: 20, Payload: 44, Len: 44,
	}
	h := parse(t, pkt)
	if h != want {
		t.Errorf("got  %+v\nwant %+v", h, want)
	}
	if h.SrcAddrPort() != netip.MustParseAddrPort("10.5.0.2:40000") || h.DstAddrPort() != netip.MustParseAddrPort("192.0.2.80:443") {
		t.Errorf("ends are %v and %v", h.SrcAddrPort(), h.DstAddrPort())
	}
}

// TestParseIPv6UDP reads a datagram behind hop-by-hop and destination options.
func TestParseIPv6UDP(t *testing.T) {
	pkt := []byte{
		0x6b, 0x80, 0x00, 0x01, // version 6, traffic class 0xb8, flow label 1
		0x00, 0x1a, // payload length 26
		0x00,                                                    // next header: hop-by-hop options
		0x40,                                                    // hop limit 64
		0xfd, 0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, // source fd05::2
		0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, // destination 2001:db8::80
		0x3c, 0x00, // hop-by-hop: next is destination options; 8 bytes
		0x05, 0x02, 0x00, 0x00, // router alert: MLD
		0x01, 0x00, // PadN of 2
		0x11, 0x00, // destination options: next is UDP; 8 bytes
		0x00,                         // Pad1
		0x01, 0x03, 0x00, 0x00, 0x00, // PadN of 5
		0x14, 0xe9, // source port 5353
		0x00, 0x35, // destination port 53
		0x00, 0x0a, // length 10
		0x12, 0x34, // checksum, not looked at
		0xaa, 0xbb, // payload
	}
	want := Header{
		Version: 6, Proto: ProtoUDP, HopLimit: 64, TOS: 0xb8, DontFragment: true,
		Src: a6, Dst: b6, SrcPort: 5353, DstPort: 53, L4: 56, Payload: 64, Len: 66,
	}
	if h := parse(t, pkt); h != want {
		t.Errorf("got  %+v\nwant %+v", h, want)
	}
}

// TestParseAccepts lists packets that are unusual and right.
func TestParseAccepts(t *testing.T) {
	v4 := Header{Version: 4, HopLimit: 64, FragID: 0x1234, Src: a4, Dst: b4, L4: 20}
	v6 := Header{Version: 6, HopLimit: 64, DontFragment: true, Src: a6, Dst: b6, L4: 40}
	for _, c := range []struct {
		name string
		pkt  []byte
		base Header
		edit func(h *Header)
	}{
		{"IPv4 without payload", ip4(132, 0, nil, nil), v4, func(h *Header) { h.Proto, h.Payload = 132, 20 }},
		{"IPv4 padding options", ip4(132, 0, []byte{1, 1, 1, 0}, nil), v4, func(h *Header) { h.Proto, h.L4, h.Payload = 132, 24, 24 }},
		{"IPv4 garbage behind end of options", ip4(132, 0, []byte{0, 131, 7, 4}, nil), v4, func(h *Header) { h.Proto, h.L4, h.Payload = 132, 24, 24 }},
		{"IPv4 router alert", ip4(2, 0, []byte{148, 4, 0, 0}, make([]byte, 8)), v4, func(h *Header) { h.Proto, h.L4, h.Payload = 2, 24, 24 }},
		{"IPv4 longest header", ip4(ProtoTCP, 0, make([]byte, 40), tcp(FlagACK)), v4, func(h *Header) {
			h.Proto, h.L4, h.Payload, h.SrcPort, h.DstPort, h.TCPFlags = ProtoTCP, 60, 80, 40000, 443, FlagACK
		}},
		{"IPv4 echo request", ip4(ProtoICMP, 0, nil, echo(8)), v4, func(h *Header) {
			h.Proto, h.Payload, h.ICMPType, h.SrcPort, h.DstPort, h.ICMPSeq = ProtoICMP, 28, 8, 0x0102, 0x0102, 0x0304
		}},
		{"IPv4 ICMP error", ip4(ProtoICMP, 0, nil, echo(3)), v4, func(h *Header) { h.Proto, h.Payload, h.ICMPType = ProtoICMP, 28, 3 }},
		{"ICMPv6 in IPv4 is not read", ip4(ProtoICMPv6, 0, nil, []byte{128}), v4, func(h *Header) { h.Proto, h.Payload = ProtoICMPv6, 20 }},
		{"IPv4 first fragment", ip4(ProtoUDP, 0x2000, nil, append(udp(), make([]byte, 8)...)), v4, func(h *Header) {
			h.Proto, h.Payload, h.SrcPort, h.DstPort, h.Fragment, h.MoreFragments = ProtoUDP, 28, 5353, 53, true, true
		}},
		{"IPv4 later fragment", ip4(ProtoTCP, 3, nil, []byte{1}), v4, func(h *Header) {
			h.Proto, h.Payload, h.Fragment, h.FragOffset = ProtoTCP, 20, true, 24
		}},
		{"IPv4 last possible byte", ip4(ProtoUDP, 8189, nil, make([]byte, 3)), v4, func(h *Header) {
			h.Proto, h.Payload, h.Fragment, h.FragOffset = ProtoUDP, 20, true, 65512
		}},
		{"IPv6 without payload", ip6(59), v6, func(h *Header) { h.Proto, h.Payload = 59, 40 }},
		{"IPv6 echo reply", ip6(ProtoICMPv6, echo(129)), v6, func(h *Header) {
			h.Proto, h.Payload, h.ICMPType, h.SrcPort, h.DstPort, h.ICMPSeq = ProtoICMPv6, 48, 129, 0x0102, 0x0102, 0x0304
		}},
		{"IPv6 ESP ends the chain", ip6(50, []byte{43, 0}), v6, func(h *Header) { h.Proto, h.Payload = 50, 40 }},
		{"IPv6 atomic fragment", ip6(44, frag6(ProtoUDP, 0, false, 7), udp(1)), v6, func(h *Header) {
			h.Proto, h.L4, h.Payload, h.SrcPort, h.DstPort, h.FragID = ProtoUDP, 48, 56, 5353, 53, 7
		}},
		{"IPv6 first fragment with options behind", ip6(44, frag6(60, 0, true, 7), opts6(ProtoUDP), udp()), v6, func(h *Header) {
			h.Proto, h.L4, h.Payload, h.SrcPort, h.DstPort, h.FragID = ProtoUDP, 56, 64, 5353, 53, 7
			h.Fragment, h.MoreFragments = true, true
		}},
		{"IPv6 later fragment of options", ip6(44, frag6(60, 64, false, 7), []byte{0xff}), v6, func(h *Header) {
			h.Proto, h.L4, h.Payload, h.FragID, h.Fragment, h.FragOffset = 60, 48, 48, 7, true, 64
		}},
		{"IPv6 longest chain", ip6(0, append([]byte{60, 5, 1, 44}, make([]byte, 44)...), opts6(ProtoTCP), tcp(FlagRST)), v6, func(h *Header) {
			h.Proto, h.L4, h.Payload, h.SrcPort, h.DstPort, h.TCPFlags = ProtoTCP, 96, 116, 40000, 443, FlagRST
		}},
	} {
		want := c.base
		want.Len = len(c.pkt)
		c.edit(&want)
		var h Header
		if f := h.Parse(c.pkt, len(c.pkt)); f != FaultNone || h != want {
			t.Errorf("%s: fault %v\ngot  %+v\nwant %+v", c.name, f, h, want)
		}
	}
}

func mutated(pkt []byte, at int, bytes ...byte) []byte {
	copy(pkt[at:], bytes)
	return pkt
}

// reseal mends the IPv4 header checksum after a change of the header.
func reseal(pkt []byte) []byte {
	pkt[10], pkt[11] = 0, 0
	ihl := min(int(pkt[0]&15)*4, len(pkt))
	sum := ^naiveSum(pkt[:ihl], 0)
	pkt[10], pkt[11] = byte(sum>>8), byte(sum)
	return pkt
}

// Routing headers of type 0 (RFC 5095) and 4 (RFC 8754) with one address.
var (
	rh0 = []byte{ProtoTCP, 2, 0, 1, 0, 0, 0, 0, 0xfd, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9}
	rh4 = []byte{ProtoTCP, 2, 4, 0, 0, 0, 0, 0, 0xfd, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9}
)

// refusedPackets are nasty packets, each with the one fault it counts as.
var refusedPackets = []struct {
	name string
	pkt  []byte
	want Fault
}{
	{"nothing", nil, FaultTruncated},
	{"version 0", []byte{0x05, 0, 0, 20}, FaultVersion},
	{"version 5", mutated(ip4(6, 0, nil, tcp(0)), 0, 0x55), FaultVersion},
	{"version 15", []byte{0xff}, FaultVersion},
	{"IPv4 total length 0", reseal(mutated(ip4(6, 0, nil, tcp(0)), 2, 0, 0)), FaultLength},
	{"IPv4 total length short by 1 (trailing byte)", reseal(mutated(ip4(6, 0, nil, tcp(0)), 2, 0, 39)), FaultLength},
	{"IPv4 total length long by 1", reseal(mutated(ip4(6, 0, nil, tcp(0)), 2, 0, 41)), FaultLength},
	{"IPv4 trailing bytes", append(ip4(6, 0, nil, tcp(0)), 0, 0), FaultLength},
	{"IPv4 header of 16", reseal(mutated(ip4(6, 0, nil, tcp(0)), 0, 0x44)), FaultHeaderLength},
	{"IPv4 header of 0", reseal(mutated(ip4(6, 0, nil, tcp(0)), 0, 0x40)), FaultHeaderLength},
	{"IPv4 header beyond packet", reseal(mutated(ip4(6, 0, nil, nil), 0, 0x46)), FaultHeaderLength},
	{"IPv4 checksum wrong", mutated(ip4(6, 0, nil, tcp(0)), 8, 63), FaultChecksum},
	{"IPv4 checksum zero", mutated(ip4(6, 0, nil, tcp(0)), 10, 0, 0), FaultChecksum},
	{"loose source route", ip4(6, 0, []byte{131, 7, 4, 1, 1, 1, 1, 0}, tcp(2)), FaultOptions},
	{"strict source route", ip4(6, 0, []byte{137, 7, 4, 1, 1, 1, 1, 0}, tcp(2)), FaultOptions},
	{"source route behind padding", ip4(6, 0, []byte{1, 131, 3, 4}, tcp(2)), FaultOptions},
	{"record route", ip4(6, 0, []byte{7, 7, 4, 0, 0, 0, 0, 0}, tcp(2)), FaultOptions},
	{"timestamp", ip4(6, 0, []byte{68, 8, 5, 0, 0, 0, 0, 0}, tcp(2)), FaultOptions},
	{"security", ip4(6, 0, []byte{130, 4, 0, 0}, tcp(2)), FaultOptions},
	{"unknown option of length 0", ip4(6, 0, []byte{94, 0, 0, 0}, tcp(2)), FaultOptions},
	{"router alert of length 3", ip4(2, 0, []byte{148, 3, 0, 0}, nil), FaultOptions},
	{"router alert cut off", ip4(2, 0, []byte{1, 148, 4, 0}, nil), FaultOptions},
	{"empty first fragment", ip4(132, 0x2000, nil, nil), FaultFragment},
	{"empty last fragment", ip4(17, 100, nil, nil), FaultFragment},
	{"fragment not a multiple of 8", ip4(17, 0x2000, nil, udp(1, 2, 3)), FaultFragment},
	{"fragment beyond 65535", ip4(17, 0x1fff, nil, make([]byte, 8)), FaultFragment},
	{"fragment one beyond", ip4(17, 8189, nil, make([]byte, 4)), FaultFragment},
	{"tiny first TCP fragment", ip4(6, 0x2000, nil, tcp(2)[:8]), FaultFragment},
	{"TCP fragment without options", ip4(6, 0x2000, nil, mutated(tcp(2, 0, 0, 0, 0), 12, 0x70)), FaultFragment},
	{"TCP fragment over the flags", ip4(6, 0x2001, nil, make([]byte, 16)), FaultFragment},
	{"TCP fragment over the ports", ip4(6, 2, nil, make([]byte, 16)), FaultFragment},
	{"TCP cut off", ip4(6, 0, nil, tcp(2)[:19]), FaultTransport},
	{"TCP data offset 4", ip4(6, 0, nil, mutated(tcp(2), 12, 0x40)), FaultTransport},
	{"TCP data offset 0", ip4(6, 0, nil, mutated(tcp(2), 12, 0)), FaultTransport},
	{"TCP data offset beyond packet", ip4(6, 0, nil, mutated(tcp(2), 12, 0x60)), FaultTransport},
	{"UDP cut off", ip4(17, 0, nil, udp()[:7]), FaultTransport},
	{"UDP length 7", ip4(17, 0, nil, mutated(udp(), 4, 0, 7)), FaultTransport},
	{"UDP length 0", ip4(17, 0, nil, mutated(udp(1, 2), 4, 0, 0)), FaultTransport},
	{"UDP length long", ip4(17, 0, nil, mutated(udp(1, 2), 4, 0, 11)), FaultTransport},
	{"UDP length short", ip4(17, 0, nil, mutated(udp(1, 2), 4, 0, 9)), FaultTransport},
	{"UDP fragment of length 0", ip4(17, 0x2000, nil, mutated(udp(), 4, 0, 0)), FaultTransport},
	{"ICMP cut off", ip4(1, 0, nil, echo(8)[:7]), FaultTransport},
	{"no transport at all", ip4(6, 0, nil, nil), FaultTransport},
	{"IPv6 payload length 0 (jumbogram)", mutated(ip6(0, []byte{59, 0, 0xc2, 4, 0, 1, 0, 0}), 4, 0, 0), FaultLength},
	{"IPv6 trailing byte", append(ip6(59), 0), FaultLength},
	{"IPv6 payload length long", mutated(ip6(59), 4, 0, 1), FaultLength},
	{"IPv6 jumbo option", ip6(0, []byte{59, 0, 0xc2, 4, 0, 1, 0, 0}), FaultExtension},
	{"IPv6 home address option", ip6(60, append([]byte{59, 2, 0xc9, 16}, make([]byte, 20)...)), FaultExtension},
	{"IPv6 option beyond its header", ip6(0, []byte{59, 0, 1, 5, 0, 0, 0, 0}), FaultExtension},
	{"IPv6 option without length", ip6(0, []byte{59, 0, 1, 3, 0, 0, 0, 1}), FaultExtension},
	{"IPv6 options beyond packet", ip6(0, []byte{59, 1, 1, 4, 0, 0, 0, 0}), FaultExtension},
	{"IPv6 options cut off", ip6(0, []byte{59, 0, 1}), FaultExtension},
	{"RH0", ip6(43, rh0, tcp(2)), FaultExtension},
	{"segment routing", ip6(43, rh4, tcp(2)), FaultExtension},
	{"RH0 behind options", ip6(60, opts6(43), rh0, tcp(2)), FaultExtension},
	{"hop-by-hop twice", ip6(0, opts6(0), opts6(6), tcp(2)), FaultExtension},
	{"hop-by-hop not in front", ip6(60, opts6(0), opts6(6), tcp(2)), FaultExtension},
	{"destination options three times", ip6(60, opts6(60), opts6(60), opts6(6), tcp(2)), FaultExtension},
	{"two fragment headers", ip6(44, frag6(44, 0, false, 1), frag6(6, 0, false, 2), tcp(2)), FaultExtension},
	{"chain beyond the head", ip6(60, append([]byte{6, 7, 1, 60}, make([]byte, 60)...), tcp(2)), FaultExtension},
	{"fragment header cut off", ip6(44, frag6(6, 0, true, 1)[:7]), FaultExtension},
	{"IPv6 empty fragment", ip6(44, frag6(17, 64, false, 1)), FaultFragment},
	{"IPv6 fragment not a multiple of 8", ip6(44, frag6(17, 0, true, 1), udp(1)), FaultFragment},
	{"IPv6 fragment beyond 65535", ip6(44, frag6(17, 65528, false, 1), make([]byte, 8)), FaultFragment},
	{"IPv6 first fragment without transport", ip6(44, frag6(60, 0, true, 1), opts6(6)), FaultFragment},
	{"IPv6 tiny TCP fragment", ip6(44, frag6(6, 0, true, 1), tcp(2)[:16]), FaultFragment},
	{"IPv6 TCP fragment over the flags", ip6(44, frag6(6, 8, true, 1), make([]byte, 16)), FaultFragment},
	{"IPv6 TCP cut off", ip6(6, tcp(2)[:19]), FaultTransport},
	{"IPv6 UDP length 0", ip6(17, mutated(udp(1), 4, 0, 0)), FaultTransport},
	{"ICMPv6 cut off", ip6(58, echo(128)[:4]), FaultTransport},
}

// TestParseRefuses: each nasty packet is the fault it should be.
func TestParseRefuses(t *testing.T) {
	for _, c := range refusedPackets {
		var h Header
		if f := h.Parse(c.pkt, len(c.pkt)); f != c.want {
			t.Errorf("%s: fault %v, want %v\n% x", c.name, f, c.want, c.pkt)
		}
	}
}

// TestParseEveryTruncation: cut at every length, with and without an honest
// total, a packet is a fault and not a panic.
func TestParseEveryTruncation(t *testing.T) {
	for _, pkt := range [][]byte{
		ip4(6, 0, nil, tcp(2, 1, 2, 3)),
		ip4(17, 0, []byte{148, 4, 0, 0}, udp(1, 2, 3)),
		ip4(1, 0x2000, nil, echo(8)),
		ip6(0, opts6(60), opts6(44), frag6(60, 0, true, 9), opts6(17), udp()),
		ip6(6, tcp(2, 1, 2, 3)),
	} {
		for n := range pkt {
			var h Header
			cut := append([]byte(nil), pkt[:n]...) // its own array: a read beyond panics
			if f := h.Parse(cut, n); f == FaultNone {
				t.Errorf("cut at %d of %d: no fault\n% x", n, len(pkt), pkt)
			}
			h.Parse(cut, len(pkt))
			h.Parse(cut, -1)
		}
	}
}

// TestParseHeadOnly: the first HeadLen bytes are enough for every packet that
// is accepted, and bytes beyond total are not looked at.
func TestParseHeadOnly(t *testing.T) {
	for _, pkt := range [][]byte{
		ip4(6, 0, make([]byte, 40), tcp(16, pattern(65000)...)),
		ip6(0, append([]byte{60, 5, 1, 44}, make([]byte, 44)...), opts6(6), tcp(16, pattern(65000)...)),
		ip4(17, 0, nil, udp(pattern(60000)...)),
	} {
		want := parse(t, pkt)
		var h Header
		if f := h.Parse(pkt[:HeadLen:HeadLen], len(pkt)); f != FaultNone || h != want {
			t.Errorf("head only: fault %v\ngot  %+v\nwant %+v", f, h, want)
		}
		if f := h.Parse(append(pkt, 1, 2, 3), len(pkt)); f != FaultNone || h != want {
			t.Errorf("with bytes beyond total: fault %v\ngot  %+v\nwant %+v", f, h, want)
		}
	}
}

func TestICMPKinds(t *testing.T) {
	for _, c := range []struct {
		pkt                   []byte
		request, reply, error bool
	}{
		{ip4(1, 0, nil, echo(8)), true, false, false},
		{ip4(1, 0, nil, echo(0)), false, true, false},
		{ip4(1, 0, nil, echo(3)), false, false, true},
		{ip4(1, 0, nil, echo(4)), false, false, true},
		{ip4(1, 0, nil, echo(5)), false, false, true},
		{ip4(1, 0, nil, echo(11)), false, false, true},
		{ip4(1, 0, nil, echo(12)), false, false, true},
		{ip4(1, 0, nil, echo(13)), false, false, false},
		{ip4(1, 0, nil, echo(128)), false, false, false},
		{ip4(1, 5, nil, echo(8)), false, false, false}, // a later fragment
		{ip4(58, 0, nil, echo(128)), false, false, false},
		{ip4(6, 0, nil, tcp(2)), false, false, false},
		{ip6(58, echo(128)), true, false, false},
		{ip6(58, echo(129)), false, true, false},
		{ip6(58, echo(1)), false, false, true},
		{ip6(58, echo(127)), false, false, true},
		{ip6(58, echo(135)), false, false, false},
		{ip6(1, echo(8)), false, false, false},
	} {
		h := parse(t, c.pkt)
		if h.IsEchoRequest() != c.request || h.IsEchoReply() != c.reply || h.IsICMPError() != c.error {
			t.Errorf("IPv%d protocol %d type %d: request %v, reply %v, error %v", h.Version, h.Proto, h.ICMPType,
				h.IsEchoRequest(), h.IsEchoReply(), h.IsICMPError())
		}
	}
}

// TestNames: names are distinct and fit for metric labels.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	check := func(name string) {
		t.Helper()
		if name == "" || name == "unknown" || seen[name] {
			t.Errorf("name %q is empty, unknown or taken", name)
		}
		seen[name] = true
	}
	for f := range NumFaults {
		check(f.String())
	}
	for f := ReassemblyNone + 1; f < NumReassemblyFaults; f++ {
		check(f.String())
	}
	for k := ErrorKind(1); k < numErrorKinds; k++ {
		check(k.String())
	}
	for _, s := range []string{NumFaults.String(), NumReassemblyFaults.String(), numErrorKinds.String()} {
		if s != "unknown" {
			t.Errorf("a value beyond the last is called %q", s)
		}
	}
}
