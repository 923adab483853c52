package netns_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

func current(t *testing.T) *netns.Handle {
	t.Helper()
	h, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestOpenNamesWhatIsNotANamespace(t *testing.T) {
	_, err := netns.Open(filepath.Join(t.TempDir(), "absent"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open(absent) = %v, want fs.ErrNotExist", err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{plain, "/proc/self/ns/mnt", "/dev/null"} {
		if _, err := netns.Open(path); !errors.Is(err, netns.ErrNotNetns) {
			t.Errorf("Open(%s) = %v, want ErrNotNetns", path, err)
		}
	}
}

func TestCurrentHasTheInodeOfTheProcFile(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	h := current(t)
	if h.Inode() != st.Ino {
		t.Errorf("Inode() = %d, want %d", h.Inode(), st.Ino)
	}
	if want := fmt.Sprintf("/proc/thread-self/ns/net (net:[%d])", st.Ino); h.String() != want {
		t.Errorf("String() = %q, want %q", h, want)
	}
}

func TestClosedHandleRefuses(t *testing.T) {
	h := current(t)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close = %v, want os.ErrClosed", err)
	}
	if err := h.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do = %v, want os.ErrClosed", err)
	}
}

func TestNetnsNewLeavesTheCallerWhereItIs(t *testing.T) {
	nstest.Require(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := current(t)
	h, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.Equal(before) {
		t.Error("New returned the caller's own namespace")
	}
	if after := current(t); !after.Equal(before) {
		t.Errorf("New moved its caller from %v to %v", before, after)
	}
}

func TestNetnsDoRunsInsideAndReturnsTheError(t *testing.T) {
	ns, outside := nstest.NewNS(t), current(t)
	sentinel := errors.New("sentinel")
	err := ns.Do(func() error {
		h, err := netns.Current()
		if err != nil {
			return err
		}
		defer h.Close()
		if !h.Equal(ns) {
			return fmt.Errorf("function runs in %v, want %v", h, ns)
		}
		return sentinel
	})
	if !errors.Is(err, sentinel) {
		t.Errorf("Do = %v, want the function's error", err)
	}
	// No thread of this process is left in the namespace.
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	nstest.WaitFor(t, 5*time.Second, func() bool {
		for _, task := range tasks {
			h, err := netns.Open(task)
			if err != nil {
				continue // the thread has ended
			}
			inside := h.Equal(ns)
			h.Close()
			if inside {
				return false
			}
		}
		return true
	})
	if now := current(t); !now.Equal(outside) {
		t.Errorf("test's thread is in %v, want %v", now, outside)
	}
}

func TestDoReportsAFunctionThatEndsItsGoroutine(t *testing.T) {
	nstest.Require(t)
	h := current(t)
	err := h.Do(func() error {
		runtime.Goexit()
		return nil
	})
	if err == nil {
		t.Error("Do = nil for a function that never returned")
	}
}

func TestNetnsFromFileOutlivesTheFile(t *testing.T) {
	ns := nstest.NewNS(t)
	h, err := netns.FromFile(ns.File())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if !h.Equal(ns) {
		t.Fatalf("FromFile gave %v, want %v", h, ns)
	}
	ns.Close()
	nstest.In(t, h, func() error { return nil })
	if _, err := netns.FromFile(os.Stdin); !errors.Is(err, netns.ErrNotNetns) {
		t.Errorf("FromFile(stdin) = %v, want ErrNotNetns", err)
	}
}

func TestNetnsOpenByPath(t *testing.T) {
	ns := nstest.NewNS(t)
	path := nstest.Path(t, ns)
	h, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if !h.Equal(ns) || h.Inode() != ns.Inode() {
		t.Errorf("Open(%s) = %v, want %v", path, h, ns)
	}
}
