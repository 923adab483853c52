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

	// shortRead is what is asked of a host socket that was quiet. A request or
	// response of this size costs one read and one small copy.
	shortRead = 16 << 10

	// burstSize bounds a burst, and so how long others on the worker wait for
	// their turn. The longer bursts are, the less often the processes at both
	// ends wake up, and the more they find when they do.
	burstSize = 1 << 20

	// stackView is the size of the pieces in which the stack takes a burst.
	stackView = 64 << 10
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
		n, errno := writev(fd, b.iov[b.next:b.n])
		if errno != 0 {
			return errno
		}
		b.wrote += n
		b.advance(n)
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
//
// The rest is read by one call, the beginning straight into the stack's view and
// what follows into a spill. Each call acknowledges, and has the far kernel send,
// on this thread; that costs more than the copy of the spill.
type chunk struct {
	iov   [2]unix.Iovec // of a read
	next  []byte        // in head or spill
	spill *spill        // nil: none is needed
	rest  int           // bytes still in the socket
	more  bool          // the socket may have more than that
	fd    int
	head  [shortRead]byte
}

type spill [burstSize - stackView]byte

var (
	chunks = sync.Pool{New: func() any { return new(chunk) }}
	spills = sync.Pool{New: func() any { return new(spill) }}
)

// Len is the number of bytes left.
func (c *chunk) Len() int { return len(c.next) + c.rest }

// Read takes bytes, the socket's straight into p. Only an error of the socket,
// or an end that the kernel had not announced, ends it early.
func (c *chunk) Read(p []byte) (int, error) {
	if len(p) == 0 || c.Len() == 0 {
		return 0, nil
	}
	if len(c.next) == 0 {
		return c.readRest(p)
	}
	n := copy(p, c.next)
	c.next = c.next[n:]
	if len(c.next) == 0 {
		c.empty()
	}
	return n, nil
}

// empty gives back what own memory can be done without.
func (c *chunk) empty() {
	c.next = nil
	if c.spill != nil {
		spills.Put(c.spill)
		c.spill = nil
	}
}

// readRest reads what is in the socket into p, and what follows into a spill.
func (c *chunk) readRest(p []byte) (int, error) {
	p = p[:min(len(p), c.rest)]
	var beyond []byte
	if c.rest > len(p) {
		c.spill = spills.Get().(*spill)
		beyond = c.spill[:min(len(c.spill), c.rest-len(p))]
	}
	n, errno := c.readv(p, beyond)
	direct := min(n, len(p))
	c.rest -= n
	if c.next = beyond[:n-direct]; len(c.next) == 0 {
		c.empty()
	}
	switch {
	case errno != 0:
		return 0, errno
	case n == 0:
		return 0, io.ErrUnexpectedEOF
	}
	return direct, nil
}

// fill begins a burst: nothing at the host's FIN, EAGAIN when there is nothing
// yet. Of a busy socket it asks first how much there is, for a short read would
// acknowledge alone.
func (c *chunk) fill(fd int, busy bool) syscall.Errno {
	c.fd, c.rest, c.more = fd, 0, false
	if busy && c.promise(shortRead) {
		return 0
	}
	n, errno := c.readv(c.head[:], nil)
	if errno != 0 {
		return errno
	}
	c.next = c.head[:n]
	if n == len(c.head) {
		c.promise(0)
	}
	return 0
}

// promise makes what is in the socket the rest of the burst, if it is more than
// that many bytes.
func (c *chunk) promise(than int) bool {
	left := queued(c.fd, unix.TIOCINQ)
	if left <= than {
		return false
	}
	c.rest = min(left, burstSize)
	c.more = left > c.rest
	return true
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
	return readv(c.fd, c.iov[:pieces])
}

var _ tcpip.Payloader = (*chunk)(nil)
