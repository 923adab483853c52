package netns_test

import (
	"errors"
	"runtime"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// Keeps the main goroutine on the process's first thread until TestMain.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	errFirstThread = doFromFirstThread()
	nstest.Main(m, func() error { return goleak.Find() })
}

// errFirstThread is what doFromFirstThread returned.
var errFirstThread error

// doFromFirstThread calls Do in such a way that the runtime runs Do's goroutine
// on the process's first thread: there is one processor, and the caller, which
// is on that thread, gives it up. It returns an error when the thread has been
// in the namespace, and nil where no namespace can be made.
func doFromFirstThread() error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	runtime.UnlockOSThread()
	ns, err := netns.New()
	if err != nil {
		return nil
	}
	defer ns.Close()
	var worker int
	if err := ns.Do(func() error { worker = unix.Gettid(); return nil }); err != nil {
		return err
	}
	first, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer first.Close()
	if worker == unix.Getpid() || first.Equal(ns) {
		return errors.New("Do ran on the process's first thread, which stays in the namespace for good")
	}
	return nil
}

// TestNetnsDoLeavesTheFirstThreadAlone: the runtime cannot end the process's
// first thread, so a namespace that it entered would never die.
func TestNetnsDoLeavesTheFirstThreadAlone(t *testing.T) {
	nstest.Require(t)
	if errFirstThread != nil {
		t.Error(errFirstThread)
	}
}
