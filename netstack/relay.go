package netstack

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// relay joins the two ends of a terminated TCP connection: the container's,
// which is an endpoint of the stack, and the host's, which is a host socket.
//
// Two pumps move bytes, one per direction, each a goroutine, without a copy of
// ours and without a buffer while there is nothing to move. A pump ends when
// its source has sent FIN and passes the FIN on; the other goes on. The last
// pump to end closes both ends.
//
// An end that fails, in either pump, cuts the relay: both pumps end, and both
// ends that still live are reset.
//
// The endpoint is closed only after both pumps have ended. Until then nothing
// frees its receive queue, not even a RST from the container, and that is what
// makes it safe to write to the host from the queue's own memory.
type relay struct {
	events
	t    *tcpNAT
	link *Link
	key  tuple
	flow *flow
	ep   tcpip.Endpoint
	host net.Conn
	raw  syscall.RawConn // host's; nil if it is no socket

	pumps atomic.Int32
	cause atomic.Pointer[string] // why the relay was cut; nil while it was not
}

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// newRelay prepares a relay. The endpoint follows, for the stack makes it
// around the relay's queue. cut may come from then on.
func newRelay(t *tcpNAT, l *Link, key tuple, fl *flow, host net.Conn) *relay {
	r := &relay{t: t, link: l, key: key, flow: fl, host: host}
	r.events.init()
	if sc, ok := host.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			r.raw = raw
		}
	}
	return r
}

// run relays until both directions have ended. It is one of the two pumps
// itself and may return while the other goes on.
func (r *relay) run() {
	setKeepalive(r.ep)
	r.pumps.Store(2)
	r.register(r)
	go r.pumpToContainer()
	r.pumpFromContainer()
}

// NotifyEvent is called by the stack. Besides waking the pumps it frees the one
// that waits for the host when the container's end is no more: after a reset
// there is nothing left to wait for; after a quiet close only the host's bytes
// have lost their reader.
func (r *relay) NotifyEvent(mask waiter.EventMask) {
	r.events.NotifyEvent(mask)
	if mask&(waiter.EventHUp|waiter.EventErr) == 0 {
		return
	}
	switch endpointState(r.ep) {
	case tcp.StateError:
		_ = r.host.SetDeadline(past)
	case tcp.StateClose:
		_ = r.host.SetReadDeadline(past)
	}
}

// cut ends the relay from outside or from a pump: both pumps end soon, and
// both ends are reset. Only the first cause is kept.
func (r *relay) cut(cause string) {
	if r.cause.CompareAndSwap(nil, &cause) {
		_ = r.host.SetDeadline(past)
		token(r.readable)
		token(r.writable)
	}
}

func (r *relay) isCut() bool { return r.cause.Load() != nil }

// pumpFromContainer moves bytes from the container to the host. run's caller
// runs it; it ends with the container's FIN or when the relay is cut.
func (r *relay) pumpFromContainer() {
	defer r.pumpEnded()
	for !r.isCut() {
		b := batches.Get().(*batch)
		n, err := b.peek(r.ep)
		if n > 0 {
			wrote, werr := b.send(r)
			r.flow.add(fromContainer, 1, wrote)
			b.consume(r.ep, wrote)
			batches.Put(b)
			if werr != nil {
				r.failed(werr, "host")
				return
			}
			continue
		}
		batches.Put(b)
		switch err.(type) {
		case *tcpip.ErrWouldBlock:
			<-r.readable
		case *tcpip.ErrClosedForReceive:
			r.containerEnded()
			return
		default:
			r.failed(tcpipError(err), "container")
			return
		}
	}
}

// containerEnded handles the end of the container's bytes: its FIN, which the
// host side gets as well, or a reset whose error the other pump has seen.
func (r *relay) containerEnded() {
	switch endpointState(r.ep) {
	case tcp.StateError:
		r.cut("reset by container")
		return
	case tcp.StateClose: // before NotifyEvent could see it, perhaps
		_ = r.host.SetReadDeadline(past)
	}
	if c, ok := r.host.(interface{ CloseWrite() error }); ok {
		if err := c.CloseWrite(); err != nil {
			r.failed(err, "host")
		}
		return
	}
	// A host side that cannot half-close has no way to tell its peer; all it
	// can do is to end.
	r.cut("closed by container")
}

// pumpToContainer moves bytes from the host to the container. run starts it;
// it ends with the host's FIN or when the relay is cut.
func (r *relay) pumpToContainer() {
	defer r.pumpEnded()
	var err error
	if r.raw != nil {
		err = r.receiveRaw()
	} else {
		err = r.receive()
	}
	switch {
	case r.isCut():
	case errors.Is(err, io.EOF):
		if terr := r.ep.Shutdown(tcpip.ShutdownWrite); terr != nil {
			r.failed(tcpipError(terr), "container")
		}
	case errors.Is(err, os.ErrDeadlineExceeded): // NotifyEvent's
		r.cut("reset by container")
	default:
		end, cerr := "host", (*containerError)(nil)
		if errors.As(err, &cerr) {
			end, err = "container", cerr.error
		}
		r.failed(err, end)
	}
}

// containerError marks an error of the container's end.
type containerError struct{ error }

// offer gives p's bytes to the container's end, waiting for room.
func (r *relay) offer(p tcpip.Payloader) error {
	for p.Len() > 0 {
		n, err := r.ep.Write(p, tcpip.WriteOptions{})
		if n > 0 {
			r.flow.add(toContainer, 1, int(n))
		}
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-r.writable
		case *tcpip.ErrBadBuffer: // the host's end broke while it was read
			return io.ErrUnexpectedEOF
		default:
			return &containerError{tcpipError(err)}
		}
		if r.isCut() {
			return net.ErrClosed
		}
	}
	return nil
}

// failed cuts the relay for an error of one of its ends.
func (r *relay) failed(err error, end string) {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // NotifyEvent's
		r.cut("reset by container")
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		r.cut("reset by " + end)
	case errors.Is(err, syscall.ETIMEDOUT):
		r.cut(end + " timed out")
	default:
		r.cut(end + ": " + err.Error())
	}
}

// pumpEnded counts the pumps out; the last one closes both ends.
func (r *relay) pumpEnded() {
	if r.pumps.Add(-1) > 0 {
		return
	}
	if !r.isCut() {
		r.host.Close()
		r.awaitContainer()
	}
	r.unregister()
	cause := ""
	if c := r.cause.Load(); c != nil {
		cause = *c
		// Abort tells the container by RST, if it is still there to be told.
		r.ep.Abort()
		if c, ok := r.host.(interface{ SetLinger(int) error }); ok {
			_ = c.SetLinger(0)
		}
		r.host.Close()
	} else {
		r.ep.Close()
	}
	r.flow.close(cause)
	r.t.ended(r.link, r.key, r)
}

// awaitContainer waits until the container has taken everything, FIN included,
// so that what it leaves lying stays on its own account.
func (r *relay) awaitContainer() {
	if over(r.ep) {
		return
	}
	timer := time.NewTimer(orphanTimeout)
	defer timer.Stop()
	for !over(r.ep) && !r.isCut() {
		select {
		case <-r.readable:
		case <-timer.C:
			r.cut("container does not take the end")
		}
	}
}
