package netstack_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/refs"

	"github.com/usernet/usernet/internal/nstest"
)

func TestMain(m *testing.M) {
	// Packets, segments and chunks are counted by gVisor; one that is never
	// released is a mistake here, and one released twice another container's
	// memory.
	refs.SetLeakMode(refs.LeaksPanic)
	nstest.Main(m)
}

// worlds is how many tests with a switch of their own are under way: while
// there are others, their goroutines and packets are no leaks.
var worlds atomic.Int32

// checkLeaks makes the test fail if goroutines or packets outlive what it
// closes. It is called before anything is made, so that it looks last.
func checkLeaks(t *testing.T) {
	worlds.Add(1)
	before := goleak.IgnoreCurrent()
	held, _ := heldRefs() // by tests that keep frames of their own
	t.Cleanup(func() {
		if worlds.Add(-1) > 0 || t.Failed() {
			return
		}
		if err := goleak.Find(before); err != nil {
			t.Error(err)
		}
		if now, report := heldRefs(); now > held {
			t.Errorf("%d references were held before the test, %d are now: %s", held, now, report)
		}
	})
}

// heldRefs counts the objects that gVisor has not been given back, from its own
// report, which it can only panic with.
func heldRefs() (n int, report string) {
	defer func() {
		if r := recover(); r != nil {
			report = fmt.Sprint(r)
			if _, err := fmt.Sscanf(report, "Leak checking detected %d", &n); err != nil {
				panic(r)
			}
		}
	}()
	refs.DoRepeatedLeakCheck()
	return 0, ""
}
