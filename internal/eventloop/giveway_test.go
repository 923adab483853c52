package eventloop

import (
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
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

// Beside a busy loop, a goroutine that waits for a descriptor of its own is woken at
// the next glance. Without one Go's monitor would do it, ten glances later.
func TestGlanceWakesOthers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	l := newLoop(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var got atomic.Int64
	go func() {
		var b [1]byte
		for {
			if n, _ := r.Read(b[:]); n == 0 {
				return
			}
			got.Add(1)
		}
	}()
	const questions = 20
	var sent int64
	var last time.Time
	var waits []int // glances until each was read
	done := make(chan struct{})
	var busy taskFunc
	busy = func() {
		if l.glance.last != last && sent > 0 {
			waits[sent-1]++
		}
		last = l.glance.last
		if got.Load() == sent {
			if sent == questions {
				close(done)
				return
			}
			_, _ = w.Write([]byte{'x'}) // what is not written is not read
			waits = append(waits, 0)
			sent++
		}
		l.Post(busy)
	}
	l.Post(busy)
	await(t, done)
	slices.Sort(waits)
	if median := waits[questions/2]; median < 1 || median > 2 {
		t.Errorf("read after %d glances in the middle, want 1 or 2: %v", median, waits)
	}
}

// Whoever looks at Go's poller first, other processors or its monitor: no glance waits
// for what was told already.
func TestGlanceReturns(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	var g glance
	if err := g.open(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50_000 {
			g.take()
		}
	}()
	await(t, done)
	g.close()
}
