package eventloop

import (
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxUnyielding is after how many turns a busy loop lets others run whom it does not
// know of.
const maxUnyielding = 8

// giveWay lets other goroutines run if one has been given work, or after a while.
func (l *Loop) giveWay() {
	glance := l.glance.due()
	if l.unyielding++; glance || l.unyielding >= maxUnyielding || l.yield.Load() {
		l.yield.Store(false)
		l.unyielding = 0
		runtime.Gosched()
	}
	if glance {
		l.glance.take()
	}
}

// glanceEvery is how long a busy loop keeps others waiting, and Go from looking at its
// poller. Go's monitor does so after 10 ms.
const glanceEvery = time.Millisecond

// glance has Go look at its own poller beside a busy loop, for whoever waits for a
// descriptor that is not the loop's: a client of the control API, a query's answer.
// Go looks there when a goroutine parks and none can run, not when one yields. So
// the loop parks for a descriptor of which the poller will have something to tell
// when it looks. The zero glance has to be opened.
type glance struct {
	file *os.File // an eventfd that nobody reads: each write is one more edge
	read func(func(uintptr) bool) error
	ring func(uintptr) bool // g.once, bound once
	rung bool
	last time.Time
}

// open makes the descriptor.
func (g *glance) open() error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	g.file = os.NewFile(uintptr(fd), "glance")
	conn, err := g.file.SyscallConn()
	if err != nil {
		return err
	}
	g.read, g.ring = conn.Read, g.once
	return nil
}

// close gives the descriptor back.
func (g *glance) close() {
	if g.file != nil {
		g.file.Close()
	}
}

// due reports whether the last glance is long ago.
func (g *glance) due() bool { return time.Since(g.last) >= glanceEvery }

// take takes a glance, and lets those run whom it woke.
func (g *glance) take() {
	g.last, g.rung = time.Now(), false
	_ = g.read(g.ring) // of an open descriptor cannot fail
	runtime.Gosched()
}

// once writes to the descriptor the first time that it is asked whether there is
// something to read. Written to any earlier, another thread may have the poller tell of
// it before the read has begun, which forgets that, and the loop would wait for ever.
func (g *glance) once(fd uintptr) bool {
	if g.rung {
		return true
	}
	g.rung = true
	one := [8]byte{1} // in either byte order it is not zero
	_, _, errno := syscall.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&one)), uintptr(len(one)))
	return errno != 0 // no edge to wait for
}
