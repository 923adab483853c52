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

// The worker rests between turns until a crowd outgrows it, and again when it has
// caught up.
func TestCrowdRestful(t *testing.T) {
	var c crowd
	for turn := 1; turn < 2*crowdTurns; turn++ {
		if got, want := c.restful(false, false), turn < crowdTurns; got != want {
			t.Errorf("turn %d that left something: rests %v", turn, got)
		}
	}
	if !c.restful(true, true) {
		t.Error("no rest after a turn that read all")
	}
	if c.restful(false, true) {
		t.Error("a rest after one that was too long, with something left")
	}
	if !c.restful(false, false) {
		t.Error("no rest after it has caught up")
	}
}
