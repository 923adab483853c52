package netstack

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
)

const (
	// batchPieces is how many pieces of the receive queue go out with one
	// writev: some nine superframes of seven views.
	batchPieces = 64

	// firstRead is what the first read(2) of a burst asks for. A request or
	// response of this size costs one read and one small copy.
	firstRead = 16 << 10

	// burstSize bounds the rest of a burst, and so how long others on the worker
	// wait for their turn. The longer bursts are, the less often the processes
	// at both ends wake up, and the more they find when they do.
	burstSize = 1 << 20

	// spillSize is how much one read may take beyond the stack's view of 64 KiB:
	// each read acknowledges, and has the far kernel send, on this thread. Four
	// views a read cost less, with the copy of three, than four reads.
	spillSize = 192 << 10
)

// batch gathers what lies in an endpoint's receive queue and writes it to the
// host from where it lies.
type batch struct {
	iov     [batchPieces]unix.Iovec
	n, next int // pieces there are, and the first not yet written whole
	bytes   int
	wrote   int
	limited tcpip.LimitedWriter
}

var batches = sync.Pool{New: func() any { return new(batch) }}

var errBatchFull = errors.New("batch full")

// peek points the batch at the receive queue's memory. The memory stays until
// it is consumed.
func (b *batch) peek(ep tcpip.Endpoint) (int, tcpip.Error) {
	b.n, b.next, b.bytes, b.wrote = 0, 0, 0, 0
	_, err := ep.Read(b, tcpip.ReadOptions{Peek: true})
	return b.bytes, err
}

// Write notes a piece of the receive queue; the endpoint calls it, locked.
func (b *batch) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if b.full() {
		return 0, errBatchFull
	}
	b.iov[b.n].Base = &p[0]
	b.iov[b.n].SetLen(len(p))
	b.n++
	b.bytes += len(p)
	return len(p), nil
}

// full reports whether the receive queue may hold more pieces than the batch.
func (b *batch) full() bool { return b.n == batchPieces }

// consume takes the first n bytes from the receive queue.
func (b *batch) consume(ep tcpip.Endpoint, n int) {
	clear(b.iov[:b.n])
	if n == 0 {
		return
	}
	b.limited = tcpip.LimitedWriter{W: io.Discard, N: int64(n)}
	// They are there, and only the relay takes from the queue.
	_, _ = ep.Read(&b.limited, tcpip.ReadOptions{})
	ep.ModerateRecvBuf(n)
}

// send writes the batch to the host, without waiting for room: EAGAIN says that
// there was none for the rest.
func (b *batch) send(fd int) syscall.Errno {
	for b.next < b.n {
		n, _, errno := syscall.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&b.iov[b.next])), uintptr(b.n-b.next))
		switch errno {
		case 0:
			b.wrote += int(n)
			b.advance(int(n))
		case unix.EINTR:
		default:
			return errno
		}
	}
	return 0
}

// advance skips n written bytes.
func (b *batch) advance(n int) {
	for n > 0 {
		v := &b.iov[b.next]
		size := int(v.Len)
		if n < size {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.SetLen(size - n)
			return
		}
		n -= size
		b.next++
	}
}

// chunk is a burst of bytes on the way from the host to the container, as a
// tcpip.Payloader: the next ones in own memory, the rest still in the host
// socket. Its length must be exact, since gVisor asks until it has as much as
// was promised, so the rest is what the kernel says is there, and nobody else
// reads that socket.
type chunk struct {
	mem        [spillSize]byte
	start, end int  // of mem
	rest       int  // bytes still in the socket
	more       bool // the socket may have more than that
	fd         int
	iov        [2]unix.Iovec // of a read
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// Len is the number of bytes left.
func (c *chunk) Len() int { return c.end - c.start + c.rest }

// Read takes bytes, the socket's straight into p. Only an error of the socket,
// or an end that the kernel had not announced, ends it early.
func (c *chunk) Read(p []byte) (int, error) {
	if len(p) == 0 || c.Len() == 0 {
		return 0, nil
	}
	if c.start == c.end {
		return c.take(p)
	}
	n := copy(p, c.mem[c.start:c.end])
	c.start += n
	return n, nil
}

// take reads from the socket into p, and what follows into mem.
func (c *chunk) take(p []byte) (int, error) {
	p = p[:min(len(p), c.rest)]
	n, errno := c.readv(p, c.mem[:min(len(c.mem), c.rest-len(p))])
	if errno != 0 {
		return 0, errno
	}
	if n == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	c.rest -= n
	direct := min(n, len(p))
	c.start, c.end = 0, n-direct
	return direct, nil
}

// fill reads the beginning of a burst: nothing at the host's FIN, EAGAIN when
// there is nothing yet.
func (c *chunk) fill(fd int) syscall.Errno {
	c.fd = fd
	n, errno := c.readv(c.mem[:firstRead], nil)
	if errno != 0 {
		return errno
	}
	c.start, c.end, c.rest = 0, n, 0
	if c.more = n == firstRead; !c.more {
		return 0
	}
	left, err := unix.IoctlGetInt(fd, unix.TIOCINQ) // of a TCP socket cannot fail
	if err != nil {
		left = 0
	}
	c.rest = min(left, burstSize)
	return 0
}

// readv reads what the socket has into a, which is not empty, and then b.
func (c *chunk) readv(a, b []byte) (int, syscall.Errno) {
	c.iov[0].Base = &a[0]
	c.iov[0].SetLen(len(a))
	pieces := 1
	if len(b) > 0 {
		c.iov[1].Base = &b[0]
		c.iov[1].SetLen(len(b))
		pieces = 2
	}
	defer clear(c.iov[:])
	for {
		n, _, errno := syscall.Syscall(unix.SYS_READV, uintptr(c.fd), uintptr(unsafe.Pointer(&c.iov[0])), uintptr(pieces))
		if errno != unix.EINTR {
			return max(int(n), 0), errno
		}
	}
}

var _ tcpip.Payloader = (*chunk)(nil)
