package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	gw4 = netip.MustParseAddr("10.5.0.1")
	gw6 = netip.MustParseAddr("fd05::1")
)

// TestAppendICMPErrorBytes holds one error of each family byte by byte.
func TestAppendICMPErrorBytes(t *testing.T) {
	orig := ip4(17, 0x4000, nil, udp(0xaa))
	want := append([]byte{
		0x45, 0xc0, // header of 5 words; precedence: internetwork control
		0x00, 0x39, // total length 57
		0x00, 0x00, 0x40, 0x00, // identification 0; DF
		0x40, 0x01, // TTL 64; ICMP
		0x24, 0xd0, // header checksum
		10, 5, 0, 1, // from the gateway
		10, 5, 0, 2, // to the container
		0x03, 0x04, // unreachable, fragmentation needed
		0, 0, // checksum, below
		0x00, 0x00, // unused
		0x05, 0x78, // next hop MTU 1400
	}, orig...)
	binary.BigEndian.PutUint16(want[22:], ^naiveSum(want[20:], 0))
	reseal(want)
	if got := AppendICMPError(nil, ErrTooBig, gw4, 1400, orig); !bytes.Equal(got, want) {
		t.Errorf("IPv4:\ngot  % x\nwant % x", got, want)
	}

	orig = ip6(17, udp(0xaa))
	want = append([]byte{
		0x60, 0, 0, 0, // version 6
		0x00, 0x39, // payload length 57
		0x3a, 0x40, // ICMPv6; hop limit 64
		0xfd, 0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, // from the gateway
		0xfd, 0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, // to the container
		0x02, 0x00, // packet too big
		0, 0, // checksum, below
		0x00, 0x00, 0x05, 0x14, // MTU 1300
	}, orig...)
	seal(t, want)
	if got := AppendICMPError(nil, ErrTooBig, gw6, 1300, orig); !bytes.Equal(got, want) {
		t.Errorf("IPv6:\ngot  % x\nwant % x", got, want)
	}
}

// TestAppendICMPErrorKinds: each kind's type and code in both families, as
// gopacket reads them.
func TestAppendICMPErrorKinds(t *testing.T) {
	for _, c := range []struct {
		kind ErrorKind
		v4   layers.ICMPv4TypeCode
		v6   layers.ICMPv6TypeCode
	}{
		{ErrNetUnreachable, layers.CreateICMPv4TypeCode(3, 0), layers.CreateICMPv6TypeCode(1, 0)},
		{ErrHostUnreachable, layers.CreateICMPv4TypeCode(3, 1), layers.CreateICMPv6TypeCode(1, 3)},
		{ErrPortUnreachable, layers.CreateICMPv4TypeCode(3, 3), layers.CreateICMPv6TypeCode(1, 4)},
		{ErrProtoUnreachable, layers.CreateICMPv4TypeCode(3, 2), layers.CreateICMPv6TypeCode(4, 1)},
		{ErrAdminProhibited, layers.CreateICMPv4TypeCode(3, 13), layers.CreateICMPv6TypeCode(1, 1)},
		{ErrTooBig, layers.CreateICMPv4TypeCode(3, 4), layers.CreateICMPv6TypeCode(2, 0)},
		{ErrTimeExceeded, layers.CreateICMPv4TypeCode(11, 0), layers.CreateICMPv6TypeCode(3, 0)},
		{ErrReassemblyTimeout, layers.CreateICMPv4TypeCode(11, 1), layers.CreateICMPv6TypeCode(3, 1)},
	} {
		for _, orig := range [][]byte{ip4(17, 0, nil, udp(1)), ip6(0, opts6(60), opts6(17), udp(1))} {
			h := parse(t, orig)
			from, layer := gw4, layers.LayerTypeIPv4
			if h.Version == 6 {
				from, layer = gw6, layers.LayerTypeIPv6
			}
			got := AppendICMPError(nil, c.kind, from, 1280, orig)
			p := gopacket.NewPacket(got, layer, gopacket.Default)
			if m, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok && m.TypeCode != c.v4 {
				t.Errorf("%v: IPv4 type and code %v, want %v", c.kind, m.TypeCode, c.v4)
			}
			if m, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok && m.TypeCode != c.v6 {
				t.Errorf("%v: IPv6 type and code %v, want %v", c.kind, m.TypeCode, c.v6)
			}
			checkError(t, got, from, h.Src, orig)
			if c.kind == ErrProtoUnreachable && h.Version == 6 {
				if at := binary.BigEndian.Uint32(got[44:]); orig[at] != 17 || at != 48 {
					t.Errorf("pointer is %d, want 48, the next header of the last options", at)
				}
			}
		}
	}
}

// checkError: the packet is a well-formed error from from to dst that quotes
// the beginning of orig.
func checkError(t *testing.T, pkt []byte, from, dst netip.Addr, orig []byte) {
	t.Helper()
	h := parse(t, pkt)
	if h.Src != from || h.Dst != dst || !h.IsICMPError() || !ValidL4Checksum(&h, [][]byte{pkt}) {
		t.Errorf("not a right error from %v to %v: %+v\n% x", from, dst, h, pkt)
	}
	if quote := pkt[h.Payload:]; !bytes.HasPrefix(orig, quote) || len(quote) == 0 {
		t.Errorf("quotes % x of % x", quote, orig)
	}
}

// TestAppendICMPErrorLengths: never longer than the RFCs say, with as much
// quoted as there is, for whole packets and for heads of superframes.
func TestAppendICMPErrorLengths(t *testing.T) {
	for _, n := range []int{0, 100, 520, 519, 521, 1183, 1184, 1185, 60000} {
		v4, v6 := ip4(17, 0, nil, udp(pattern(n)...)), ip6(17, udp(pattern(n)...))
		for _, head := range []int{HeadLen, 600, len(v6)} {
			got := AppendICMPError(nil, ErrPortUnreachable, gw4, 0, v4[:min(head, len(v4))])
			if want := min(576, 28+min(head, len(v4))); len(got) != want {
				t.Errorf("IPv4, %d of %d bytes: error of %d bytes, want %d", head, len(v4), len(got), want)
			}
			checkError(t, got, gw4, a4, v4)
			got = AppendICMPError(nil, ErrPortUnreachable, gw6, 0, v6[:min(head, len(v6))])
			if want := min(1280, 48+min(head, len(v6))); len(got) != want {
				t.Errorf("IPv6, %d of %d bytes: error of %d bytes, want %d", head, len(v6), len(got), want)
			}
			checkError(t, got, gw6, a6, v6)
		}
	}
}

// TestAppendICMPErrorForbidden: what must not be answered is not, and the
// buffer stays as it was.
func TestAppendICMPErrorForbidden(t *testing.T) {
	good4, good6 := ip4(17, 0, nil, udp(1)), ip6(17, udp(1))
	with := func(pkt []byte, at int, a string) []byte {
		pkt = mutated(bytes.Clone(pkt), at, netip.MustParseAddr(a).AsSlice()...)
		if pkt[0]>>4 == 4 {
			reseal(pkt)
		}
		return pkt
	}
	for _, c := range []struct {
		name string
		kind ErrorKind
		from netip.Addr
		orig []byte
	}{
		{"no kind", 0, gw4, good4},
		{"unknown kind", numErrorKinds, gw4, good4},
		{"from the other family", ErrHostUnreachable, gw6, good4},
		{"from the other family", ErrHostUnreachable, gw4, good6},
		{"from nobody", ErrHostUnreachable, netip.Addr{}, good4},
		{"nothing", ErrHostUnreachable, gw4, nil},
		{"malformed", ErrHostUnreachable, gw4, good4[:19]},
		{"ICMP unreachable", ErrHostUnreachable, gw4, ip4(1, 0, nil, echo(3))},
		{"ICMP redirect", ErrHostUnreachable, gw4, ip4(1, 0, nil, echo(5))},
		{"ICMPv6 unreachable", ErrHostUnreachable, gw6, ip6(58, echo(1))},
		{"ICMPv6 unknown error", ErrHostUnreachable, gw6, ip6(58, echo(100))},
		{"ICMPv6 redirect", ErrHostUnreachable, gw6, ip6(58, echo(137))},
		{"later fragment", ErrHostUnreachable, gw4, ip4(17, 9, nil, pattern(9))},
		{"later IPv6 fragment", ErrHostUnreachable, gw6, ip6(44, frag6(17, 64, false, 1), pattern(9))},
		{"source unspecified", ErrHostUnreachable, gw4, with(good4, 12, "0.0.0.0")},
		{"source this network", ErrHostUnreachable, gw4, with(good4, 12, "0.1.2.3")},
		{"source loopback", ErrHostUnreachable, gw4, with(good4, 12, "127.0.0.1")},
		{"source multicast", ErrHostUnreachable, gw4, with(good4, 12, "224.0.0.1")},
		{"source class E", ErrHostUnreachable, gw4, with(good4, 12, "240.0.0.1")},
		{"source broadcast", ErrHostUnreachable, gw4, with(good4, 12, "255.255.255.255")},
		{"to multicast", ErrHostUnreachable, gw4, with(good4, 16, "224.0.0.1")},
		{"to broadcast", ErrHostUnreachable, gw4, with(good4, 16, "255.255.255.255")},
		{"IPv6 source unspecified", ErrHostUnreachable, gw6, with(good6, 8, "::")},
		{"IPv6 source loopback", ErrHostUnreachable, gw6, with(good6, 8, "::1")},
		{"IPv6 source multicast", ErrHostUnreachable, gw6, with(good6, 8, "ff02::1")},
		{"IPv6 source mapped", ErrHostUnreachable, gw6, with(good6, 8, "::ffff:10.5.0.2")},
		{"to IPv6 multicast", ErrTooBig, gw6, with(good6, 24, "ff02::1")},
	} {
		b := []byte("kept")
		if got := AppendICMPError(b, c.kind, c.from, 1400, c.orig); string(got) != "kept" {
			t.Errorf("%s: an error was made: % x", c.name, got[4:])
		}
	}
}

// TestAppendICMPErrorAnswered: requests, first fragments and packets to the
// loopback addresses are answered.
func TestAppendICMPErrorAnswered(t *testing.T) {
	loop := reseal(mutated(ip4(17, 0, nil, udp(1)), 16, 127, 0, 0, 1))
	for name, orig := range map[string][]byte{
		"echo request":   ip4(1, 0, nil, echo(8)),
		"echo reply":     ip4(1, 0, nil, echo(0)),
		"first fragment": ip4(17, 0x2000, nil, udp()),
		"to loopback":    loop,
		"other protocol": ip4(132, 0, nil, nil),
	} {
		checkError(t, AppendICMPError(nil, ErrAdminProhibited, gw4, 0, orig), gw4, a4, orig)
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// FuzzICMPError: whatever the packet, the answer is none or a right error that
// is never answered again, and never longer than it may be.
func FuzzICMPError(f *testing.F) {
	for _, pkt := range seeds(f) {
		f.Add(pkt, uint8(1), 1400)
		f.Add(pkt, uint8(ErrTooBig), -1)
		f.Add(pkt, uint8(ErrProtoUnreachable), 1<<20)
	}
	f.Fuzz(func(t *testing.T, orig []byte, kind uint8, mtu int) {
		before := bytes.Clone(orig)
		for _, from := range []netip.Addr{gw4, gw6} {
			got := AppendICMPError(nil, ErrorKind(kind), from, mtu, slices.Clip(orig))
			if len(got) == 0 {
				continue
			}
			var h Header
			h.Parse(orig, len(orig)) // may be a head only; Src is read all the same
			checkError(t, got, from, h.Src, orig)
			if limit := map[bool]int{true: 576, false: 1280}[from.Is4()]; len(got) > limit {
				t.Errorf("error of %d bytes", len(got))
			}
			if again := AppendICMPError(nil, ErrHostUnreachable, from, 0, got); again != nil {
				t.Error("an error is answered with an error")
			}
		}
		if !bytes.Equal(before, orig) {
			t.Error("the packet was changed")
		}
	})
}
