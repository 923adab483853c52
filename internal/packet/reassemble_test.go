package packet

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"
)

// piece is one fragment of a test: data[from:to] of the datagram.
type piece struct {
	from, to int
	last     bool
	fill     byte // not 0: other data than the datagram's
	want     ReassemblyFault
	whole    bool
}

// datagrams makes fragments of the same datagram in either family.
var datagrams = map[string]func(offset int, more bool, id uint32, data []byte) []byte{
	"IPv4": func(offset int, more bool, id uint32, data []byte) []byte {
		word := uint16(offset / 8)
		if more {
			word |= 0x2000
		}
		pkt := ip4(132, word, nil, data)
		pkt[4], pkt[5] = byte(id>>8), byte(id)
		return reseal(pkt)
	},
	"IPv6": func(offset int, more bool, id uint32, data []byte) []byte {
		return ip6(44, frag6(132, offset, more, id), data)
	},
}

// arrivals are the ways in which fragments may come.
var arrivals = []struct {
	name      string
	pieces    []piece
	discarded [NumReassemblyFaults]uint64
	held      int
}{
	{name: "in order", pieces: []piece{{from: 0, to: 16}, {from: 16, to: 32}, {from: 32, to: 40, last: true, whole: true}}},
	{name: "backwards", pieces: []piece{{from: 32, to: 37, last: true}, {from: 16, to: 32}, {from: 0, to: 16, whole: true}}},
	{name: "middle last", pieces: []piece{{from: 0, to: 8}, {from: 16, to: 24, last: true}, {from: 8, to: 16, whole: true}}},
	{name: "repeated", pieces: []piece{{from: 0, to: 16}, {from: 0, to: 16}, {from: 16, to: 32, last: true, whole: true}}},
	{name: "last repeated", pieces: []piece{{from: 16, to: 32, last: true}, {from: 16, to: 32, last: true}, {from: 0, to: 16, whole: true}}},
	{name: "last missing", pieces: []piece{{from: 0, to: 16}, {from: 16, to: 32}}, held: 1},
	{name: "first missing", pieces: []piece{{from: 16, to: 32, last: true}}, held: 1},
	{
		name:      "repeated with other data",
		pieces:    []piece{{from: 0, to: 16}, {from: 0, to: 16, fill: 9, want: ReassemblyOverlap}, {from: 16, to: 32, last: true, want: ReassemblyOverlap}},
		discarded: [NumReassemblyFaults]uint64{ReassemblyOverlap: 3}, held: 1,
	},
	{
		name:      "overlap of the one before",
		pieces:    []piece{{from: 0, to: 16}, {from: 8, to: 24, want: ReassemblyOverlap}},
		discarded: [NumReassemblyFaults]uint64{ReassemblyOverlap: 2}, held: 1,
	},
	{
		name:      "overlap of the one behind",
		pieces:    []piece{{from: 16, to: 32}, {from: 8, to: 24, want: ReassemblyOverlap}},
		discarded: [NumReassemblyFaults]uint64{ReassemblyOverlap: 2}, held: 1,
	},
	{
		name:      "overlap around several (teardrop)",
		pieces:    []piece{{from: 8, to: 16}, {from: 24, to: 32}, {from: 0, to: 40, want: ReassemblyOverlap}},
		discarded: [NumReassemblyFaults]uint64{ReassemblyOverlap: 3}, held: 1,
	},
	{
		name:      "overlap inside another",
		pieces:    []piece{{from: 0, to: 40}, {from: 8, to: 16, want: ReassemblyOverlap}},
		discarded: [NumReassemblyFaults]uint64{ReassemblyOverlap: 2}, held: 1,
	},
	{
		name:      "same start, shorter",
		pieces:    []piece{{from: 0, to: 40}, {from: 0, to: 16, want: ReassemblyOverlap}},
		discarded: [NumReassemblyFaults]uint64{ReassemblyOverlap: 2}, held: 1,
	},
	{
		name:      "two ends",
		pieces:    []piece{{from: 16, to: 32, last: true}, {from: 8, to: 16, last: true, want: ReassemblyLength}},
		discarded: [NumReassemblyFaults]uint64{ReassemblyLength: 2}, held: 1,
	},
	{
		name:      "data behind the end",
		pieces:    []piece{{from: 8, to: 16, last: true}, {from: 16, to: 24, want: ReassemblyLength}},
		discarded: [NumReassemblyFaults]uint64{ReassemblyLength: 2}, held: 1,
	},
	{
		name:      "end before data",
		pieces:    []piece{{from: 24, to: 32}, {from: 8, to: 16, last: true, want: ReassemblyLength}},
		discarded: [NumReassemblyFaults]uint64{ReassemblyLength: 2}, held: 1,
	},
}

// TestReassembler runs through the arrivals in both families.
func TestReassembler(t *testing.T) {
	for _, c := range arrivals {
		for family, fragment := range datagrams {
			r, now := NewReassembler(ReassemblyLimits{}), time.Unix(1000, 0)
			for i, p := range c.pieces {
				data := pattern(40)[p.from:p.to]
				if p.fill != 0 {
					data = bytes.Repeat([]byte{p.fill}, p.to-p.from)
				}
				pkt := fragment(p.from, !p.last, 7, data)
				h := parse(t, pkt)
				whole, fault := r.Add(&h, scatter(pkt, 60), now)
				if fault != p.want || (whole != nil) != p.whole {
					t.Errorf("%s, %s: piece %d: %d bytes, fault %v; want %v, whole %v", family, c.name, i, len(whole), fault, p.want, p.whole)
				}
				if whole != nil {
					checkWhole(t, family+", "+c.name, whole)
				}
			}
			if got := r.Discarded(); got != c.discarded {
				t.Errorf("%s, %s: discarded %v, want %v", family, c.name, got, c.discarded)
			}
			if n, _ := r.Held(); n != c.held {
				t.Errorf("%s, %s: holds %d datagrams, want %d", family, c.name, n, c.held)
			}
			checkEmpty(t, r, now)
		}
	}
}

// checkWhole: the packet is no fragment and holds the beginning of the pattern.
func checkWhole(t *testing.T, name string, whole []byte) {
	t.Helper()
	h := parse(t, whole)
	if h.Fragment || h.Proto != 132 || !bytes.HasPrefix(pattern(40), whole[h.L4:]) {
		t.Errorf("%s: whole is %+v\n% x", name, h, whole)
	}
}

// checkEmpty: after the timeout nothing is held, and the books are balanced.
func checkEmpty(t *testing.T, r *Reassembler, now time.Time) {
	t.Helper()
	r.Expire(now.Add(time.Hour), nil)
	if n, size := r.Held(); n != 0 || size != 0 || r.oldest != nil || r.newest != nil || r.spare != nil || r.whole != nil {
		t.Errorf("after an hour: holds %d datagrams and %d bytes", n, size)
	}
}

// add adds one fragment of datagram id.
func add(t *testing.T, r *Reassembler, family string, id uint32, offset int, more bool, data []byte, now time.Time) ([]byte, ReassemblyFault) {
	t.Helper()
	pkt := datagrams[family](offset, more, id, data)
	h := parse(t, pkt)
	return r.Add(&h, [][]byte{pkt}, now)
}

// TestReassemblerApart: datagrams with other identifications, ends or IPv4
// protocols do not mix.
func TestReassemblerApart(t *testing.T) {
	r, now := NewReassembler(ReassemblyLimits{}), time.Unix(1000, 0)
	for _, family := range []string{"IPv4", "IPv6"} {
		for id := range uint32(5) {
			add(t, r, family, id, 0, true, bytes.Repeat([]byte{byte(id)}, 8), now)
		}
	}
	other := datagrams["IPv4"](8, false, 3, []byte{9})
	other[9] = 17
	h := parse(t, reseal(other))
	if whole, _ := r.Add(&h, [][]byte{other}, now); whole != nil {
		t.Error("another protocol completed the datagram")
	}
	other = datagrams["IPv4"](8, false, 3, []byte{9})
	other[15]++
	h = parse(t, reseal(other))
	if whole, _ := r.Add(&h, [][]byte{other}, now); whole != nil {
		t.Error("another source completed the datagram")
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		for id := range uint32(5) {
			whole, fault := add(t, r, family, id, 8, false, []byte{byte(id)}, now)
			if fault != ReassemblyNone || !bytes.HasSuffix(whole, bytes.Repeat([]byte{byte(id)}, 9)) {
				t.Errorf("%s, id %d: % x, fault %v", family, id, whole, fault)
			}
		}
	}
	checkEmpty(t, r, now)
}

// TestReassemblerTimeout: an old datagram goes, its first fragment is told of as
// it came, and a fragment that comes after that begins anew.
func TestReassemblerTimeout(t *testing.T) {
	for family, fragment := range datagrams {
		r, now := NewReassembler(ReassemblyLimits{Timeout: 10 * time.Second}), time.Unix(1000, 0)
		first := fragment(0, true, 1, pattern(16))
		h := parse(t, first)
		r.Add(&h, scatter(first, 50), now)
		add(t, r, family, 2, 8, true, pattern(16), now.Add(time.Second)) // not the first
		add(t, r, family, 3, 0, true, pattern(16), now.Add(5*time.Second))
		if n := r.Expire(now.Add(10*time.Second-1), nil); n != 0 {
			t.Errorf("%s: %d gone before the time", family, n)
		}
		var told [][]byte
		n := r.Expire(now.Add(12*time.Second), func(b []byte) { told = append(told, bytes.Clone(b)) })
		if n != 2 || len(told) != 1 || !bytes.Equal(told[0], first) {
			t.Errorf("%s: %d gone, told of % x, want % x", family, n, told, first)
		}
		if held, _ := r.Held(); held != 1 || r.Discarded() != [NumReassemblyFaults]uint64{ReassemblyTimeout: 2} {
			t.Errorf("%s: holds %d, discarded %v", family, held, r.Discarded())
		}
		if from := map[string]netip.Addr{"IPv4": gw4, "IPv6": gw6}[family]; len(AppendICMPError(nil, ErrReassemblyTimeout, from, 0, told[0])) == 0 {
			t.Errorf("%s: no ICMP error can be made of the first fragment", family)
		}
		// By Add alone.
		whole, fault := add(t, r, family, 3, 16, false, pattern(8), now.Add(15*time.Second))
		if whole != nil || fault != ReassemblyTimeout {
			t.Errorf("%s: last fragment after the timeout: whole %v, fault %v", family, whole != nil, fault)
		}
		checkEmpty(t, r, now)
	}
}

// TestReassemblerWholeLives: Expire, which a janitor may call beside the owner
// under the owner's lock, does not write to the packet that Add returned.
func TestReassemblerWholeLives(t *testing.T) {
	r, now := NewReassembler(ReassemblyLimits{}), time.Unix(1000, 0)
	add(t, r, "IPv6", 1, 0, true, bytes.Repeat([]byte{0xee}, 16), now)
	add(t, r, "IPv6", 2, 0, true, pattern(16), now)
	whole, _ := add(t, r, "IPv6", 2, 16, false, pattern(8), now)
	want := bytes.Clone(whole)
	if n := r.Expire(now.Add(time.Hour), func([]byte) {}); n != 1 {
		t.Fatalf("%d datagrams expired, want 1", n)
	}
	if want == nil || !bytes.Equal(whole, want) {
		t.Errorf("whole packet became % x, was % x", whole, want)
	}
}

// TestReassemblerLimits: over a limit the oldest datagrams go, memory stays
// within bounds, and a new datagram still gets through.
func TestReassemblerLimits(t *testing.T) {
	limits := ReassemblyLimits{Bytes: 16 << 10, Datagrams: 10}
	for family := range datagrams {
		r, now := NewReassembler(limits), time.Unix(1000, 0)
		faults, sent := uint64(0), uint64(0)
		for id := range uint32(1000) {
			sent++
			if _, fault := add(t, r, family, id, 0, true, pattern(800+int(id)/8*8), now); fault == ReassemblyLimit {
				faults++
			}
			n, size := r.Held()
			if n > limits.Datagrams || size > limits.Bytes {
				t.Fatalf("%s: holds %d datagrams, %d bytes", family, n, size)
			}
		}
		n, _ := r.Held()
		if d := r.Discarded(); d[ReassemblyLimit]+uint64(n) != sent || faults == 0 {
			t.Errorf("%s: sent %d, hold %d, discarded %v", family, sent, n, d)
		}
		if _, fault := add(t, r, family, 5000, 0, true, pattern(4000), now); fault != ReassemblyLimit {
			t.Errorf("%s: one more: fault %v", family, fault)
		}
		if whole, _ := add(t, r, family, 5000, 4000, false, pattern(8), now); whole == nil {
			t.Errorf("%s: a new datagram does not get through a full reassembler", family)
		}
		// Tiny fragments far apart, the dearest to hold.
		for i := range 4000 {
			add(t, r, family, 6000, 16*i, true, pattern(8), now)
			if _, size := r.Held(); size > limits.Bytes {
				t.Fatalf("%s: holds %d bytes after %d tiny fragments", family, size, i)
			}
		}
		checkEmpty(t, r, now)
	}
}

// TestReassemblerDead: the names of discarded datagrams are bounded as well.
func TestReassemblerDead(t *testing.T) {
	r, now := NewReassembler(ReassemblyLimits{Datagrams: 5}), time.Unix(1000, 0)
	for id := range uint32(100) {
		add(t, r, "IPv6", id, 0, true, pattern(16), now)
		add(t, r, "IPv6", id, 8, true, pattern(16), now)
	}
	if n, size := r.Held(); n > 5 || size > 5*datagramCharge {
		t.Errorf("holds %d datagrams, %d bytes", n, size)
	}
	if got := r.Discarded(); got != [NumReassemblyFaults]uint64{ReassemblyOverlap: 200} {
		t.Errorf("discarded %v", got)
	}
	checkEmpty(t, r, now)
}

// TestReassemblerTooLong: headers that differ between fragments do not make a
// packet longer than a packet can be.
func TestReassemblerTooLong(t *testing.T) {
	r, now := NewReassembler(ReassemblyLimits{Bytes: 1 << 20}), time.Unix(1000, 0)
	first := ip4(132, 0x2000, make([]byte, 40), pattern(65472))
	h := parse(t, first)
	if _, fault := r.Add(&h, [][]byte{first}, now); fault != ReassemblyNone {
		t.Fatal(fault)
	}
	last := ip4(132, 65472/8, nil, pattern(40)) // fits behind a header of 20
	h = parse(t, last)
	if whole, fault := r.Add(&h, [][]byte{last}, now); whole != nil || fault != ReassemblyLength {
		t.Errorf("whole of %d bytes, fault %v", len(whole), fault)
	}
	// A header that promises more than there is.
	h = parse(t, datagrams["IPv6"](0, true, 1, pattern(16)))
	if _, fault := r.Add(&h, [][]byte{datagrams["IPv6"](0, true, 1, pattern(16))[:50]}, now); fault != ReassemblyLength {
		t.Errorf("short packet: fault %v", fault)
	}
	checkEmpty(t, r, now)
}

// TestReassemblerWhole: what is no fragment comes back as it is.
func TestReassemblerWhole(t *testing.T) {
	r := NewReassembler(ReassemblyLimits{})
	for _, pkt := range samples(t, pattern(300)) {
		h := parse(t, pkt)
		if whole, fault := r.Add(&h, scatter(pkt, 118), time.Unix(0, 0)); fault != ReassemblyNone || !bytes.Equal(whole, pkt) {
			t.Errorf("fault %v, % x", fault, whole)
		}
	}
}

// TestReassemblerAllocations: one datagram after the other needs no memory
// beyond the first's, and neither does splitting.
func TestReassemblerAllocations(t *testing.T) {
	pkt := seal(t, ip6(17, udp(pattern(9000)...)))
	r, now := NewReassembler(ReassemblyLimits{}), time.Unix(1000, 0)
	var h Header
	bufs, n := make([][]byte, 1), 0
	emit := func(frag []byte) error {
		if f := h.Parse(frag, len(frag)); f != FaultNone {
			return errors.New(f.String())
		}
		bufs[0] = frag
		if whole, _ := r.Add(&h, bufs, now); whole != nil {
			n++
		}
		return nil
	}
	run := func() {
		if err := Fragments(pkt, 1500, 1, emit); err != nil {
			t.Fatal(err)
		}
	}
	// The race detector makes sync.Pool forget at random, and the garbage
	// collector empties it: the best of some runs counts.
	best := testing.AllocsPerRun(1, run)
	for range 200 {
		best = min(best, testing.AllocsPerRun(1, run))
	}
	if best != 0 {
		t.Errorf("%v allocations per datagram, want 0", best)
	}
	if n < 200 {
		t.Errorf("only %d datagrams came through", n)
	}
}
