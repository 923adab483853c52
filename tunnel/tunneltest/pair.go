package tunneltest

import (
	"fmt"
	"os"
	"sync"

	"github.com/usernet/usernet/tunnel"
)

// QueueLen is the number of frames that one direction of a Pair holds before
// WriteFrame returns tunnel.ErrFull.
const QueueLen = tunnel.DefaultQueueLen

// Poison is what ReadFrame fills its caller's buffers with before it scatters a
// frame over them.
const Poison = 0xA5

// Pair returns two devices of the given MTU in bytes (0: tunnel.DefaultMTU)
// where what is written to one is read from the other, superframes verbatim.
// When one is closed, the other one's calls return tunnel.ErrGone.
func Pair(mtu int) (a, b tunnel.Device) {
	if mtu == 0 {
		mtu = tunnel.DefaultMTU
	}
	toA, toB := newQueue(), newQueue()
	closedA, closedB := make(chan struct{}), make(chan struct{})
	a = &device{mtu: mtu, from: toA, to: toB, closed: closedA, gone: closedB}
	b = &device{mtu: mtu, from: toB, to: toA, closed: closedB, gone: closedA}
	return a, b
}

// queue is one direction of a Pair.
type queue struct {
	frames chan []byte
	free   chan []byte
}

func newQueue() *queue {
	return &queue{frames: make(chan []byte, QueueLen), free: make(chan []byte, QueueLen+1)}
}

// buffer returns an empty buffer that holds any frame.
func (q *queue) buffer() []byte {
	select {
	case b := <-q.free:
		return b[:0]
	default:
		return make([]byte, 0, tunnel.MaxFrame)
	}
}

func (q *queue) recycle(b []byte) {
	select {
	case q.free <- b:
	default:
	}
}

// device is one end of a Pair.
type device struct {
	mtu      int
	from, to *queue
	gone     <-chan struct{} // closed by the other end's Close
	closed   chan struct{}
	closing  sync.Once
}

// ReadFrame implements tunnel.Device.
func (d *device) ReadFrame(bufs [][]byte) (int, error) {
	if err := checkBuffers(bufs); err != nil {
		return 0, err
	}
	for _, b := range bufs {
		fill(b, Poison)
	}
	if err := d.state(); err != nil {
		return 0, err
	}
	select {
	case f := <-d.from.frames:
		n := scatter(bufs, f)
		d.from.recycle(f)
		return n, nil
	case <-d.closed:
		return 0, os.ErrClosed
	case <-d.gone:
		return 0, tunnel.ErrGone
	}
}

// WriteFrame implements tunnel.Device.
func (d *device) WriteFrame(bufs [][]byte) error {
	if err := checkBuffers(bufs); err != nil {
		return err
	}
	if err := d.state(); err != nil {
		return err
	}
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	if total <= tunnel.HeaderLen || total > tunnel.MaxFrame {
		return tunnel.ErrFrame
	}
	f := d.to.buffer()
	for _, b := range bufs {
		f = append(f, b...)
	}
	select {
	case d.to.frames <- f:
		return nil
	default:
		d.to.recycle(f)
		return tunnel.ErrFull
	}
}

// MTU implements tunnel.Device.
func (d *device) MTU() int { return d.mtu }

// Close implements tunnel.Device.
func (d *device) Close() error {
	err := os.ErrClosed
	d.closing.Do(func() {
		close(d.closed)
		err = nil
	})
	return err
}

// state returns the error that ends d, if it has ended.
func (d *device) state() error {
	select {
	case <-d.closed:
		return os.ErrClosed
	default:
	}
	select {
	case <-d.gone:
		return tunnel.ErrGone
	default:
		return nil
	}
}

func checkBuffers(bufs [][]byte) error {
	pieces := 0
	for _, b := range bufs {
		if len(b) > 0 {
			pieces++
		}
	}
	if pieces == 0 || pieces > tunnel.MaxBuffers {
		return fmt.Errorf("%w: %d buffers, want 1..%d", tunnel.ErrFrame, pieces, tunnel.MaxBuffers)
	}
	return nil
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

// scatter copies f over bufs and returns how much of it fitted.
func scatter(bufs [][]byte, f []byte) int {
	n := 0
	for _, b := range bufs {
		n += copy(b, f[n:])
	}
	return n
}
