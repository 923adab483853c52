package netstack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// conn is an endpoint of the stack as a net.Conn, for what ends in this process:
// the resolver, and programs that dial into the network.
type conn struct {
	events
	ep      tcpip.Endpoint
	key     tuple
	flow    *flow
	readMu  sync.Mutex // serialises readers: there is one token for them
	writeMu sync.Mutex // likewise writers
	read    deadline
	write   deadline
	once    sync.Once
	closed  chan struct{}
	onClose func() // may be nil; told once
}

// newConn prepares a conn of one of the worker's links.
func newConn(w *worker, key tuple) *conn {
	c := &conn{key: key, closed: make(chan struct{})}
	c.events.init(w)
	c.read.init()
	c.write.init()
	return c
}

// start makes the conn usable: the endpoint is made around its queue.
func (c *conn) start(ep tcpip.Endpoint, fl *flow) {
	c.ep, c.flow = ep, fl
	setKeepalive(ep)
	c.register(&c.events)
}

// Read reads what the container has sent; io.EOF after its FIN.
func (c *conn) Read(p []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if err := c.usable(&c.read); err != nil {
			return 0, c.opError("read", err)
		}
		w := tcpip.SliceWriter(p)
		res, err := c.ep.Read(&w, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			c.flow.add(fromContainer, 1, res.Count)
			c.ep.ModerateRecvBuf(res.Count)
			return res.Count, nil
		case *tcpip.ErrClosedForReceive:
			return 0, io.EOF
		case *tcpip.ErrWouldBlock:
			c.wait(c.readable, &c.read)
		default:
			return 0, c.opError("read", tcpipError(err))
		}
	}
}

// Write sends p to the container.
func (c *conn) Write(p []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	r := bytes.NewReader(p)
	for r.Len() > 0 {
		if err := c.usable(&c.write); err != nil {
			return len(p) - r.Len(), c.opError("write", err)
		}
		n, err := c.ep.Write(r, tcpip.WriteOptions{})
		if n > 0 {
			c.flow.add(toContainer, 1, int(n))
		}
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			c.wait(c.writable, &c.write)
		default:
			return len(p) - r.Len(), c.opError("write", tcpipError(err))
		}
	}
	return len(p), nil
}

// usable reports why the conn is not, if it is not.
func (c *conn) usable(d *deadline) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	case <-d.passed():
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

func (c *conn) wait(ready chan struct{}, d *deadline) {
	select {
	case <-ready:
	case <-d.passed():
	case <-c.closed:
	}
}

// CloseWrite sends FIN once everything written has gone.
func (c *conn) CloseWrite() error {
	if err := c.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		return c.opError("close", tcpipError(err))
	}
	return nil
}

// Close ends the connection in peace. Calls after the first return net.ErrClosed.
func (c *conn) Close() error {
	err := net.ErrClosed
	c.end(func() { c.ep.Close(); err = nil })
	return err
}

// cut resets the connection.
func (c *conn) cut(string) { c.end(c.ep.Abort) }

func (c *conn) end(endpoint func()) {
	c.once.Do(func() {
		close(c.closed)
		c.unregister()
		endpoint()
		c.read.stop()
		c.write.stop()
		if c.onClose != nil {
			c.onClose()
		}
	})
}

// LocalAddr is the end that the container talks to.
func (c *conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.key.far) }

// RemoteAddr is the container's end.
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.key.container) }

// SetDeadline sets both deadlines.
func (c *conn) SetDeadline(t time.Time) error {
	return errorsFirst(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline bounds Read.
func (c *conn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.read, t) }

// SetWriteDeadline bounds Write.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.write, t) }

func (c *conn) setDeadline(d *deadline, t time.Time) error {
	select {
	case <-c.closed:
		return c.opError("set deadline", net.ErrClosed)
	default:
		d.set(t)
		return nil
	}
}

func (c *conn) opError(op string, err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = os.NewSyscallError(op, errno)
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

func errorsFirst(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// deadline is a channel that closes when a moment passes.
type deadline struct {
	mu    sync.Mutex // guards what follows
	timer *time.Timer
	ch    chan struct{}
}

func (d *deadline) init() { d.ch = make(chan struct{}) }

func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ch
}

// set moves the deadline; the zero time is never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.ch // the timer's function is about to close it
	}
	d.timer = nil
	select {
	case <-d.ch:
		d.ch = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		close(d.ch)
		return
	}
	ch := d.ch
	d.timer = time.AfterFunc(left, func() { close(ch) })
}

func (d *deadline) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
}

var _ net.Conn = (*conn)(nil)
