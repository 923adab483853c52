package packet

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"
)

// FuzzFragmentReassemble: a packet that is split, shuffled, repeated and joined
// is the packet.
func FuzzFragmentReassemble(f *testing.F) {
	for _, pkt := range seeds(f) {
		f.Add(pkt, uint16(1500), uint32(1), uint64(1))
		f.Add(pkt, uint16(100), uint32(0xffffffff), uint64(2))
	}
	f.Add(ip4(17, 0, nil, udp(pattern(3000)...)), uint16(68), uint32(5), uint64(3))
	f.Add(ip6(0, opts6(60), opts6(17), udp(pattern(3000)...)), uint16(1280), uint32(5), uint64(4))
	f.Fuzz(func(t *testing.T, pkt []byte, mtu uint16, id uint32, seed uint64) {
		var h Header
		if h.Parse(pkt, len(pkt)) != FaultNone || h.Fragment {
			return
		}
		var frags [][]byte
		err := Fragments(pkt, int(mtu), id, func(frag []byte) error {
			frags = append(frags, bytes.Clone(frag))
			return nil
		})
		if err != nil {
			if len(frags) > 0 {
				t.Fatalf("%v after %d fragments", err, len(frags))
			}
			return
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		if len(frags) > 1 {
			again := frags[rng.IntN(len(frags)-1)]
			frags = append([][]byte{again}, frags...)
		}
		rng.Shuffle(len(frags), func(i, j int) { frags[i], frags[j] = frags[j], frags[i] })
		r := NewReassembler(ReassemblyLimits{Bytes: 64 << 20})
		var whole []byte
		for _, frag := range frags {
			var fh Header
			if f := fh.Parse(frag, len(frag)); f != FaultNone {
				t.Fatalf("fragment has fault %v\n% x", f, frag)
			}
			if len(pkt) > int(mtu) && len(frag) > int(mtu) {
				t.Fatalf("fragment of %d bytes for MTU %d", len(frag), mtu)
			}
			got, fault := r.Add(&fh, scatter(frag, HeadLen), time.Unix(1, 0))
			if fault != ReassemblyNone {
				t.Fatalf("fault %v", fault)
			}
			if got != nil {
				whole = bytes.Clone(got)
			}
		}
		want := pkt
		if len(pkt) > int(mtu) {
			want = cleared(pkt, uint16(id))
		}
		if !bytes.Equal(whole, want) {
			t.Fatalf("MTU %d, %d fragments:\ngot  % x\nwant % x", mtu, len(frags), whole, want)
		}
	})
}

// FuzzReassembler: any sequence of fragments leaves the books balanced and the
// limits kept, and whatever comes out is a packet without fault or fragment.
// Each fragment is six bytes of the script: family and flags, offset, length,
// identification, seconds.
func FuzzReassembler(f *testing.F) {
	f.Add([]byte{1, 0, 0, 2, 1, 0 /* first */, 0, 0, 2, 1, 1, 0 /* last */})
	f.Add([]byte{3, 0, 0, 2, 1, 0, 3, 0, 1, 2, 1, 0 /* overlap */, 2, 0, 9, 9, 1, 0})
	f.Add([]byte{0, 0, 2, 8, 1, 0, 0, 0, 1, 8, 1, 0 /* two ends */, 1, 0, 0, 1, 1, 60})
	f.Add(bytes.Repeat([]byte{1, 7, 7, 200, 3, 5}, 50))
	f.Fuzz(func(t *testing.T, script []byte) {
		limits := ReassemblyLimits{Bytes: 8 << 10, Datagrams: 4, Timeout: 30 * time.Second}
		r, now := NewReassembler(limits), time.Unix(1000, 0)
		var sent, out uint64
		for ; len(script) >= 6; script = script[6:] {
			b := script[:6]
			family, more := "IPv4", b[0]&1 != 0
			if b[0]&2 != 0 {
				family = "IPv6"
			}
			length := int(b[3])
			if more {
				length = length &^ 7
			}
			pkt := datagrams[family]((int(b[1])<<8|int(b[2]))&0x1fff*8, more, uint32(b[4]), bytes.Repeat([]byte{b[4]}, length))
			now = now.Add(time.Duration(b[5]) * time.Second)
			var h Header
			if h.Parse(pkt, len(pkt)) != FaultNone || !h.Fragment {
				continue
			}
			sent++
			whole, _ := r.Add(&h, scatter(pkt, 70), now)
			if n, size := r.Held(); n > limits.Datagrams || size > limits.Bytes {
				t.Fatalf("holds %d datagrams, %d bytes", n, size)
			}
			if whole != nil {
				out++
				var wh Header
				if f := wh.Parse(whole, len(whole)); f != FaultNone || wh.Fragment || wh.Src != h.Src || wh.Dst != h.Dst {
					t.Fatalf("whole: fault %v, %+v", f, wh)
				}
			}
		}
		r.Expire(now.Add(time.Hour), nil)
		if n, size := r.Held(); n != 0 || size != 0 || len(r.pending) != 0 {
			t.Fatalf("in the end: %d datagrams, %d bytes", n, size)
		}
		var lost uint64
		for _, n := range r.Discarded() {
			lost += n
		}
		if lost+out > sent {
			t.Fatalf("%d fragments came, %d are counted as discarded and %d packets came out", sent, lost, out)
		}
	})
}
