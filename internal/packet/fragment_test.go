package packet

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"
)

// split collects the fragments of pkt and checks what holds for all of them.
func split(t testing.TB, pkt []byte, mtu int, id uint32) (frags [][]byte) {
	t.Helper()
	before := bytes.Clone(pkt)
	err := Fragments(pkt, mtu, id, func(frag []byte) error {
		frags = append(frags, bytes.Clone(frag))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, pkt) {
		t.Fatal("the packet was changed")
	}
	if len(pkt) <= mtu {
		return frags
	}
	end := 0
	for i, frag := range frags {
		h := parse(t, frag)
		if len(frag) > mtu || !h.Fragment || h.MoreFragments != (i < len(frags)-1) || i > 0 && h.FragOffset != end {
			t.Fatalf("fragment %d of %d for MTU %d: %+v", i, len(frags), mtu, h)
		}
		if h.Version == 4 && h.DontFragment {
			t.Fatalf("fragment %d has DF", i)
		}
		start := h.L4
		if h.Version == 6 {
			_, at := fragmentHeader(frag)
			start = at + 8
		}
		end = h.FragOffset + len(frag) - start
	}
	return frags
}

// join gives the fragments to a reassembler and expects one packet at the end.
func join(t testing.TB, r *Reassembler, frags [][]byte) []byte {
	t.Helper()
	now := time.Unix(1000, 0)
	for i, frag := range frags {
		h := parse(t, frag)
		whole, fault := r.Add(&h, scatter(frag, HeadLen), now)
		if fault != ReassemblyNone || (whole != nil) != (i == len(frags)-1) {
			t.Fatalf("fragment %d of %d: whole of %d bytes, fault %v", i, len(frags), len(whole), fault)
		}
		if whole != nil {
			return bytes.Clone(whole)
		}
	}
	return nil
}

// cleared is what a packet looks like after fragments: IPv4's DF and reserved
// bit are gone, its identification is id.
func cleared(pkt []byte, id uint16) []byte {
	pkt = bytes.Clone(pkt)
	if pkt[0]>>4 == 4 {
		pkt[4], pkt[5], pkt[6] = byte(id>>8), byte(id), pkt[6]&^0xc0
		reseal(pkt)
	}
	return pkt
}

// TestFragmentsBytes holds the second of three IPv6 fragments byte by byte.
func TestFragmentsBytes(t *testing.T) {
	pkt := ip6(0, opts6(17), udp(pattern(30)...))
	frags := split(t, pkt, 40+8+8+16, 0xdeadbeef)
	if len(frags) != 3 {
		t.Fatalf("%d fragments, want 3", len(frags))
	}
	want := append([]byte{
		0x60, 0, 0, 0, // version 6
		0x00, 0x20, // payload length: 8 options, 8 fragment header, 16 data
		0x00, 0x40, // next header: hop-by-hop; hop limit 64
		0xfd, 0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, // source
		0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, // destination
		0x2c, 0x00, 0x01, 0x04, 0, 0, 0, 0, // hop-by-hop: next is fragment; PadN
		0x11, 0x00, // fragment header: next is UDP; reserved
		0x00, 0x11, // offset 16, more to come
		0xde, 0xad, 0xbe, 0xef, // identification
	}, pattern(30)[8:24]...)
	if !bytes.Equal(frags[1], want) {
		t.Errorf("got  % x\nwant % x", frags[1], want)
	}
}

// TestFragmentsRoundTrip: sizes around every border, in both families, with
// options, in order and backwards.
func TestFragmentsRoundTrip(t *testing.T) {
	for _, mtu := range []int{68, 100, 576, 1280, 1500} {
		for _, n := range []int{0, 1, 7, 8, 9, 500, 1471, 1472, 1473, 3000, 9000} {
			for name, pkt := range map[string][]byte{
				"IPv4":               seal(t, ip4(17, 0x4000, nil, udp(pattern(n)...))),
				"IPv4 with options":  seal(t, ip4(17, 0, []byte{148, 4, 0, 0}, udp(pattern(n)...))),
				"IPv6":               seal(t, ip6(17, udp(pattern(n)...))),
				"IPv6 with options":  seal(t, ip6(0, opts6(17), udp(pattern(n)...))),
				"IPv6 ICMP":          seal(t, ip6(58, echo(128, pattern(n)...))),
				"IPv6 dest. options": ip6(60, opts6(132), pattern(n)),
			} {
				if mtu < 100 && pkt[0]>>4 == 6 {
					continue
				}
				frags := split(t, pkt, mtu, 0x12345)
				want := pkt
				if len(pkt) > mtu {
					want = cleared(pkt, 0x2345)
				} else if len(frags) != 1 || !bytes.Equal(frags[0], pkt) {
					t.Fatalf("%s of %d bytes for MTU %d: not as it was", name, len(pkt), mtu)
				}
				for range 2 {
					if got := join(t, NewReassembler(ReassemblyLimits{Bytes: 1 << 20}), frags); !bytes.Equal(got, want) {
						t.Fatalf("%s of %d bytes, MTU %d:\ngot  % x\nwant % x", name, len(pkt), mtu, got, want)
					}
					slices.Reverse(frags)
				}
			}
		}
	}
}

// TestFragmentsLargest: the longest packets there are go through, and the
// default limits hold them.
func TestFragmentsLargest(t *testing.T) {
	for _, pkt := range [][]byte{
		seal(t, ip4(17, 0, nil, udp(pattern(65507)...))),
		seal(t, ip6(17, udp(pattern(65527)...))),
	} {
		for _, mtu := range []int{1280, 1500, 65500} {
			got := join(t, NewReassembler(ReassemblyLimits{}), split(t, pkt, mtu, 1))
			if !bytes.Equal(got, cleared(pkt, 1)) {
				t.Errorf("packet of %d bytes, MTU %d: came back as %d bytes", len(pkt), mtu, len(got))
			}
		}
	}
}

// TestFragmentsOfFragments: IPv4 fragments may be split once more and keep
// their identification; IPv6 ones may not.
func TestFragmentsOfFragments(t *testing.T) {
	pkt := seal(t, ip4(17, 0, nil, udp(pattern(4000)...)))
	var frags [][]byte
	for _, frag := range split(t, pkt, 1500, 42) {
		if err := Fragments(frag, 600, 99, func(f []byte) error {
			frags = append(frags, bytes.Clone(f))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if got := join(t, NewReassembler(ReassemblyLimits{}), frags); !bytes.Equal(got, cleared(pkt, 42)) {
		t.Errorf("came back as % x", got)
	}
	for _, frag := range split(t, ip6(17, udp(pattern(4000)...)), 1500, 42)[:2] {
		if err := Fragments(frag, 1280, 1, nil); !errors.Is(err, ErrFragmented) {
			t.Errorf("IPv6 fragment: error %v, want ErrFragmented", err)
		}
	}
}

func TestFragmentsErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		pkt  []byte
		mtu  int
		want error
	}{
		{"malformed", []byte{0x45, 0}, 1500, ErrMalformed},
		{"no room in IPv4", ip4(17, 0, nil, udp(pattern(50)...)), 27, ErrMTUTooSmall},
		{"MTU 0", ip4(17, 0, nil, udp()), 0, ErrMTUTooSmall},
		{"MTU negative", ip6(17, udp()), -5, ErrMTUTooSmall},
		{"no room in IPv6", ip6(17, udp(pattern(50)...)), 55, ErrMTUTooSmall},
		{"no room for IPv6 headers", ip6(60, opts6(6), tcp(2, pattern(50)...)), 40 + 8 + 24, ErrMTUTooSmall},
	} {
		err := Fragments(c.pkt, c.mtu, 1, func([]byte) error { t.Errorf("%s: a fragment", c.name); return nil })
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
	}
	full := errors.New("full")
	for _, pkt := range [][]byte{ip4(17, 0, nil, udp(pattern(5000)...)), ip6(17, udp(pattern(5000)...)), ip6(17, udp())} {
		n := 0
		if err := Fragments(pkt, 1500, 1, func([]byte) error { n++; return full }); !errors.Is(err, full) || n != 1 {
			t.Errorf("after an error of emit: %v, called %d times", err, n)
		}
	}
}

func BenchmarkFragmentReassemble(b *testing.B) {
	pkt := ip6(17, udp(pattern(9000)...))
	r, now := NewReassembler(ReassemblyLimits{}), time.Unix(1000, 0)
	var h Header
	bufs := make([][]byte, 1)
	emit := func(frag []byte) error {
		h.Parse(frag, len(frag))
		bufs[0] = frag
		r.Add(&h, bufs, now)
		return nil
	}
	b.SetBytes(int64(len(pkt)))
	b.ReportAllocs()
	for b.Loop() {
		if err := Fragments(pkt, 1500, 1, emit); err != nil {
			b.Fatal(err)
		}
	}
}
