package packet

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestReaddress: a packet that was given other ends is the packet that those
// ends would have sent, checksums included, whole and partial.
func TestReaddress(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	addr := func(v4 bool) netip.AddrPort {
		var b [16]byte
		for i := range b {
			b[i] = byte(rnd.UintN(256))
			if rnd.UintN(3) == 0 {
				b[i] = 0xff // the sums' corner
			}
		}
		a := netip.AddrFrom16(b)
		if v4 {
			a = netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrPortFrom(a, uint16(rnd.UintN(65536)))
	}
	build := func(src, dst netip.AddrPort, payload []byte) []byte {
		b := AppendIP(nil, ProtoUDP, src.Addr(), dst.Addr(), 64, 0, 8+len(payload), 1, false)
		b = AppendUDPHeader(b, src, dst, [][]byte{payload})
		return append(b, payload...)
	}
	for i := range 2000 {
		v4 := i%2 == 0
		src, dst, newSrc, newDst := addr(v4), addr(v4), addr(v4), addr(v4)
		payload := make([]byte, rnd.UintN(20))
		for j := range payload {
			payload[j] = byte(rnd.UintN(256))
		}
		got, want := build(src, dst, payload), build(newSrc, newDst, payload)
		var h Header
		if h.Parse(got, len(got)) != FaultNone {
			continue // source addresses that Parse refuses
		}
		Readdress(got, &h, newSrc, newDst, false)
		if !bytes.Equal(got, want) {
			t.Fatalf("%v to %v made %v to %v:\n% x, want\n% x", src, dst, newSrc, newDst, got, want)
		}
		got = build(src, dst, payload)
		at := h.L4 + 6
		put := func(b []byte, sum uint16) { b[at], b[at+1] = byte(sum>>8), byte(sum) }
		put(got, PseudoHeaderSum(ProtoUDP, src.Addr(), dst.Addr(), 8+len(payload)))
		Readdress(got, &h, newSrc, newDst, true)
		sum := PseudoHeaderSum(ProtoUDP, newSrc.Addr(), newDst.Addr(), 8+len(payload))
		have := uint16(got[at])<<8 | uint16(got[at+1])
		if have%0xffff != sum%0xffff { // both zeros of one's complement
			t.Fatalf("partial sum %#x, want %#x", have, sum)
		}
	}
	// No checksum stays none.
	src, dst := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2")
	b := build(src, dst, nil)
	b[26], b[27] = 0, 0
	var h Header
	if f := h.Parse(b, len(b)); f != FaultNone {
		t.Fatal(f)
	}
	Readdress(b, &h, dst, src, false)
	if b[26]|b[27] != 0 {
		t.Errorf("a checksum was made up: % x", b)
	}
}
