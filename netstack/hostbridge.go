package netstack

import (
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// bridge makes a socket that leads to a connection which is none itself. The
// connection is closed when the socket is; a reset of one is an end for the
// other.
func bridge(c net.Conn) (int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		c.Close()
		return -1, os.NewSyscallError("socketpair", err)
	}
	file := os.NewFile(uintptr(fds[1]), "bridge")
	local, err := net.FileConn(file)
	file.Close()
	if err != nil {
		c.Close()
		unix.Close(fds[0])
		return -1, err
	}
	go carryBoth(c, local)
	return fds[0], nil
}

// carryBoth runs a bridge, which starts it, until both directions have ended.
func carryBoth(c, local net.Conn) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		carry(local, c)
	}()
	carry(c, local)
	<-ended
	c.Close()
	local.Close()
}

// carry is one direction of a bridge. It ends with its source and passes the end
// on; where the destination has no half-close, or the copy
// fails, both ends are closed, which ends the other direction.
func carry(to, from net.Conn) {
	_, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err == nil && ok && half.CloseWrite() == nil {
		return
	}
	to.Close()
	from.Close()
}
