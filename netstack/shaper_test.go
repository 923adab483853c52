package netstack

import (
	"testing"
	"time"
)

// TestBucket: the burst passes at once, what is beyond waits, packets longer
// than the burst pass whole, and no pause saves more than the burst.
func TestBucket(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newBucket(Rate{BitsPerSecond: 8000, BurstBits: 800}, now) // 1000 bytes a second, 100 at once
	for i, step := range []struct {
		after time.Duration
		n     int
		want  time.Duration
	}{
		{0, 60, 0}, {0, 40, 0}, {0, 10, 10 * time.Millisecond},
		{10 * time.Millisecond, 1000, time.Second},
		{time.Second, 0, 0},
		{time.Hour, 100, 0}, {0, 1, time.Millisecond},
	} {
		now = now.Add(step.after)
		if got := b.take(now, step.n); got.Round(time.Microsecond) != step.want {
			t.Errorf("step %d: wait %v, want %v", i, got, step.want)
		}
	}
	if b := newBucket(Rate{BitsPerSecond: 8000}, now); b.take(now, 50) != 0 || b.take(now, 1) == 0 {
		t.Error("without a burst it is not what the rate carries in 50 ms")
	}
	if newBucket(Rate{BurstBits: 8}, now) != nil {
		t.Error("no rate is a limit")
	}
}

// TestSetBandwidth: limits come and go while packets wait for them, in both
// directions; nothing is lost and nothing waits for a rate that is gone.
func TestSetBandwidth(t *testing.T) {
	slow := Rate{BitsPerSecond: 8, BurstBits: 8} // a packet takes a minute
	h := newHarness(t, nil)
	a, b := h.attach("a", 2, nil), h.attach("b", 3, nil)
	pass := func(from, to *end) {
		t.Helper()
		from.send(udpPacket(ap(from.v4, 1000), ap(to.v4, 2000), 64, []byte("x")))
		to.receive()
	}
	pass(a, b)
	for _, limits := range []Bandwidth{{FromContainer: slow}, {ToContainer: slow}, {slow, slow}} {
		if err := a.link.SetBandwidth(limits); err != nil || a.link.Bandwidth() != limits {
			t.Fatalf("set %v: %v, have %v", limits, err, a.link.Bandwidth())
		}
		sent := a.link.Stats().FromContainer.Packets
		for range 3 {
			a.send(udpPacket(ap(a.v4, 1000), ap(b.v4, 2000), 64, []byte("x")))
			b.send(udpPacket(ap(b.v4, 1000), ap(a.v4, 2000), 64, []byte("x")))
		}
		if limits.ToContainer == slow {
			eventually(t, func() bool { return a.link.shaper.Load().bytes.Load() == 3*29 }) // IPv4, UDP, x
			a.quiet()
		}
		if limits.FromContainer == slow && a.link.Stats().FromContainer.Packets != sent {
			t.Errorf("%v does not limit what comes from the container", limits)
		}
		if err := a.link.SetBandwidth(Bandwidth{}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			a.receive()
			b.receive()
		}
		pass(a, b)
		pass(b, a)
	}
	a.wantDrops(map[string]uint64{})
	if err := a.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	isErr(t, a.link.SetBandwidth(Bandwidth{}), ErrNoLink)
	isErr(t, a.link.SetAliases(nil, ""), ErrNoLink)
}
