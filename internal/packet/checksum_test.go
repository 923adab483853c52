package packet

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// TestChecksumNaive: every length up to some blocks, every start, and contents
// that carry much or nothing, against word by word.
func TestChecksumNaive(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 300)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	for name, b := range map[string][]byte{
		"random": random, "ones": bytes.Repeat([]byte{0xff}, 300), "zeros": make([]byte, 300), "pattern": pattern(300),
	} {
		for from := range 9 {
			for n := from; n <= len(b); n++ {
				for _, initial := range []uint16{0, 1, 0x1234, 0xfffe, 0xffff} {
					// 0 and 0xffff are the same number in one's complement;
					// neither may appear where the other would.
					if got, want := Checksum(b[from:n], initial), naiveSum(b[from:n], initial); got != want {
						t.Fatalf("%s[%d:%d] from %#x: got %#x, want %#x", name, from, n, initial, got, want)
					}
				}
			}
		}
	}
}

// TestChecksumSlices: cut anywhere, the sum is the same.
func TestChecksumSlices(t *testing.T) {
	b := pattern(1001)
	want := naiveSum(b, 7)
	for i := 0; i <= len(b); i += 13 {
		for j := i; j <= len(b); j += 17 {
			if got := ChecksumSlices([][]byte{b[:i], b[i:j], nil, b[j:]}, 7); got != want {
				t.Fatalf("cut at %d and %d: got %#x, want %#x", i, j, got, want)
			}
		}
	}
	if got := ChecksumSlices(nil, 7); got != 7 {
		t.Errorf("nothing: got %#x", got)
	}
	if got := ChecksumSlices(scatter(b, 1), 7); got != want {
		t.Errorf("byte by byte: got %#x, want %#x", got, want)
	}
}

// TestDecrementHopLimit: for every header sum, the mended checksum is the one
// that a full computation gives.
func TestDecrementHopLimit(t *testing.T) {
	pkt := ip4(6, 0, nil, nil)
	for id := range 1 << 16 {
		for _, ttl := range []byte{2, 64, 255} {
			pkt[4], pkt[5], pkt[8] = byte(id>>8), byte(id), ttl
			reseal(pkt)
			DecrementHopLimit(pkt[:12])
			got := [2]byte(pkt[10:12])
			reseal(pkt)
			if got != [2]byte(pkt[10:12]) || pkt[8] != ttl-1 {
				t.Fatalf("id %#x: checksum %x after TTL %d, want %x", id, got, ttl, pkt[10:12])
			}
		}
	}
	v6 := ip6(59)
	want := bytes.Clone(v6)
	want[7]--
	if DecrementHopLimit(v6); !bytes.Equal(v6, want) {
		t.Errorf("IPv6: got % x, want % x", v6, want)
	}
}

// gopacketLayers serialises layers with gopacket's own lengths and checksums.
func gopacketLayers(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	o := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, o, ls...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// samples are packets that gopacket made, one of each kind.
func samples(t testing.TB, payload []byte) map[string][]byte {
	v4 := func(p layers.IPProtocol) *layers.IPv4 {
		return &layers.IPv4{Version: 4, IHL: 5, TTL: 9, Id: 77, TOS: 3, Protocol: p, SrcIP: a4.AsSlice(), DstIP: b4.AsSlice()}
	}
	v6 := func(p layers.IPProtocol) *layers.IPv6 {
		return &layers.IPv6{Version: 6, HopLimit: 9, TrafficClass: 3, NextHeader: p, SrcIP: a6.AsSlice(), DstIP: b6.AsSlice()}
	}
	type withNetwork interface {
		gopacket.SerializableLayer
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}
	over := func(ip gopacket.NetworkLayer, l withNetwork, more ...gopacket.SerializableLayer) []byte {
		if err := l.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		ls := append([]gopacket.SerializableLayer{ip.(gopacket.SerializableLayer), l}, more...)
		return gopacketLayers(t, append(ls, gopacket.Payload(payload))...)
	}
	tcp := func() *layers.TCP { return &layers.TCP{SrcPort: 40000, DstPort: 443, Seq: 5, ACK: true, Window: 9} }
	udp := func() *layers.UDP { return &layers.UDP{SrcPort: 5353, DstPort: 53} }
	echo6 := &layers.ICMPv6Echo{Identifier: 0x0102, SeqNumber: 0x0304}
	return map[string][]byte{
		"TCP over IPv4": over(v4(layers.IPProtocolTCP), tcp()),
		"TCP over IPv6": over(v6(layers.IPProtocolTCP), tcp()),
		"UDP over IPv4": over(v4(layers.IPProtocolUDP), udp()),
		"UDP over IPv6": over(v6(layers.IPProtocolUDP), udp()),
		"ICMP": gopacketLayers(t, v4(layers.IPProtocolICMPv4),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 0x0102, Seq: 0x0304}, gopacket.Payload(payload)),
		"ICMPv6": over(v6(layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}, echo6),
	}
}

// TestValidL4Checksum: gopacket's checksums are right, in pieces of any size,
// and wrong as soon as one bit is.
func TestValidL4Checksum(t *testing.T) {
	for name, pkt := range samples(t, pattern(101)) {
		h := parse(t, pkt)
		for n := 1; n <= len(pkt); n++ {
			if !ValidL4Checksum(&h, scatter(pkt, n)) {
				t.Fatalf("%s in pieces of %d: judged wrong", name, n)
			}
		}
		for i := h.L4; i < len(pkt); i++ {
			pkt[i] ^= 0x10
			if ValidL4Checksum(&h, [][]byte{pkt}) {
				t.Errorf("%s with byte %d changed: judged right", name, i)
			}
			pkt[i] ^= 0x10
		}
		if h.Proto != ProtoICMP {
			pkt[20]++ // a byte of an address: the pseudo header covers it
			if changed := parse6or4(h, pkt); ValidL4Checksum(&changed, [][]byte{pkt}) {
				t.Errorf("%s with an address changed: judged right", name)
			}
		}
	}
}

// parse6or4 is h with the source address of pkt, whose header checksum may be
// wrong.
func parse6or4(h Header, pkt []byte) Header {
	if h.Version == 4 {
		pkt = reseal(mutated(pkt, 12, 11))
	}
	h.Parse(pkt, len(pkt))
	return h
}

func TestValidL4ChecksumNone(t *testing.T) {
	for _, c := range []struct {
		name string
		pkt  []byte
		want bool
	}{
		{"IPv4 UDP without", ip4(17, 0, nil, udp(1, 2, 3)), true},
		{"IPv6 UDP without", ip6(17, udp(1, 2, 3)), false},
		{"IPv4 UDP 0xffff for 0", seal(t, ip4(17, 0, nil, udp(0, 0))), true},
		{"SCTP", ip4(132, 0, nil, pattern(30)), true},
		{"fragment", ip4(17, 0x2000, nil, mutated(udp(), 6, 9, 9)), true},
		{"ICMP of zeros", ip4(1, 0, nil, make([]byte, 8)), false},
		{"ICMPv6 in IPv4", ip4(58, 0, nil, echo(128)), true},
	} {
		h := parse(t, c.pkt)
		if got := ValidL4Checksum(&h, scatter(c.pkt, 9)); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

// TestUDPZeroChecksum: a datagram whose checksum computes to 0 is sent with
// 0xffff, which receivers take for right.
func TestUDPZeroChecksum(t *testing.T) {
	for n := range 1 << 16 {
		payload := []byte{byte(n >> 8), byte(n)}
		b := AppendIP(nil, ProtoUDP, a6, b6, 64, 0, 10, 0, true)
		b = AppendUDPHeader(b, netipPort(a6, 1), netipPort(b6, 2), [][]byte{payload})
		b = append(b, payload...)
		if b[46] == 0 && b[47] == 0 {
			t.Fatalf("payload %x: checksum 0", payload)
		}
		h := parse(t, b)
		if !ValidL4Checksum(&h, [][]byte{b}) {
			t.Fatalf("payload %x: checksum %x judged wrong", payload, b[46:48])
		}
	}
}

func BenchmarkChecksum(b *testing.B) {
	for name, n := range map[string]int{"20": 20, "40": 40, "1500": 1500, "65536": 65536} {
		b.Run(name, func(b *testing.B) {
			buf := pattern(n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				Checksum(buf, 0)
			}
		})
	}
}
