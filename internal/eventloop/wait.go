package eventloop

import (
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxSpin is how long the loop asks again and again before it parks, at
	// most. A neighbour on the same machine answers within that time.
	maxSpin = 50 * time.Microsecond
	// minSpin is the first spin after short sleeps came up again.
	minSpin = 5 * time.Microsecond
	// lateNap is by how much a nap ends late when others have the processor. The
	// kernel's timers and an idle virtual processor take less than half of it.
	lateNap = 500 * time.Microsecond
)

// spinner decides how long to spin, as KVM does for a processor that halts: a
// sleep that was short would have been worth a longer spin, a spin in vain was
// too long. The zero spinner does not spin.
type spinner struct{ limit time.Duration }

// found notes that a spin has found events.
func (s *spinner) found() { s.limit = maxSpin }

// slept notes a sleep that followed a spin in vain.
func (s *spinner) slept(d time.Duration) {
	if d <= maxSpin {
		s.limit = min(max(2*s.limit, minSpin), maxSpin)
	} else {
		s.limit /= 2
	}
}

// wait returns when events were found, or something was posted.
func (l *Loop) wait() {
	if l.nap != 0 {
		l.takeNap()
	}
	if l.poll() || l.pending.Load() {
		return
	}
	if l.lulled.Load() {
		l.runLull()
	}
	if l.spin() {
		return
	}
	l.round++ // what comes now has not come at once
	l.sleeping.Store(true)
	if !l.anyPosted() {
		from := time.Now()
		// Only a closed descriptor is an error, and Close waits for the loop.
		_ = l.park(l.looking)
		now := time.Now()
		l.spinner.slept(now.Sub(from))
		l.glance.last = now // Go has looked at its poller
	}
	l.sleeping.Store(false)
}

// takeNap sleeps or stands aside. Go is not told of it: its monitor would give the
// processor to another thread, which had to wake up to take it and to give it back.
func (l *Loop) takeNap() {
	runtime.Gosched()
	d, aside := max(l.nap, 0), l.nap < 0
	l.nap = 0
	from := time.Now()
	if aside {
		_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // cannot fail
	} else {
		t := unix.NsecToTimespec(int64(d))
		_, _, _ = syscall.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&t)), 0, 0) // a signal may end it
	}
	l.overslept = time.Since(from) > d+lateNap
}

// spin looks for events, and for tasks, for as long as that has paid lately.
func (l *Loop) spin() bool {
	if l.spinner.limit < minSpin {
		return false
	}
	for from := time.Now(); time.Since(from) < l.spinner.limit; {
		if l.poll() {
			l.spinner.found()
			return true
		}
		if l.pending.Load() || l.lulled.Load() {
			return true
		}
	}
	return false
}

// anyPosted reports whether a sleep would be in vain.
func (l *Loop) anyPosted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.posted) > 0 || len(l.lull) > 0 || l.closed
}

// look is poll as Go's poller wants it.
func (l *Loop) look(uintptr) bool { return l.poll() }

// poll looks for events without waiting.
func (l *Loop) poll() bool {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epfd), uintptr(unsafe.Pointer(&l.events[0])), maxEvents, 0, 0, 0)
	if errno != 0 {
		n = 0
	}
	l.count = int(n)
	if n == 0 {
		return false
	}
	l.round++
	return true
}
