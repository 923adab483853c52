package netstack

import (
	"testing"
	"time"
)

func TestCrowd(t *testing.T) {
	tests := []struct {
		name  string
		count int
		in    time.Duration
		want  bool
	}{
		{"few at once", crowdSize - 1, 0, false},
		{"enough at once", crowdSize, 0, true},
		{"enough, slowly", crowdSize, time.Second, false},
		{"many in their time", 1000 * crowdSize, 900 * crowdTime, true},
		{"many, slowly", 1000 * crowdSize, 1100 * crowdTime, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := crowd{since: time.Now().Add(-tt.in)}
			c.add(tt.count)
			if got := c.there(); got != tt.want {
				t.Errorf("a crowd: %v", got)
			}
			if tt.count >= crowdSize && c.there() {
				t.Error("a crowd twice")
			}
		})
	}
}

// The worker naps between turns until a crowd outgrows it, then hurries, then stands
// aside, and naps again when it has caught up. After a break that was too long it
// hurries.
func TestCrowdBreaks(t *testing.T) {
	var c crowd
	for turn := 1; turn < 2*overloadTurns; turn++ {
		want := napBreak
		switch {
		case turn >= overloadTurns:
			want = asideBreak
		case turn >= crowdTurns:
			want = noBreak
		}
		if got := c.next(false, false); got != want {
			t.Errorf("turn %d that left something: %d, want %d", turn, got, want)
		}
	}
	for turn := range crowdTurns {
		if got := c.next(false, true); got != noBreak {
			t.Errorf("turn %d after a break that was too long: %d", turn, got)
		}
	}
	if got := c.next(false, true); got != asideBreak {
		t.Errorf("when it has hurried: %d", got)
	}
	c.next(false, true)
	if got := c.next(true, true); got != napBreak {
		t.Errorf("after a turn that read all: %d", got)
	}
	if got := c.next(false, false); got != napBreak {
		t.Errorf("after it has caught up: %d", got)
	}
}
