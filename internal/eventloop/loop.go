package eventloop

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Handler is told what happens on a descriptor. Its method runs on the loop.
type Handler interface {
	// Ready is called with the events of epoll(7) that hold.
	Ready(events uint32)
}

// Task is work for the loop. Its method runs on the loop.
type Task interface{ Run() }

// ErrClosed says that the loop has ended.
var ErrClosed = errors.New("event loop is closed")

// Loop runs handlers and tasks in one goroutine, which New starts and Close
// ends. Its methods are safe for concurrent use unless they say otherwise.
type Loop struct {
	epfd    int
	wake    int      // eventfd that ends a sleep
	file    *os.File // of epfd, watched by Go's poller
	park    func(func(uintptr) bool) error
	looking func(uintptr) bool // l.look, bound once
	done    chan struct{}      // closed when the goroutine has ended

	sleeping atomic.Bool // the loop is about to wait, or waits
	pending  atomic.Bool // something was posted, or the loop closed
	lulled   atomic.Bool // something waits for a lull
	yield    atomic.Bool // another goroutine has been given work

	// The goroutine's own.
	events     [maxEvents]unix.EpollEvent
	count      int    // of events
	round      uint64 // how many times events were found
	unyielding int    // turns since others had theirs
	glance     glance
	nap        time.Duration // before the next look; 0: none, negative: stand aside
	overslept  bool          // the last one took far longer
	spinner    spinner
	spare      []Task

	spareLull []Task

	mu     sync.Mutex // guards what follows
	posted []Task
	lull   []Task
	since  time.Time // of the first in lull
	slots  []slot
	free   []uint32
	closed bool
}

// slot is a place for a watched descriptor. The kernel knows it by index and
// generation, so that an event of a watch that was removed meets nobody.
type slot struct {
	handler    Handler
	generation uint32
}

// maxEvents is how many descriptors one round serves.
const maxEvents = 64

// New makes a loop and starts its goroutine.
func New() (*Loop, error) {
	l := &Loop{wake: -1, done: make(chan struct{})}
	var err error
	if l.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	if err := l.prepare(); err != nil {
		l.release()
		return nil, fmt.Errorf("event loop: %w", err)
	}
	go l.run()
	return l, nil
}

// prepare makes the descriptors of a loop that has its epoll descriptor.
func (l *Loop) prepare() error {
	var err error
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	if _, err := l.Add(l.wake, unix.EPOLLIN, wakeHandler{l}); err != nil {
		return err
	}
	// What is in non-blocking mode is watched by Go's poller.
	if err := unix.SetNonblock(l.epfd, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	l.file = os.NewFile(uintptr(l.epfd), "epoll")
	conn, err := l.file.SyscallConn()
	if err != nil {
		return err
	}
	l.park, l.looking = conn.Read, l.look
	return l.glance.open()
}

func (l *Loop) release() {
	if l.file != nil {
		l.file.Close()
	} else {
		unix.Close(l.epfd)
	}
	if l.wake >= 0 {
		unix.Close(l.wake)
	}
	l.glance.close()
}

// wakeHandler resets the eventfd. That somebody wrote to it was all it had to
// say.
type wakeHandler struct{ l *Loop }

func (h wakeHandler) Ready(uint32) {
	var count [8]byte
	_, _ = unix.Read(h.l.wake, count[:])
}

// run is the loop. New starts it, Close ends it.
func (l *Loop) run() {
	defer close(l.done)
	for l.runPosted() {
		l.giveWay()
		l.wait()
		for i := range l.count {
			if h := l.handler(&l.events[i]); h != nil {
				h.Ready(l.events[i].Events)
			}
		}
		if l.lulled.Load() && l.overdue() {
			l.runLull()
		}
	}
}

// overdue reports whether a lull is no longer to be waited for.
func (l *Loop) overdue() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lull) > 0 && time.Since(l.since) >= maxLull
}

// runLull runs the tasks that wait for a lull.
func (l *Loop) runLull() {
	l.mu.Lock()
	l.lulled.Store(false)
	tasks := l.lull
	l.lull, l.spareLull = l.spareLull[:0], nil
	l.mu.Unlock()
	for i, t := range tasks {
		tasks[i] = nil
		t.Run()
	}
	l.spareLull = tasks[:0]
}

func (l *Loop) handler(e *unix.EpollEvent) Handler {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := &l.slots[e.Fd]; s.generation == uint32(e.Pad) {
		return s.handler
	}
	return nil
}

// runPosted runs the tasks that are there, and not those that they post. It
// reports false when the loop is to end.
func (l *Loop) runPosted() bool {
	l.mu.Lock()
	l.pending.Store(false)
	tasks := l.posted
	l.posted, l.spare = l.spare[:0], nil
	closed := l.closed
	l.mu.Unlock()
	for i, t := range tasks {
		tasks[i] = nil
		t.Run()
	}
	l.spare = tasks[:0]
	return !closed || len(tasks) > 0
}

// Post has a task run soon. Tasks run in the order in which they were posted. A
// task that is posted after Close has returned never runs.
func (l *Loop) Post(t Task) {
	l.mu.Lock()
	l.posted = append(l.posted, t)
	l.pending.Store(true)
	l.mu.Unlock()
	l.rouse()
}

// maxLull is how long a busy loop lets wait what waits for a lull.
const maxLull = 2 * time.Millisecond

// PostLull has a task run when the loop has nothing else to do, or has been busy
// for 2 ms.
func (l *Loop) PostLull(t Task) {
	l.mu.Lock()
	if len(l.lull) == 0 {
		l.since = time.Now()
	}
	l.lull = append(l.lull, t)
	l.lulled.Store(true)
	l.mu.Unlock()
	l.rouse()
}

// rouse makes sure that the loop looks at what was posted.
func (l *Loop) rouse() {
	if l.sleeping.Load() && l.sleeping.CompareAndSwap(true, false) {
		one := [8]byte{1} // in either byte order it is not zero
		_, _ = unix.Write(l.wake, one[:])
	}
}

// Do runs f on the loop and returns when it has run, or with ErrClosed. It must
// not be called on the loop.
func (l *Loop) Do(f func()) error {
	t := &call{f: f, done: make(chan struct{})}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ErrClosed
	}
	l.posted = append(l.posted, t)
	l.pending.Store(true)
	l.mu.Unlock()
	l.rouse()
	<-t.done
	return nil
}

// call is a function as a task that somebody waits for.
type call struct {
	f    func()
	done chan struct{}
}

func (c *call) Run() {
	defer close(c.done)
	c.f()
}

// Yield has the loop let other goroutines run when it has run the tasks that were
// posted. Call it when a handler or task has given work to a goroutine, which had
// else to wait until the loop sleeps or some turns are over.
func (l *Loop) Yield() { l.yield.Store(true) }

// Nap has the loop sleep for d before it looks at its descriptors again, once, so
// that what comes meanwhile is found together; tasks that were posted already run
// first. The sleep ends late by what the kernel's timers are late, 50 µs by
// default. It stops the world for that long where Go uses one processor, after
// other goroutines had their turn: keep d far below a millisecond. Call it on the
// loop.
func (l *Loop) Nap(d time.Duration) { l.nap = d }

// StandAside has the loop leave the processor before it looks at its descriptors
// again, once, to other threads that wait for it (sched_yield(2)), and go on at once
// where none does. It is otherwise like Nap. Call it on the loop.
func (l *Loop) StandAside() { l.nap = -1 }

// Overslept reports whether the last Nap or StandAside ended late by more than 0.5 ms,
// as it does when others have the processor. Call it on the loop.
func (l *Loop) Overslept() bool { return l.overslept }

// Round counts the times that the loop found descriptors ready without having
// slept in between, or gone on to others. Call it on the loop.
func (l *Loop) Round() uint64 { return l.round }

// Close runs what was posted, ends the loop and waits for it. It must not be
// called on the loop. Handlers that are still there are never called again.
// Calls after the first do nothing.
func (l *Loop) Close() {
	l.mu.Lock()
	was := l.closed
	l.closed = true
	l.pending.Store(true)
	l.mu.Unlock()
	l.rouse()
	<-l.done
	if !was {
		l.release()
	}
}
