package netstack

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/eventloop"
)

// watchedSocket returns a socket that a worker watches, its address and its far end.
func watchedSocket(t *testing.T, w *worker, h eventloop.Handler) (fd int, watch eventloop.Watch, to netip.AddrPort, far *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	to = ln.Addr().(*net.TCPAddr).AddrPort()
	var name sockName
	name.set(to, true)
	if errno := name.connect(fd); errno != 0 && errno != unix.EINPROGRESS {
		t.Fatal(errno)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if watch, err = w.loop.Add(fd, relayEvents, h); err != nil {
		t.Fatal(err)
	}
	return fd, watch, to, c.(*net.TCPConn)
}

type deaf struct{}

func (deaf) Ready(uint32) {}

// finish has both ends of a connection send FIN.
func finish(t *testing.T, fd int, far *net.TCPConn) {
	t.Helper()
	if errno := shutdownWrite(fd); errno != 0 {
		t.Fatal(errno)
	}
	if err := far.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// Sockets are kept for a while and no longer, the newest of too many, and until
// the worker ends.
func TestSparesAreBounded(t *testing.T) {
	w := testWorker(t)
	const surplus = 3
	var fds []int
	var to netip.AddrPort
	add := func() {
		fd, watch, addr, far := watchedSocket(t, w, deaf{})
		finish(t, fd, far)
		to = addr
		err := w.loop.Do(func() {
			if !w.spares.keep(to, fd, watch) {
				t.Error("not kept")
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	isOpen := func(fd int) bool {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		return err == nil
	}
	for range maxSpares + surplus {
		add()
	}
	_ = w.loop.Do(func() {
		if w.spares.n != maxSpares {
			t.Errorf("%d sockets are kept, want %d", w.spares.n, maxSpares)
		}
		if fd, _, found := w.spares.take(to); !found || fd != fds[len(fds)-1] {
			t.Errorf("took %d, %v; want the newest", fd, found)
		}
		w.spares.Run()
		if w.spares.n != maxSpares-1 {
			t.Errorf("%d sockets are kept for a turn, want %d", w.spares.n, maxSpares-1)
		}
	})
	add() // in the second turn
	_ = w.loop.Do(func() {
		w.spares.Run()
		if w.spares.n != 1 || w.spares.list[0].fd != fds[len(fds)-1] {
			t.Errorf("%d sockets outlive their time, want the newest alone", w.spares.n)
		}
	})
	w.loop.Close()
	w.spares.close()
	if isOpen(fds[len(fds)-1]) {
		t.Error("a socket outlives its worker")
	}
}

// A connection that is not over, or whose last bytes have yet to arrive, is not
// given up.
func TestSparesLeaveWhatIsNotOver(t *testing.T) {
	w := testWorker(t)
	fd, watch, to, far := watchedSocket(t, w, deaf{})
	defer closeSocket(fd)
	keep := func() (kept bool) {
		_ = w.loop.Do(func() { kept = w.spares.keep(to, fd, watch) })
		return kept
	}
	// More than the far end and both kernels hold.
	big := make([]byte, 64<<20)
	n, errno := writev(fd, []unix.Iovec{{Base: &big[0], Len: uint64(len(big))}})
	if errno != 0 || n == len(big) {
		t.Fatalf("wrote %d bytes, %v", n, errno)
	}
	finish(t, fd, far)
	if keep() {
		t.Error("a socket whose bytes have yet to arrive is kept")
	}
	for left := n; left > 0; {
		m, err := far.Read(big)
		if err != nil {
			t.Fatalf("%d bytes are lost: %v", left, err)
		}
		left -= m
	}
}

// What a spare relies on of the kernel: the socket connects again, from another
// port and to another end, with nothing of its last connection, and the watch tells
// of it as of a new one.
func TestDisconnectedSocketIsAsNew(t *testing.T) {
	w := testWorker(t)
	told := make(chan uint32, 64)
	fd, watch, _, far := watchedSocket(t, w, tellTo(told))
	if _, err := far.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	before, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	finish(t, fd, far)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	err = w.loop.Do(func() {
		if errno := disconnect(fd); errno != 0 {
			t.Error(errno)
		}
		for len(told) > 0 {
			<-told
		}
		var name sockName
		name.set(ln.Addr().(*net.TCPAddr).AddrPort(), true)
		if errno := name.connect(fd); errno != 0 && errno != unix.EINPROGRESS {
			t.Error(errno)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if events := <-told; events != unix.EPOLLOUT {
		t.Errorf("told of %#x first, want that it may write", events)
	}
	after, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := before.(*unix.SockaddrInet4).Port, after.(*unix.SockaddrInet4).Port; a == b {
		t.Errorf("port %d again", a)
	}
	if _, err := c.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if events := <-told; events&unix.EPOLLIN == 0 {
		t.Errorf("told of %#x, want that it may read", events)
	}
	buf := make([]byte, 16)
	if n, err := unix.Read(fd, buf); err != nil || string(buf[:n]) != "new" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	_ = w.loop.Do(func() {
		closeSocket(fd)
		watch.Closed()
	})
}

type tellTo chan uint32

func (c tellTo) Ready(events uint32) { c <- events }
