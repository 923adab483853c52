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
