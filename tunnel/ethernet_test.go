package tunnel_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

var (
	containerMAC = net.HardwareAddr{0x02, 0xc0, 0xff, 0xee, 0x00, 0x05}
	strangerMAC  = net.HardwareAddr{0x02, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb}
	broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	gatewayMAC   = tunnel.DefaultGatewayMAC

	own4         = netip.MustParseAddr("10.88.0.5")
	own6, other6 = netip.MustParseAddr("fd88::5"), netip.MustParseAddr("fd88::1234:5678")
)

const (
	typeIPv4, typeARP, typeVLAN, typeIPv6 = 0x0800, 0x0806, 0x8100, 0x86dd
)

func newPort() *tunnel.EtherPort {
	return tunnel.NewEtherPort(containerMAC, gatewayMAC, nil, own4, own6)
}

// ether builds an Ethernet frame from the container.
func ether(to net.HardwareAddr, kind uint16, payload []byte) []byte {
	return etherFrom(containerMAC, to, kind, payload)
}

func etherFrom(from, to net.HardwareAddr, kind uint16, payload []byte) []byte {
	b := slices.Concat([]byte(to), []byte(from))
	return append(binary.BigEndian.AppendUint16(b, kind), payload...)
}

// arp builds an ARP message of the container's.
func arp(operation byte, sender, target string) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, operation}, containerMAC...)
	b = append(b, netip.MustParseAddr(sender).AsSlice()...)
	b = append(b, make([]byte, 6)...)
	return append(b, netip.MustParseAddr(target).AsSlice()...)
}

// solicitation is a neighbour solicitation to build.
type solicitation struct {
	src, dst, target string
	options          []byte
	hopLimit         uint8 // 0: 255
	code             byte
	damage           bool
}

func (s solicitation) packet() []byte {
	src, dst := netip.MustParseAddr(s.src), netip.MustParseAddr(s.dst)
	icmp := append([]byte{135, s.code, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(s.target).AsSlice()...)
	icmp = append(icmp, s.options...)
	sum := packet.Checksum(icmp, packet.PseudoHeaderSum(packet.ProtoICMPv6, src, dst, len(icmp)))
	binary.BigEndian.PutUint16(icmp[2:], ^sum)
	if s.damage {
		icmp[2] ^= 0x10
	}
	if s.hopLimit == 0 {
		s.hopLimit = 255
	}
	b := packet.AppendIP(nil, packet.ProtoICMPv6, dst, dst, s.hopLimit, 0, len(icmp), 0, true)
	source := src.As16() // AppendIP writes IPv4-mapped addresses as IPv4
	copy(b[8:], source[:])
	return append(b, icmp...)
}

// sourceOption is the container's source link-layer address option.
func sourceOption() []byte { return append([]byte{1, 1}, containerMAC...) }

var (
	// solicited is where solicitations for other6 go.
	solicited    = "ff02::1:ff34:5678"
	solicitedMAC = net.HardwareAddr{0x33, 0x33, 0xff, 0x34, 0x56, 0x78}
)

func TestARPAnswersAreOfRFC826(t *testing.T) {
	// Byte by byte, as the RFC lays it out.
	want := "02c0ffee0005" + "02756e000001" + "0806" +
		"0001" + "0800" + "06" + "04" + "0002" +
		"02756e000001" + "0a580009" + "02c0ffee0005" + "0a580005"
	request := ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "10.88.0.9"))
	n, answer, drop := newPort().Receive(request)
	if got := hex.EncodeToString(answer); n != 0 || drop != "none" || got != want {
		t.Errorf("answer = %s (%d, %s)\nwant     %s", got, n, drop, want)
	}
}

func TestNeighborAdvertisementsAreOfRFC4861(t *testing.T) {
	for name, test := range map[string]struct {
		ask         solicitation
		to          net.HardwareAddr
		dst         string
		flags       byte
		destination net.HardwareAddr
	}{
		"from an address": {
			solicitation{src: "fd88::5", dst: solicited, target: "fd88::1234:5678", options: sourceOption()},
			solicitedMAC, "fd88::5", 0xe0, containerMAC},
		"unicast": {
			solicitation{src: "fe80::c0:ffff:feee:5", dst: "fd88::1234:5678", target: "fd88::1234:5678"},
			gatewayMAC, "fe80::c0:ffff:feee:5", 0xe0, containerMAC},
		"duplicate address detection": {
			solicitation{src: "::", dst: solicited, target: "fd88::1234:5678", options: []byte{14, 1, 1, 2, 3, 4, 5, 6}},
			solicitedMAC, "ff02::1", 0xa0, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}},
	} {
		n, answer, drop := newPort().Receive(ether(test.to, typeIPv6, test.ask.packet()))
		if n != 0 || drop != "none" || len(answer) != 14+72 {
			t.Errorf("%s: %d, %d bytes of answer, %s", name, n, len(answer), drop)
			continue
		}
		pkt := answer[14:]
		var ip packet.Header
		if fault := ip.Parse(pkt, len(pkt)); fault != packet.FaultNone || !packet.ValidL4Checksum(&ip, [][]byte{pkt}) {
			t.Errorf("%s: fault %v or wrong checksum", name, fault)
		}
		if ip.Src != other6 || ip.Dst != netip.MustParseAddr(test.dst) || ip.HopLimit != 255 {
			t.Errorf("%s: from %v to %v, hop limit %d", name, ip.Src, ip.Dst, ip.HopLimit)
		}
		head := slices.Concat([]byte(test.destination), []byte(gatewayMAC), []byte{0x86, 0xdd})
		icmp := slices.Concat([]byte{136, 0, pkt[42], pkt[43], test.flags, 0, 0, 0}, other6.AsSlice(), []byte{2, 1}, []byte(gatewayMAC))
		if !bytes.Equal(answer[:14], head) || !bytes.Equal(pkt[40:], icmp) {
			t.Errorf("%s: answer\n% x\nwant\n% x …\n% x", name, answer, head, icmp)
		}
	}
}

// received is what became of a frame.
type received struct {
	Packet, Answer int
	Drop           string
}

func TestReceiveJudgesEveryFrame(t *testing.T) {
	ns := func(change func(*solicitation)) []byte {
		s := solicitation{src: "fd88::5", dst: solicited, target: "fd88::1234:5678", options: sourceOption()}
		change(&s)
		return ether(solicitedMAC, typeIPv6, s.packet())
	}
	udp4 := tunneltest.FrameSpec{}.Frame()[tunnel.HeaderLen:]
	udp6 := tunneltest.FrameSpec{IPv6: true}.Frame()[tunnel.HeaderLen:]
	strangersARP := arp(1, "10.88.0.5", "10.88.0.9")
	copy(strangersARP[8:], strangerMAC)
	tokenRing := arp(1, "10.88.0.5", "10.88.0.9")
	tokenRing[1] = 6
	dropped := func(reason string) received { return received{Drop: reason} }
	answered := func(n int) received { return received{Answer: n, Drop: "none"} }
	passed := func(n int) received { return received{Packet: n, Drop: "none"} }
	for name, test := range map[string]struct {
		frame []byte
		want  received
	}{
		"IPv4":                            {ether(gatewayMAC, typeIPv4, udp4), passed(28)},
		"IPv6":                            {ether(gatewayMAC, typeIPv6, udp6), passed(48)},
		"IPv4 to all":                     {ether(broadcastMAC, typeIPv4, udp4), passed(28)},
		"IPv6 to a group":                 {ether(solicitedMAC, typeIPv6, udp6), passed(48)},
		"padded IPv4":                     {ether(gatewayMAC, typeIPv4, append(slices.Clone(udp4), make([]byte, 18)...)), passed(28)},
		"trailing bytes beyond padding":   {ether(gatewayMAC, typeIPv4, append(slices.Clone(udp4), make([]byte, 40)...)), passed(68)},
		"router solicitation":             {ether(solicitedMAC, typeIPv6, router(133)), passed(48)},
		"router advertisement":            {ether(solicitedMAC, typeIPv6, router(134)), passed(48)},
		"stranger's source":               {etherFrom(strangerMAC, gatewayMAC, typeIPv4, udp4), dropped("ether_source")},
		"gateway's source":                {etherFrom(gatewayMAC, gatewayMAC, typeIPv4, udp4), dropped("ether_source")},
		"to a stranger":                   {ether(strangerMAC, typeIPv4, udp4), dropped("ether_destination")},
		"to itself":                       {ether(containerMAC, typeIPv4, udp4), dropped("ether_destination")},
		"VLAN":                            {ether(gatewayMAC, typeVLAN, append([]byte{0, 5, 8, 0}, udp4...)), dropped("ether_vlan")},
		"QinQ":                            {ether(gatewayMAC, 0x88a8, append([]byte{0, 5, 8, 0}, udp4...)), dropped("ether_vlan")},
		"spanning tree":                   {ether(broadcastMAC, 0x0026, make([]byte, 38)), dropped("ether_type")},
		"EAP":                             {ether(broadcastMAC, 0x888e, make([]byte, 38)), dropped("ether_type")},
		"IPv6 said to be IPv4":            {ether(gatewayMAC, typeIPv4, udp6), dropped("ether_type")},
		"IPv4 said to be IPv6":            {ether(gatewayMAC, typeIPv6, udp4), dropped("ether_type")},
		"hardly a packet":                 {ether(gatewayMAC, typeIPv4, udp4[:7]), dropped("ether_truncated")},
		"nothing":                         {ether(gatewayMAC, typeIPv4, nil), dropped("ether_truncated")},
		"ARP request":                     {ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "10.88.0.9")), answered(42)},
		"ARP request, padded":             {ether(broadcastMAC, typeARP, append(arp(1, "10.88.0.5", "10.88.0.9"), make([]byte, 18)...)), answered(42)},
		"ARP request to the gateway":      {ether(gatewayMAC, typeARP, arp(1, "10.88.0.5", "10.88.0.9")), answered(42)},
		"ARP probe of another's":          {ether(broadcastMAC, typeARP, arp(1, "0.0.0.0", "10.88.0.9")), answered(42)},
		"ARP for a link-local address":    {ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "169.254.169.254")), answered(42)},
		"ARP probe of a link-local one":   {ether(broadcastMAC, typeARP, arp(1, "0.0.0.0", "169.254.7.7")), dropped("arp_unanswered")},
		"ARP probe of its own":            {ether(broadcastMAC, typeARP, arp(1, "0.0.0.0", "10.88.0.5")), dropped("arp_unanswered")},
		"ARP request for its own":         {ether(broadcastMAC, typeARP, arp(1, "10.88.0.77", "10.88.0.5")), dropped("arp_unanswered")},
		"gratuitous ARP request":          {ether(broadcastMAC, typeARP, arp(1, "10.88.0.9", "10.88.0.9")), dropped("arp_unanswered")},
		"gratuitous ARP reply":            {ether(broadcastMAC, typeARP, arp(2, "10.88.0.9", "10.88.0.9")), dropped("arp_unanswered")},
		"ARP reply":                       {ether(gatewayMAC, typeARP, arp(2, "10.88.0.9", "10.88.0.1")), dropped("arp_unanswered")},
		"ARP for all":                     {ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "255.255.255.255")), dropped("arp_unanswered")},
		"ARP for a group":                 {ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "224.0.0.1")), dropped("arp_unanswered")},
		"ARP for loopback":                {ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "127.0.0.1")), dropped("arp_unanswered")},
		"ARP for nobody":                  {ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "0.0.0.0")), dropped("arp_unanswered")},
		"ARP in a stranger's name":        {ether(broadcastMAC, typeARP, strangersARP), dropped("arp_malformed")},
		"ARP from a group":                {ether(broadcastMAC, typeARP, arp(1, "224.0.0.5", "10.88.0.9")), dropped("arp_malformed")},
		"ARP of token ring":               {ether(broadcastMAC, typeARP, tokenRing), dropped("arp_malformed")},
		"ARP cut short":                   {ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "10.88.0.9")[:27]), dropped("arp_malformed")},
		"solicitation":                    {ns(func(*solicitation) {}), answered(86)},
		"solicitation, unknown option":    {ns(func(s *solicitation) { s.options = []byte{200, 2, 15: 0} }), answered(86)},
		"solicitation of a link-local":    {ns(func(s *solicitation) { s.target = "fe80::9" }), answered(86)},
		"probe of another's":              {ns(func(s *solicitation) { s.src, s.options = "::", nil }), answered(86)},
		"probe of its own":                {ns(func(s *solicitation) { s.src, s.dst, s.target, s.options = "::", "ff02::1:ff00:5", "fd88::5", nil }), dropped("ndp_unanswered")},
		"probe of its link-local":         {ns(func(s *solicitation) { s.src, s.dst, s.target, s.options = "::", "ff02::1:ff00:7", "fe80::7", nil }), dropped("ndp_unanswered")},
		"solicitation for its own":        {ns(func(s *solicitation) { s.target = "fd88::5" }), dropped("ndp_unanswered")},
		"solicitation for loopback":       {ns(func(s *solicitation) { s.target = "::1" }), dropped("ndp_unanswered")},
		"solicitation for nobody":         {ns(func(s *solicitation) { s.target = "::" }), dropped("ndp_unanswered")},
		"solicitation for a group":        {ns(func(s *solicitation) { s.target = "ff02::1" }), dropped("ndp_malformed")},
		"solicitation from afar":          {ns(func(s *solicitation) { s.hopLimit = 254 }), dropped("ndp_malformed")},
		"solicitation with a code":        {ns(func(s *solicitation) { s.code = 1 }), dropped("ndp_malformed")},
		"solicitation, wrong checksum":    {ns(func(s *solicitation) { s.damage = true }), dropped("ndp_malformed")},
		"solicitation from a group":       {ns(func(s *solicitation) { s.src = "ff02::9" }), dropped("ndp_malformed")},
		"solicitation from mapped IPv4":   {ns(func(s *solicitation) { s.src = "::ffff:10.88.0.5" }), dropped("ndp_malformed")},
		"solicitation for mapped IPv4":    {ns(func(s *solicitation) { s.target = "::ffff:10.88.0.5" }), dropped("ndp_malformed")},
		"solicitation from loopback":      {ns(func(s *solicitation) { s.src = "::1" }), dropped("ndp_malformed")},
		"option of length zero":           {ns(func(s *solicitation) { s.options = make([]byte, 8) }), dropped("ndp_malformed")},
		"option cut short":                {ns(func(s *solicitation) { s.options = []byte{200, 2, 7: 0} }), dropped("ndp_malformed")},
		"half an option":                  {ns(func(s *solicitation) { s.options = []byte{200, 1, 3: 0} }), dropped("ndp_malformed")},
		"stranger's source option":        {ns(func(s *solicitation) { s.options = append([]byte{1, 1}, strangerMAC...) }), dropped("ndp_malformed")},
		"probe with a source option":      {ns(func(s *solicitation) { s.src = "::" }), dropped("ndp_malformed")},
		"probe to one host":               {ns(func(s *solicitation) { s.src, s.dst, s.options = "::", "fd88::1234:5678", nil }), dropped("ndp_malformed")},
		"solicitation, longer than Linux": {ns(func(s *solicitation) { s.options = bytes.Repeat([]byte{200, 1, 0, 0, 0, 0, 0, 0}, 40) }), dropped("ndp_malformed")},
		"solicitation cut short":          {ns(func(*solicitation) {})[:14+60], dropped("ndp_malformed")},
	} {
		n, answer, drop := newPort().Receive(test.frame)
		if diff := cmp.Diff(test.want, received{n, len(answer), drop}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// router builds a message between hosts and routers.
func router(kind byte) []byte {
	src, dst := netip.MustParseAddr("fe80::7"), netip.MustParseAddr("ff02::2")
	icmp := []byte{kind, 0, 0, 0, 0, 0, 0, 0}
	sum := packet.Checksum(icmp, packet.PseudoHeaderSum(packet.ProtoICMPv6, src, dst, len(icmp)))
	binary.BigEndian.PutUint16(icmp[2:], ^sum)
	return append(packet.AppendIP(nil, packet.ProtoICMPv6, src, dst, 255, 0, len(icmp), 0, true), icmp...)
}

// TestReceiveFollowsAMove: the kernel's word decides, and nothing else.
func TestReceiveFollowsAMove(t *testing.T) {
	var asked []string
	p := tunnel.NewEtherPort(containerMAC, gatewayMAC, func(m net.HardwareAddr) bool {
		asked = append(asked, m.String())
		return bytes.Equal(m, strangerMAC)
	})
	udp4 := tunneltest.FrameSpec{}.Frame()[tunnel.HeaderLen:]
	for from, want := range map[string]string{
		string(containerMAC): "none", string(strangerMAC): "none", "\x02abcde": "ether_source",
	} {
		if _, _, drop := p.Receive(etherFrom(net.HardwareAddr(from), gatewayMAC, typeIPv4, udp4)); drop != want {
			t.Errorf("from % x: %s, want %s", from, drop, want)
		}
	}
	slices.Sort(asked)
	if diff := cmp.Diff([]string{"02:61:62:63:64:65", strangerMAC.String()}, asked); diff != "" {
		t.Errorf("asked about (-want +got):\n%s", diff)
	}
}

// TestVirtioOffsetsCountFromEthernet: all but what the flags make meaningless.
func TestVirtioOffsetsCountFromEthernet(t *testing.T) {
	for name, test := range map[string]struct{ ip, wire tunnel.Header }{
		"plain": {},
		"checksum": {
			tunnel.Header{Flags: tunnel.FlagNeedsCsum, CsumStart: 40, CsumOffset: 16},
			tunnel.Header{Flags: tunnel.FlagNeedsCsum, CsumStart: 54, CsumOffset: 16}},
		"superframe": {
			tunnel.Header{Flags: tunnel.FlagNeedsCsum, GSOType: tunnel.GSOTCPv4, HdrLen: 40, GSOSize: 1448, CsumStart: 20, CsumOffset: 16},
			tunnel.Header{Flags: tunnel.FlagNeedsCsum, GSOType: tunnel.GSOTCPv4, HdrLen: 54, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}},
		"valid": {
			tunnel.Header{Flags: tunnel.FlagDataValid}, tunnel.Header{Flags: tunnel.FlagDataValid}},
		"last": {
			tunnel.Header{Flags: tunnel.FlagNeedsCsum, CsumStart: 65521}, tunnel.Header{Flags: tunnel.FlagNeedsCsum, CsumStart: 65535}},
	} {
		wire, back, ok := tunnel.EtherHeader(test.ip)
		if wire != test.wire || back != test.ip || !ok {
			t.Errorf("%s: %+v becomes %+v and again %+v (%v), want %+v", name, test.ip, wire, back, ok, test.wire)
		}
	}
	for _, h := range []tunnel.Header{{HdrLen: 65522}, {CsumStart: 65522}} {
		if _, _, ok := tunnel.EtherHeader(h); ok {
			t.Errorf("%+v fits before an Ethernet frame", h)
		}
	}
}

func TestReceiveDoesNotAllocate(t *testing.T) {
	probe := solicitation{src: "::", dst: solicited, target: "fd88::1234:5678"}.packet()
	p := newPort()
	for name, frame := range map[string][]byte{
		"IPv4":         ether(gatewayMAC, typeIPv4, tunneltest.FrameSpec{}.Frame()[tunnel.HeaderLen:]),
		"IPv6":         ether(gatewayMAC, typeIPv6, tunneltest.FrameSpec{IPv6: true}.Frame()[tunnel.HeaderLen:]),
		"ARP":          ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "10.88.0.9")),
		"solicitation": ether(solicitedMAC, typeIPv6, probe),
		"dropped":      ether(strangerMAC, typeIPv4, make([]byte, 50)),
	} {
		if n := testing.AllocsPerRun(100, func() { p.Receive(frame) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestTAPDropsAreNamed(t *testing.T) {
	seen := make(map[string]bool)
	for _, name := range tunnel.TAPDrops() {
		if name == "" || seen[name] || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("drop reason %q is empty, there twice or no label", name)
		}
		seen[name] = true
	}
	if len(seen) < 10 {
		t.Errorf("only %d reasons", len(seen))
	}
}

// FuzzEthernet gives hostile bytes to the port and holds that what passes is
// inside the frame, that answers are right and only for others' addresses, and
// that each frame has one fate.
func FuzzEthernet(f *testing.F) {
	f.Add(ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "10.88.0.9")))
	f.Add(ether(solicitedMAC, typeIPv6, solicitation{src: "fd88::5", dst: solicited, target: "fd88::1234:5678", options: sourceOption()}.packet()))
	f.Add(ether(solicitedMAC, typeIPv6, solicitation{src: "::", dst: solicited, target: "fd88::1234:5678"}.packet()))
	f.Add(ether(gatewayMAC, typeIPv4, tunneltest.FrameSpec{}.Frame()[tunnel.HeaderLen:]))
	f.Add(ether(gatewayMAC, typeIPv6, router(133)))
	f.Fuzz(func(t *testing.T, input []byte) {
		frame := bytes.Clone(input) // the fuzzer keeps its own
		if len(frame) < 14 {
			return
		}
		checkFate(t, frame)
		// A checksum is no obstacle to a hostile container.
		if h := (packet.Header{}); h.Parse(frame[14:], len(frame)-14) == packet.FaultNone && h.ICMPType == 135 && h.Version == 6 {
			icmp := frame[14+h.L4:]
			icmp[2], icmp[3] = 0, 0
			sum := packet.Checksum(icmp, packet.PseudoHeaderSum(packet.ProtoICMPv6, h.Src, h.Dst, len(icmp)))
			binary.BigEndian.PutUint16(icmp[2:], ^sum)
			checkFate(t, frame)
		}
	})
}

func checkFate(t *testing.T, frame []byte) {
	t.Helper()
	before := bytes.Clone(frame)
	n, answer, drop := newPort().Receive(frame)
	if !bytes.Equal(before, frame) {
		t.Error("the frame was changed")
	}
	fates := 0
	for _, fate := range []bool{n > 0, len(answer) > 0, drop != "none"} {
		if fate {
			fates++
		}
	}
	if fates != 1 || n < 0 || n > len(frame)-14 {
		t.Fatalf("packet of %d bytes, answer of %d, drop %s", n, len(answer), drop)
	}
	if len(answer) > 0 {
		checkAnswer(t, frame, answer)
	}
}

// checkAnswer holds an answer against the frame that it answers.
func checkAnswer(t *testing.T, frame, answer []byte) {
	t.Helper()
	if !bytes.Equal(answer[6:12], gatewayMAC) || !bytes.Equal(frame[6:12], containerMAC) {
		t.Fatalf("answered % x to % x", answer[:14], frame[:14])
	}
	pkt := answer[14:]
	switch kind := binary.BigEndian.Uint16(answer[12:]); kind {
	case typeARP:
		target := netip.AddrFrom4([4]byte(pkt[14:18]))
		if len(pkt) != 28 || target == own4 || !bytes.Equal(pkt[14:18], frame[14+24:14+28]) || !bytes.Equal(answer[:6], containerMAC) {
			t.Fatalf("ARP answer % x to % x", answer, frame)
		}
	case typeIPv6:
		var ip packet.Header
		if fault := ip.Parse(pkt, len(pkt)); fault != packet.FaultNone || !packet.ValidL4Checksum(&ip, [][]byte{pkt}) {
			t.Fatalf("advertisement with fault %v or a wrong checksum: % x", fault, pkt)
		}
		if ip.ICMPType != 136 || ip.Src == own6 || ip.Src.IsMulticast() || ip.Src.IsUnspecified() || ip.Src.IsLoopback() {
			t.Fatalf("advertisement of type %d from %v", ip.ICMPType, ip.Src)
		}
	default:
		t.Fatalf("answer of type %#x", kind)
	}
}
