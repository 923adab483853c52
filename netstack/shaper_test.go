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
	if newBucket(Rate{BurstBits: 8}, now) != nil || newShaper(Rate{}) != nil {
		t.Error("no rate is a limit")
	}
}
