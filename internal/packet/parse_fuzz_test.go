package packet

import (
	"bytes"
	"testing"
)

// seeds are packets to begin to fuzz from: good ones, and bad ones nearby.
func seeds(t testing.TB) (out [][]byte) {
	for _, pkt := range samples(t, pattern(20)) {
		out = append(out, pkt)
	}
	return append(out,
		nil, []byte{0x45}, []byte{0x60},
		ip4(6, 0, []byte{148, 4, 0, 0}, tcp(2)),
		ip4(6, 0, []byte{131, 7, 4, 1, 1, 1, 1, 0}, tcp(2)),
		ip4(17, 0x2000, nil, udp()),
		ip4(17, 3, nil, pattern(9)),
		ip4(1, 0, nil, echo(3, ip4(17, 0, nil, udp(1))...)),
		ip6(0, opts6(60), opts6(44), frag6(60, 0, true, 9), opts6(17), udp()),
		ip6(44, frag6(17, 64, false, 9), pattern(9)),
		ip6(43, []byte{6, 2, 0, 1, 0, 0, 0, 0, 0xfd, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9}, tcp(2)),
		ip6(58, echo(137)),
	)
}

// FuzzParse: Parse never reads beyond what it is given; offsets of an accepted
// packet lie in it and in order; the head decides alone; and a packet built from
// what was read reads the same.
func FuzzParse(f *testing.F) {
	for _, pkt := range seeds(f) {
		f.Add(pkt, len(pkt))
		f.Add(pkt, len(pkt)-1)
		f.Add(pkt, 65535)
	}
	f.Fuzz(func(t *testing.T, data []byte, total int) {
		pkt := append(make([]byte, 0, len(data)), data...) // an array of its own size: reads beyond panic
		var h, again Header
		h.Parse(pkt, total)
		fault := h.Parse(pkt, len(pkt))
		if !bytes.Equal(pkt, data) {
			t.Fatal("the packet was changed")
		}
		head := pkt[:min(HeadLen, len(pkt)):min(HeadLen, len(pkt))]
		if f := again.Parse(head, len(pkt)); f != fault || fault == FaultNone && again != h {
			t.Fatalf("the head alone: fault %v and %+v, the whole: %v and %+v", f, again, fault, h)
		}
		if fault != FaultNone {
			return
		}
		if h.Len != len(pkt) || h.L4 < 20 || h.L4 > h.Payload || h.Payload > h.Len {
			t.Fatalf("offsets: %+v of %d bytes", h, len(pkt))
		}
		ValidL4Checksum(&h, scatter(pkt, 7))
		rebuilt(t, h, pkt)
		if h.HopLimit > 1 {
			limit := h.HopLimit
			DecrementHopLimit(pkt)
			if f := h.Parse(pkt, len(pkt)); f != FaultNone || h.HopLimit != limit-1 {
				t.Fatalf("after DecrementHopLimit: fault %v, hop limit %d, was %d", f, h.HopLimit, limit)
			}
		}
	})
}

// rebuilt: the same packet without options and fragments is read the same.
func rebuilt(t *testing.T, h Header, pkt []byte) {
	t.Helper()
	if h.Fragment || h.Src.Is4In6() != h.Dst.Is4In6() || h.Src.Is4In6() {
		return
	}
	b := AppendIP(nil, h.Proto, h.Src, h.Dst, h.HopLimit, h.TOS, h.Len-h.L4, uint16(h.FragID), h.DontFragment)
	ihl := len(b)
	b = append(b, pkt[h.L4:]...)
	var got Header
	if f := got.Parse(b, len(b)); f != FaultNone {
		t.Fatalf("rebuilt from %+v: fault %v\n% x", h, f, b)
	}
	want := h
	shift := h.L4 - ihl
	want.L4, want.Payload, want.Len = h.L4-shift, h.Payload-shift, h.Len-shift
	if h.Version == 6 {
		want.FragID = 0 // an atomic fragment's
	}
	if got != want {
		t.Fatalf("rebuilt:\ngot  %+v\nwant %+v", got, want)
	}
}
