package netstack

import (
	"errors"
	"io"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/usernet/usernet/internal/eventloop"
)

// relay joins the two ends of a terminated TCP connection: the container's,
// which is an endpoint of the stack, and the host's, which is a host socket.
//
// It runs on its link's worker, whenever one of the ends has something new: the
// host's tells the worker, edge by edge, the container's leaves a mark and posts
// the relay (NotifyEvent). Bytes move without a copy of ours and without a
// buffer while there is nothing to move. A direction ends when its source has
// sent FIN and passes the FIN on; the other goes on. When both have ended, the
// relay closes both ends.
//
// An end that fails cuts the relay: both ends that still live are reset.
//
// The endpoint is closed by the relay alone. Until then nothing frees its
// receive queue, not even a RST from the container, and that is what makes it
// safe to write to the host from the queue's own memory.
type relay struct {
	t    *tcpNAT
	link *Link
	key  tuple
	flow *flow
	ep   tcpip.Endpoint

	queue waiter.Queue
	entry waiter.Entry

	// What has become of the container's end since the relay last looked, and
	// whether the relay waits to be run.
	readable, writable, posted atomic.Bool
	cause                      atomic.Pointer[string] // why the relay was cut; nil while it was not

	// The worker's own.
	host         int  // host socket, which the relay owns
	reusable     bool // the switch made it, and no program has set its options
	watch        eventloop.Watch
	begun, ended bool
	hostReadable bool
	hostBusy     bool // its last burst was more than a short read
	hostWritable bool
	hostEnding   bool // the host's end has sent FIN, or failed
	fromDone     bool // the container's FIN has been passed on
	toDone       bool // the host's FIN has been passed on
	held         *chunk
	orphaned     bool // the container has yet to take the end
	place        place
}

// maxBursts is how often a direction may move bytes before others on the worker
// have their turn.
const maxBursts = 4

// relayEvents are those of a host socket. Edge-triggered, since a relay does not
// always read what there is.
const relayEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

// newRelay prepares a relay, which owns the host socket from then on. The
// endpoint follows, for the stack makes it around the relay's queue. cut may come
// from then on.
func newRelay(t *tcpNAT, l *Link, key tuple, fl *flow, host int) *relay {
	r := &relay{t: t, link: l, key: key, flow: fl, host: host, hostWritable: true}
	r.readable.Store(true)
	r.writable.Store(true)
	return r
}

// post has the relay run soon. The first time, it begins.
func (r *relay) post() {
	if !r.posted.Swap(true) {
		r.link.worker.loop.Post(r)
	}
}

// NotifyEvent is called by the stack, with the endpoint's lock held or not.
func (r *relay) NotifyEvent(mask waiter.EventMask) {
	if mask&(waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr) != 0 {
		r.readable.Store(true)
	}
	if mask&(waiter.WritableEvents|waiter.EventHUp|waiter.EventErr) != 0 {
		r.writable.Store(true)
	}
	r.post()
}

// cut ends the relay from outside: it ends soon, and both ends are reset. Only
// the first cause is kept.
func (r *relay) cut(cause string) {
	if r.cause.CompareAndSwap(nil, &cause) {
		r.post()
	}
}

func (r *relay) isCut() bool { return r.cause.Load() != nil }

// Ready is told of the host socket by the worker.
func (r *relay) Ready(events uint32) {
	const ending = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	if events&(unix.EPOLLIN|ending) != 0 {
		r.hostReadable = true
	}
	if events&(unix.EPOLLOUT|ending) != 0 {
		r.hostWritable = true
	}
	if events&ending != 0 {
		r.hostEnding = true
	}
	r.step()
}

// Run implements eventloop.Task.
func (r *relay) Run() {
	r.posted.Store(false)
	r.step()
}

// step does what there is to do.
func (r *relay) step() {
	if r.ended {
		return
	}
	if !r.begun && !r.isCut() {
		r.begin()
	}
	again := r.moveFromContainer()
	again = r.moveToContainer() || again
	r.finish()
	if again && !r.ended {
		r.post()
	}
}

// begin has both ends tell what is new.
func (r *relay) begin() {
	r.begun = true
	r.link.worker.young.wait(&r.place, r)
	r.entry.Init(r, waiter.ReadableEvents|waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	r.queue.EventRegister(&r.entry)
	if r.watch != (eventloop.Watch{}) {
		return // the request has seen to it
	}
	var err error
	if r.watch, err = r.link.worker.loop.Add(r.host, relayEvents, r); err != nil {
		r.cut("watch the host socket: " + err.Error())
	}
}

// timeOver implements patient: it has both ends watched for peers that are gone,
// which few relays live to need, or resets what the container does not take.
func (r *relay) timeOver() {
	if r.orphaned {
		r.cut("container does not take the end")
		return
	}
	setKeepalive(r.ep)
	setHostKeepalive(r.host)
}

// moveFromContainer moves bytes from the container to the host until there are
// no more, or no room. It reports true when there may be more of both.
func (r *relay) moveFromContainer() (again bool) {
	for range maxBursts {
		if r.fromDone || r.isCut() || !r.hostWritable || !r.readable.Swap(false) {
			return false
		}
		b := batches.Get().(*batch)
		n, err := b.peek(r.ep)
		if n > 0 {
			errno := b.send(r.host)
			wrote := b.wrote
			b.consume(r.ep, wrote)
			more := wrote < n || b.full() || endpointState(r.ep) != tcp.StateEstablished
			batches.Put(b)
			r.flow.add(fromContainer, 1, wrote)
			if more {
				r.readable.Store(true)
			}
			switch errno {
			case 0:
			case unix.EAGAIN:
				r.hostWritable = false
			default:
				r.failed(errno, "host")
			}
			continue
		}
		batches.Put(b)
		switch err.(type) {
		case *tcpip.ErrWouldBlock:
		case *tcpip.ErrClosedForReceive:
			r.containerEnded()
		default:
			r.failed(tcpipError(err), "container")
		}
	}
	return true
}

// containerEnded handles the end of the container's bytes: its FIN, which the
// host side gets as well, or a reset.
func (r *relay) containerEnded() {
	r.fromDone = true
	if endpointState(r.ep) == tcp.StateError {
		r.cut("reset by container")
	} else if errno := shutdownWrite(r.host); errno != 0 {
		r.failed(errno, "host")
	}
}

// moveToContainer moves bytes from the host to the container until there are no
// more, or no room. It reports true when there may be more of both.
func (r *relay) moveToContainer() (again bool) {
	for range maxBursts {
		if r.toDone || r.isCut() || r.held == nil && !r.hostReadable || !r.writable.Load() {
			return false
		}
		if r.held == nil && !r.receive() {
			continue
		}
		long := r.held.rest > 0 // as much as a turn's bursts may be together
		if !r.offer() {
			return false
		}
		if long {
			return true
		}
	}
	return true
}

// receive reads the beginning of a burst from the host, or learns that there is
// none.
func (r *relay) receive() bool {
	c := chunks.Get().(*chunk)
	switch errno := c.fill(r.host, r.hostBusy); {
	case errno == unix.EAGAIN:
		r.hostReadable = false
	case errno != 0:
		r.failed(errno, "host")
	case c.Len() == 0:
		r.toDone = true
		if err := r.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
			r.failed(tcpipError(err), "container")
		}
	default:
		// What comes later is told. But an end that came with the last bytes was
		// told already.
		r.hostReadable = c.more || r.hostEnding
		r.hostBusy = c.rest > 0
		r.held = c
		return true
	}
	chunks.Put(c)
	return false
}

// offer gives the container's end what is held, as much as it takes, and reports
// whether that was all.
func (r *relay) offer() bool {
	for r.held.Len() > 0 {
		r.writable.Store(false)
		n, err := r.ep.Write(r.held, tcpip.WriteOptions{})
		if n > 0 {
			r.flow.add(toContainer, 1, int(n))
		}
		switch err.(type) {
		case nil:
			r.writable.Store(true)
		case *tcpip.ErrWouldBlock:
			return false
		case *tcpip.ErrBadBuffer: // the host's end broke while it was read
			r.failed(io.ErrUnexpectedEOF, "host")
			return false
		default:
			r.failed(tcpipError(err), "container")
			return false
		}
	}
	r.release()
	return true
}

// release gives back what is held.
func (r *relay) release() {
	if r.held != nil {
		r.held.empty()
		chunks.Put(r.held)
		r.held = nil
	}
}

// failed cuts the relay for an error of one of its ends.
func (r *relay) failed(err error, end string) {
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		r.cut("reset by " + end)
	case errors.Is(err, syscall.ETIMEDOUT):
		r.cut(end + " timed out")
	default:
		r.cut(end + ": " + err.Error())
	}
}

// finish ends the relay if there is nothing left to do for it.
func (r *relay) finish() {
	done := r.fromDone && r.toDone
	switch state := endpointState(r.ep); {
	case r.isCut():
		r.abort()
	case !done && (state == tcp.StateError || state == tcp.StateClose):
		// After a reset there is nothing left to wait for; after a quiet
		// close the host's bytes have lost their reader.
		r.cut("reset by container")
		r.abort()
	case done && over(r.ep):
		r.closeHost()
		r.ep.Close()
		r.end("")
	case done && !r.orphaned:
		// The container has yet to take everything, FIN included: what it
		// leaves lying stays on its own account.
		r.closeHost()
		r.orphaned = true
		r.place.leave()
		r.link.worker.orphans.wait(&r.place, r)
	}
}

// abort resets both ends. The container learns it if it is still there to be
// told.
func (r *relay) abort() {
	if r.host >= 0 {
		lingerNot(r.host)
	}
	r.closeHost()
	r.ep.Abort()
	r.end(*r.cause.Load())
}

func (r *relay) closeHost() {
	if r.host < 0 {
		return
	}
	if !r.leavesSpare() || !r.link.worker.spares.keep(r.flow.spec.target, r.host, r.watch) {
		closeSocket(r.host)
		r.watch.Closed()
	}
	r.host = -1
}

// leavesSpare reports whether the host socket is as good as new, but for a
// connection that was short and has ended well. A young one has no keepalive.
func (r *relay) leavesSpare() bool {
	if !r.reusable || r.isCut() || r.place.in != &r.link.worker.young {
		return false
	}
	return r.flow.bytes[fromContainer].Load()+r.flow.bytes[toContainer].Load() <= spareBytes
}

// end takes the relay from the link's flows.
func (r *relay) end(cause string) {
	r.ended = true
	r.release()
	r.place.leave()
	if r.begun {
		r.queue.EventUnregister(&r.entry)
	}
	r.flow.close(cause)
	r.t.ended(r.link, r.key, r)
}
