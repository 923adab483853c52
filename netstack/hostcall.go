package netstack

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls that workers make on host sockets. None of them waits, so Go is
// not told of them. With one processor its monitor takes that away from a call of
// more than 20 µs, such as a connect(2) to a neighbour or a writev(2) of many
// segments, and the worker has to wait until a thread has given it back. And while
// the processor goes idle now and then, one call that Go knows of, however short,
// has the monitor look every 70 µs for the next 4 ms, and wake a processor for it
// that others wait for.

// newSocket makes a socket that never waits.
func newSocket(domain, kind, proto int) (int, syscall.Errno) {
	fd, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(domain), uintptr(kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC), uintptr(proto))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), 0
}

// setOption sets an option that is a number.
func setOption(fd int, o option) syscall.Errno {
	value := int32(o.value)
	return setsockopt(fd, o.level, o.name, unsafe.Pointer(&value), unsafe.Sizeof(value))
}

func setsockopt(fd, level, name int, value unsafe.Pointer, size uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(value), size, 0)
	return errno
}

// getOption reads an option that is a number, of which a socket has every one that
// is asked for here.
func getOption(fd, level, name int) int {
	var value int32
	size := uint32(unsafe.Sizeof(value))
	_, _, _ = syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	return int(value)
}

// queued is how many bytes a TCP socket holds: which ones, says the request,
// TIOCINQ or SIOCOUTQ. It cannot fail on one.
func queued(fd int, request uintptr) int {
	var n int32
	_, _, _ = syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&n)))
	return int(n)
}

// bind gives a socket the address.
func (n *sockName) bind(fd int) syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&n.raw)), uintptr(n.length))
	return errno
}

// connect connects a socket with the address.
func (n *sockName) connect(fd int) syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&n.raw)), uintptr(n.length))
	return errno
}

// disconnect takes a TCP socket out of its connection, so that it may be in
// another. What it has not sent is lost.
func disconnect(fd int) syscall.Errno {
	none := sockName{length: unix.SizeofSockaddrInet4}
	none.raw.Family = unix.AF_UNSPEC
	return none.connect(fd)
}

// readv reads what there is, and again when a signal interrupts it.
func readv(fd int, iov []unix.Iovec) (int, syscall.Errno) {
	return vectored(unix.SYS_READV, fd, iov)
}

// writev writes what there is room for, and again when a signal interrupts it.
func writev(fd int, iov []unix.Iovec) (int, syscall.Errno) {
	return vectored(unix.SYS_WRITEV, fd, iov)
}

func vectored(trap uintptr, fd int, iov []unix.Iovec) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
		if errno != unix.EINTR {
			return max(int(n), 0), errno
		}
	}
}

// shutdownWrite sends FIN when all else has been sent.
func shutdownWrite(fd int) syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

// closeSocket closes a socket, which cannot fail.
func closeSocket(fd int) { _, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }
