package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/policy"
)

// dialHost connects the host side of a request and returns its socket. ctx
// bounds it.
//
// It makes the socket itself: package net would have Go's poller watch it, which
// the worker does, and asks in vain for things that are known here.
func (r *request) dialHost(ctx context.Context) (int, error) {
	s, v := r.t.s, r.verdict
	control := s.dialControl(v.Target != policy.TargetHostService)
	network, domain := "tcp4", unix.AF_INET
	if v.Addr.Addr().Is6() {
		network, domain = "tcp6", unix.AF_INET6
	}
	if dial := s.cfg.Host.DialContext; dial != nil {
		c, err := dial(ctx, network, v.Addr.String(), control)
		if err != nil {
			return -1, err
		}
		return socketOf(c)
	}
	// Plain TCP: MPTCP costs an extra option on every connection, many middle
	// boxes refuse it, and neither Landlock nor SO_LINGER treat it as TCP.
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := r.connect(ctx, fd, network, control); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (r *request) connect(ctx context.Context, fd int, network string, control ControlFunc) error {
	setHostOptions(fd)
	if err := control(network, r.verdict.Addr.String(), rawDescriptor(fd)); err != nil {
		return err
	}
	var name sockName
	name.set(r.verdict.Addr, r.verdict.Addr.Addr().Is4())
	switch errno := name.connect(fd); errno {
	case 0:
		return nil
	case unix.EINPROGRESS:
		return os.NewSyscallError("connect", r.awaitConnect(ctx, fd))
	default:
		return os.NewSyscallError("connect", errno)
	}
}

// awaitConnect waits for the far end's answer. One on this machine has answered
// already.
func (r *request) awaitConnect(ctx context.Context, fd int) error {
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 0); n == 0 {
		answered := make(answer, 1)
		w, err := r.link.worker.loop.Add(fd, unix.EPOLLOUT|unix.EPOLLONESHOT, answered)
		if err != nil {
			return err
		}
		defer w.Remove()
		select {
		case <-answered:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = syscall.Errno(errno)
	}
	return err
}

// answer is told when a connect is over.
type answer chan struct{}

// Ready implements eventloop.Handler.
func (a answer) Ready(uint32) { token(a) }

// setHostOptions are what every host socket of a relay has: no delay of small
// segments, for the container's kernel has decided on that, and keepalive, so
// that a peer that is gone is found late, not never. None can fail on a TCP
// socket, and on any other nothing is lost.
func setHostOptions(fd int) {
	setOptions(uintptr(fd), []option{
		{unix.SOL_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_TCP, unix.TCP_KEEPIDLE, int(keepaliveIdle.Seconds())},
		{unix.SOL_TCP, unix.TCP_KEEPINTVL, int(keepaliveInterval.Seconds())},
		{unix.SOL_TCP, unix.TCP_KEEPCNT, keepaliveCount},
	})
}

// lingerNot makes close(2) reset the connection.
func lingerNot(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// abortSocket closes a host socket with a reset: its far end must not take the
// container's refusal for an orderly end.
func abortSocket(fd int) {
	lingerNot(fd)
	unix.Close(fd)
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
