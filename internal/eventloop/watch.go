package eventloop

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Watch is a descriptor that a loop watches. The zero Watch watches nothing, and
// its methods do nothing.
type Watch struct {
	l          *Loop
	fd         int
	index      uint32
	generation uint32
}

// Add has the loop call h when one of the events of epoll_ctl(2) holds for fd,
// which must stay open until the watch is removed. Without EPOLLET, h is called
// again and again while the event holds.
func (l *Loop) Add(fd int, events uint32, h Handler) (Watch, error) {
	w := l.take(fd, h)
	if err := w.control(unix.EPOLL_CTL_ADD, events); err != nil {
		w.forget()
		return Watch{}, err
	}
	return w, nil
}

// take finds a slot.
func (l *Loop) take(fd int, h Handler) Watch {
	l.mu.Lock()
	defer l.mu.Unlock()
	var index uint32
	if n := len(l.free); n > 0 {
		index = l.free[n-1]
		l.free = l.free[:n-1]
	} else {
		index = uint32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	s := &l.slots[index]
	s.handler = h
	return Watch{l: l, fd: fd, index: index, generation: s.generation}
}

func (w Watch) control(op int, events uint32) error {
	e := unix.EpollEvent{Events: events, Fd: int32(w.index), Pad: int32(w.generation)}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(w.l.epfd), uintptr(op), uintptr(w.fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	return nil
}

// Modify replaces the events. Errors and hang-ups are told whatever they are.
func (w Watch) Modify(events uint32) error {
	if w.l == nil {
		return nil
	}
	return w.control(unix.EPOLL_CTL_MOD, events)
}

// Remove ends the watch. Called on the loop, the handler is never called again;
// called elsewhere, it may be under way. Call it once, before fd is closed.
func (w Watch) Remove() {
	if w.l == nil {
		return
	}
	_ = w.control(unix.EPOLL_CTL_DEL, 0) // fails only for what is not there
	w.forget()
}

// Closed is Remove for a descriptor that its only owner has closed just now: the
// kernel has ended the watch itself. Call it on the loop, and once.
func (w Watch) Closed() {
	if w.l != nil {
		w.forget()
	}
}

// Handle has h called from now on. Call it on the loop.
func (w Watch) Handle(h Handler) {
	if w.l == nil {
		return
	}
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	w.l.slots[w.index].handler = h
}

// forget frees the slot.
func (w Watch) forget() {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	s := &w.l.slots[w.index]
	s.handler = nil
	s.generation++
	w.l.free = append(w.l.free, w.index)
}
