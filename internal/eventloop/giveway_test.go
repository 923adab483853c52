package eventloop

import (
	"runtime"
	"sync/atomic"
	"testing"
)

// A busy loop lets a goroutine run at once that a task has given work, and one that
// nobody told it of after a few turns. Where there are more processors than one,
// somebody else runs it.
func TestLoopGivesWay(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	l := newLoop(t)
	for name, c := range map[string]struct {
		told  bool
		turns int
	}{"told": {true, 1}, "not told": {false, maxUnyielding}} {
		best := c.turns + 1
		for range 8 { // Go's scheduler runs the loop itself again, now and then
			best = min(best, turnsUntilRun(t, l, c.told))
		}
		if best > c.turns {
			t.Errorf("%s: not within %d turns", name, c.turns)
		}
	}
}

// turnsUntilRun counts the turns of a busy loop before a goroutine runs that a task
// starts.
func turnsUntilRun(t *testing.T, l *Loop, told bool) int {
	t.Helper()
	var ran atomic.Bool
	turns, result := 0, make(chan int, 1)
	var busy taskFunc
	busy = func() {
		if ran.Load() {
			result <- turns
			return
		}
		if turns == 0 {
			go ran.Store(true)
			if told {
				l.Yield()
			}
		}
		turns++
		l.Post(busy)
	}
	l.Post(busy)
	return await(t, result)
}
