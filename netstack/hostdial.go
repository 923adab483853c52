package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/eventloop"
	"github.com/usernet/usernet/internal/policy"
)

// dial begins to connect the host side. It makes the socket itself: package net
// would have Go's poller watch it, which the worker does.
func (r *request) dial() {
	to := r.verdict.Addr
	if err := r.checkDial(); err != nil {
		r.refuse(err)
		return
	}
	if err := r.socket(to); err != nil {
		r.refuse(err)
		return
	}
	var name sockName
	name.set(to, to.Addr().Is4())
	if errno := name.connect(r.host); errno != 0 && errno != unix.EINPROGRESS {
		r.refuse(os.NewSyscallError("connect", errno))
		return
	}
	r.await()
}

// socket gives the request a host socket: one that is left of a connection to the
// same address, or a new one.
func (r *request) socket(to netip.AddrPort) error {
	hook := r.t.s.cfg.Host.Control
	if hook == nil { // nobody sets options that the next connection would inherit
		r.reusable = true
		if fd, watch, found := r.link.worker.spares.take(to); found {
			r.host, r.watch = fd, watch
			r.watch.Handle(r)
			return nil
		}
	}
	domain, network := unix.AF_INET, "tcp4"
	if to.Addr().Is6() {
		domain, network = unix.AF_INET6, "tcp6"
	}
	// Plain TCP: MPTCP costs an extra option on every connection, many middle
	// boxes refuse it, and neither Landlock nor SO_LINGER treat it as TCP.
	var errno syscall.Errno
	if r.host, errno = newSocket(domain, unix.SOCK_STREAM, unix.IPPROTO_TCP); errno != 0 {
		return os.NewSyscallError("socket", errno)
	}
	setNoDelay(r.host)
	if hook != nil {
		return hook(network, to.String(), rawDescriptor(r.host))
	}
	return nil
}

// await has the worker tell when the host socket is connected, which one of this
// machine already is.
func (r *request) await() {
	r.phase = phaseConnect
	if r.watch != (eventloop.Watch{}) {
		return // it watches the socket still
	}
	var err error
	if r.watch, err = r.link.worker.loop.Add(r.host, relayEvents, r); err != nil {
		r.refuse(err)
	}
}

// dialByHook has the embedding program dial. Its function may wait, hence the
// goroutine, which ends with it.
func (r *request) dialByHook() {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	r.phase, r.cancel = phaseHook, cancel
	s, to := r.t.s, r.verdict.Addr
	network := "tcp4"
	if to.Addr().Is6() {
		network = "tcp6"
	}
	control := s.dialControl(r.verdict.Target != policy.TargetHostService)
	go func() {
		result := &dialResult{host: -1}
		c, err := s.cfg.Host.DialContext(ctx, network, to.String(), control)
		if err == nil {
			result.host, err = socketOf(c)
		}
		result.err = err
		r.dialled.Store(result)
		r.post()
	}()
	r.link.worker.loop.Yield()
}

// runHook looks at what has become of the hook's dial. A request that is cut
// waits for it all the same, or its socket would be nobody's.
func (r *request) runHook() {
	cause := r.cutCause()
	result := r.dialled.Load()
	if result == nil {
		if cause != "" {
			r.cancel()
		}
		return
	}
	r.cancel()
	r.host = result.host
	switch {
	case cause != "":
		r.giveUp(cause)
	case result.err != nil:
		r.refuse(result.err)
	default:
		setNoDelay(r.host)
		r.await()
	}
}

// checkDial is policy's last word on where the dial goes.
func (r *request) checkDial() error {
	if r.verdict.Target == policy.TargetHostService {
		return nil
	}
	return r.t.s.checkDial(r.verdict.Addr)
}

// socketError is what has become of a connect.
func socketError(fd int) error {
	if errno := getOption(fd, unix.SOL_SOCKET, unix.SO_ERROR); errno != 0 {
		return os.NewSyscallError("connect", syscall.Errno(errno))
	}
	return nil
}

// setNoDelay has small segments leave at once: whether they wait has been decided
// by the container's kernel, or the client's. It cannot fail on a TCP socket, and
// on any other nothing is lost.
func setNoDelay(fd int) {
	setOptions(uintptr(fd), []option{{unix.SOL_TCP, unix.TCP_NODELAY, 1}})
}

// setHostKeepalive makes the host's kernel notice a far end that is gone late,
// not never. As with setNoDelay, it cannot fail.
func setHostKeepalive(fd int) {
	setOptions(uintptr(fd), []option{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_TCP, unix.TCP_KEEPIDLE, int(keepaliveIdle.Seconds())},
		{unix.SOL_TCP, unix.TCP_KEEPINTVL, int(keepaliveInterval.Seconds())},
		{unix.SOL_TCP, unix.TCP_KEEPCNT, keepaliveCount},
	})
}

// lingerNot makes close(2) reset the connection.
func lingerNot(fd int) {
	linger := unix.Linger{Onoff: 1}
	_ = setsockopt(fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&linger), unsafe.Sizeof(linger))
}

// abortSocket closes a host socket with a reset: its far end must not take the
// container's refusal for an orderly end.
func abortSocket(fd int) {
	lingerNot(fd)
	closeSocket(fd)
}

// rawDescriptor is a socket as hooks want to see it.
type rawDescriptor int

// Control implements syscall.RawConn.
func (d rawDescriptor) Control(f func(fd uintptr)) error {
	f(uintptr(d))
	return nil
}

// Read implements syscall.RawConn. There is nothing to read yet.
func (d rawDescriptor) Read(func(fd uintptr) bool) error { return syscall.ENOTCONN }

// Write implements syscall.RawConn.
func (d rawDescriptor) Write(func(fd uintptr) bool) error { return syscall.ENOTCONN }

// dialControl is what happens on a socket just before connect(2): the hook of
// the embedding program, and policy's last word on the very address that the
// kernel is going to see.
func (s *Switch) dialControl(check bool) ControlFunc {
	return func(network, address string, c syscall.RawConn) error {
		if check {
			final, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("dial to %q: %w", address, err)
			}
			if err := s.checkDial(final); err != nil {
				return err
			}
		}
		if hook := s.cfg.Host.Control; hook != nil {
			return hook(network, address, c)
		}
		return nil
	}
}

// socketOf takes the socket out of a connection of package net. One that is no
// socket, such as an embedding program may dial, is carried to one.
func socketOf(c net.Conn) (int, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return bridge(c)
	}
	fd, err := duplicateSocket(sc)
	c.Close()
	return fd, err
}

// duplicateSocket returns a descriptor of its own of a socket that package net
// has. Go's poller does not watch it.
func duplicateSocket(c syscall.Conn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var result error
	err = raw.Control(func(old uintptr) {
		fd, result = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, result); err != nil {
		return -1, fmt.Errorf("duplicate the host socket: %w", err)
	}
	return fd, nil
}
