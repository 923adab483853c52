package tunnel

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// transfer is the reusable state of one readv or writev. Its functions are
// bound once, because a closure made per call would be an allocation per frame.
type transfer struct {
	// poll and control are run in the two shapes that syscall.RawConn takes:
	// for Read and for Control.
	poll    func(fd uintptr) bool
	control func(fd uintptr)

	trap  uintptr                    // SYS_READV or SYS_WRITEV
	iovs  [MaxBuffers + 1]unix.Iovec // the caller's, and for Ethernet one in front
	count int                        // of iovs in use
	n     int                        // bytes moved by the last run
	errno syscall.Errno
}

func (t *transfer) init(trap uintptr) {
	t.trap = trap
	t.poll = t.run
	t.control = func(fd uintptr) { t.run(fd) }
}

// load points t at bufs, of which at most MaxBuffers are not empty.
func (t *transfer) load(bufs [][]byte) {
	t.count = 0
	for _, b := range bufs {
		if len(b) > 0 {
			t.iovs[t.count].Base = &b[0]
			t.iovs[t.count].SetLen(len(b))
			t.count++
		}
	}
}

// unload forgets the caller's buffers, so that t does not keep them alive.
func (t *transfer) unload() {
	clear(t.iovs[:t.count])
	t.count = 0
}

// run makes the system call and reports whether it is over; false asks the
// poller to wait until the descriptor is readable. Go is not told of the call, which
// never waits: its monitor takes the processor away from who is in one for 20 µs, as
// copies of 64 KiB are, and a thread has to wake up to give it back.
func (t *transfer) run(fd uintptr) bool {
	for {
		n, _, errno := syscall.RawSyscall(t.trap, fd, uintptr(unsafe.Pointer(&t.iovs[0])), uintptr(t.count))
		t.n, t.errno = int(n), errno
		if errno != unix.EINTR {
			return errno != unix.EAGAIN
		}
	}
}
