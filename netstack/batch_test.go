package netstack

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hostPair returns a non-blocking socket and a connection to it.
func hostPair(t *testing.T) (fd int, far *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	host, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if fd, err = socketOf(host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	// Room for more than a burst: the kernel makes it for who wants to hear of
	// so much only, and keeps it.
	for _, least := range []int{2 * burstSize, 1} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, least); err != nil {
			t.Fatal(err)
		}
	}
	return fd, c.(*net.TCPConn)
}

// awaitBytes waits until n bytes lie in the socket.
func awaitBytes(t *testing.T, fd, n int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
		if got, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err != nil || got >= n {
			return
		} else if time.Now().After(end) {
			t.Fatalf("%d bytes in the socket, want %d", got, n)
		}
	}
}

// Whatever a burst's length, its bytes come whole and in order, and as many as
// were promised; what arrives meanwhile waits for the next burst.
func TestChunkPromisesWhatItReads(t *testing.T) {
	for _, busy := range []bool{false, true} {
		for _, size := range []int{
			1, shortRead - 1, shortRead, shortRead + 1, stackView, stackView + 1,
			shortRead + stackView, shortRead + stackView + 1, 600_000,
		} {
			testBurst(t, busy, size)
		}
	}
}

func testBurst(t *testing.T, busy bool, size int) {
	fd, far := hostPair(t)
	want := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want)
	mustWriteAll(t, far, want)
	awaitBytes(t, fd, size)
	c := new(chunk)
	if errno := c.fill(fd, busy); errno != 0 {
		t.Fatal(errno)
	}
	if c.Len() != size || c.more {
		t.Errorf("of %d bytes %d are promised, more: %v", size, c.Len(), c.more)
	}
	rest := c.rest
	mustWriteAll(t, far, []byte("next"))
	awaitBytes(t, fd, rest+4)
	var got []byte
	for p := make([]byte, stackView); c.Len() > 0; {
		n, err := c.Read(p)
		if n == 0 || err != nil {
			t.Fatalf("of %d bytes, after %d: %d, %v", size, len(got), n, err)
		}
		got = append(got, p[:n]...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes changed on the way", size)
	}
	if c.spill != nil {
		t.Error("an empty burst holds a spill")
	}
	if errno := c.fill(fd, busy); errno != 0 || string(c.next) != "next" {
		t.Errorf("then came %q, %v", c.next, errno)
	}
}

// A burst is bounded, however much there is.
func TestChunkIsBounded(t *testing.T) {
	fd, far := hostPair(t)
	go func() { _, _ = far.Write(make([]byte, 4<<20)) }() // the end of the test ends it
	awaitBytes(t, fd, shortRead+burstSize+1)
	for busy, want := range map[bool]int{true: burstSize, false: shortRead + burstSize} {
		c := new(chunk)
		if errno := c.fill(fd, busy); errno != 0 || c.Len() != want || !c.more {
			t.Errorf("busy %v: a burst of %d bytes, more: %v, %v; want %d and more", busy, c.Len(), c.more, errno, want)
		}
		awaitBytes(t, fd, shortRead+burstSize+1)
	}
}

// A socket that ends within a burst is an error, and not a hang: gVisor asks
// until it has what was promised.
func TestChunkOfABrokenSocket(t *testing.T) {
	fd, far := hostPair(t)
	far.Close()
	awaitReadable(t, fd)
	c := &chunk{fd: fd, rest: 5}
	if n, err := c.Read(make([]byte, 10)); n != 0 || err != io.ErrUnexpectedEOF {
		t.Errorf("%d, %v; want an unexpected end", n, err)
	}
	if errno := c.fill(fd, false); errno != 0 || c.Len() != 0 {
		t.Errorf("at the end: %d bytes, %v; want none", c.Len(), errno)
	}
}

func TestChunkAllocatesNothing(t *testing.T) {
	fd, far := hostPair(t)
	c, p, data := new(chunk), make([]byte, stackView), make([]byte, 3*stackView)
	if n := testing.AllocsPerRun(20, func() {
		mustWriteAll(t, far, data)
		awaitReadable(t, fd)
		if errno := c.fill(fd, true); errno != 0 {
			t.Fatal(errno)
		}
		for c.Len() > 0 {
			if _, err := c.Read(p); err != nil {
				t.Fatal(err)
			}
		}
	}); n >= 1 {
		t.Errorf("%v allocations a burst", n)
	}
}

func mustWriteAll(t *testing.T, c *net.TCPConn, p []byte) {
	t.Helper()
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
}

func awaitReadable(t *testing.T, fd int) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if n, err := unix.Poll(fds, 10_000); n == 1 {
			return
		} else if err != unix.EINTR {
			t.Fatalf("nothing to read in 10 s: %v", err)
		}
	}
}
