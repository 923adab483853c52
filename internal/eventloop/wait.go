package eventloop

import (
	"time"

	"golang.org/x/sys/unix"
	"syscall"
	"unsafe"
)

const (
	// napTime is how long the loop sleeps on its own thread before it parks.
	// Longer than a neighbour on the same machine takes to answer; shorter than
	// what another goroutine would notice that waits for the processor which
	// the sleep holds.
	napTime = 200 * time.Microsecond
)

// wait returns when events were found, or something was posted.
func (l *Loop) wait() {
	if l.poll() {
		return
	}
	l.sleeping.Store(true)
	if l.anyPosted() {
		l.sleeping.Store(false)
		return
	}
	l.round++
	if !l.nap() {
		// Only a closed descriptor is an error, and Close waits for the loop.
		_ = l.park(l.looking)
	}
	l.sleeping.Store(false)
}

func (l *Loop) anyPosted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.posted) > 0 || l.closed
}

// look is poll as Go's poller wants it.
func (l *Loop) look(uintptr) bool { return l.poll() }

// poll looks for events without waiting.
func (l *Loop) poll() bool {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epfd), uintptr(unsafe.Pointer(&l.events[0])), maxEvents, 0, 0, 0)
	return l.found(n, errno)
}

// nap waits for events in the kernel, for a moment.
func (l *Loop) nap() bool {
	limit := unix.NsecToTimespec(int64(napTime))
	n, _, errno := syscall.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.epfd), uintptr(unsafe.Pointer(&l.events[0])), maxEvents, uintptr(unsafe.Pointer(&limit)), 0, 0)
	return l.found(n, errno)
}

func (l *Loop) found(n uintptr, errno syscall.Errno) bool {
	l.count = 0
	if errno != 0 || n == 0 {
		return false
	}
	l.count = int(n)
	l.round++
	return true
}
