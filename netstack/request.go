package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/usernet/usernet/internal/eventloop"
	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
)

// request is a container's SYN on its way to a connection: the dial of the host
// side, then the container's handshake. It runs on the link's worker and waits
// for neither.
type request struct {
	t       *tcpNAT
	key     tuple
	link    *Link
	flow    *flow
	verdict policy.Verdict
	syn     *stack.PacketBuffer // set before the request first runs
	posted  atomic.Bool
	dialled atomic.Pointer[dialResult] // by the embedder's hook

	// t.mu guards these.
	dialling bool // holds a dial slot
	cause    string
	became   cutter

	// The worker's own.
	phase    phase
	place    place // among those that wait for the end of the phase
	cancel   context.CancelFunc
	host     int  // host socket, -1: none
	reusable bool // see relay
	watch    eventloop.Watch
	events   uint32 // of the host socket, for the relay
	ep       tcpip.Endpoint
	entry    waiter.Entry
	queue    *waiter.Queue
	relay    *relay // what the request becomes: a relay,
	dns      *conn  // or a conversation with the resolver
}

// phase is how far a request has come.
type phase uint8

const (
	phaseNew     phase = iota
	phaseHook          // the embedder's hook dials, on a goroutine
	phaseConnect       // the host socket connects
	phaseShake         // the container has been answered
	phaseOver
)

// dialResult is what the embedder's hook has dialled.
type dialResult struct {
	host int
	err  error
}

func newRequest(t *tcpNAT, key tuple, l *Link, fl *flow, v policy.Verdict) *request {
	r := &request{t: t, key: key, link: l, flow: fl, verdict: v, host: -1, dialling: true}
	r.posted.Store(true) // by syn, when it is complete
	return r
}

// post has the request run soon.
func (r *request) post() {
	if !r.posted.Swap(true) {
		r.link.worker.loop.Post(r)
	}
}

// NotifyEvent is told of the container's end by the stack.
func (r *request) NotifyEvent(waiter.EventMask) { r.post() }

// cut gives the request up soon, or ends what it has become.
func (r *request) cut(cause string) {
	r.t.mu.Lock()
	if r.cause == "" {
		r.cause = cause
	}
	became := r.became
	r.t.mu.Unlock()
	if became != nil {
		became.cut(cause)
		return
	}
	r.post()
}

func (r *request) cutCause() string {
	r.t.mu.Lock()
	defer r.t.mu.Unlock()
	return r.cause
}

// Run implements eventloop.Task.
func (r *request) Run() {
	r.posted.Store(false)
	if r.phase == phaseOver {
		return
	}
	if r.phase == phaseHook {
		r.runHook()
		return
	}
	if cause := r.cutCause(); cause != "" {
		r.giveUp(cause)
		return
	}
	switch {
	case r.phase == phaseNew:
		r.begin()
	case r.phase == phaseShake && !shaking(r.ep):
		r.shaken()
	}
}

// timeOver implements patient.
func (r *request) timeOver() {
	switch r.phase {
	case phaseConnect:
		r.refuse(context.DeadlineExceeded)
	case phaseShake:
		r.giveUp("handshake: timed out")
	}
}

// begin dials the host side, if there is one.
func (r *request) begin() {
	switch {
	case r.verdict.Target == policy.TargetDNS:
		r.shake()
	case r.t.s.cfg.Host.DialContext != nil:
		r.dialByHook()
	default:
		r.link.worker.dials.wait(&r.place, r)
		r.dial()
	}
}

// Ready is told of the host socket by the worker.
func (r *request) Ready(events uint32) {
	r.events |= events
	if r.phase != phaseConnect {
		return
	}
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		if err := socketError(r.host); err != nil {
			r.refuse(err)
			return
		}
	}
	r.shake()
}

// shake answers the container, whose host side has answered.
func (r *request) shake() {
	r.t.dialOver(r)
	if cause := r.cutCause(); cause != "" {
		r.giveUp(cause)
		return
	}
	if r.verdict.Target == policy.TargetDNS {
		r.dns = newConn(r.link.worker, r.key)
		r.queue = &r.dns.queue
	} else {
		r.relay = newRelay(r.t, r.link, r.key, r.flow, r.host)
		r.relay.reusable = r.reusable
		r.queue = &r.relay.queue
	}
	r.phase = phaseShake
	r.place.leave()
	r.link.worker.shakes.wait(&r.place, r)
	r.entry.Init(r, waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	r.queue.EventRegister(&r.entry)
	ep, err := r.t.passive.start(r.key.id(), r.syn, r.queue)
	if err != nil {
		r.giveUp("handshake: " + err.Error())
		return
	}
	r.ep = ep
}

// shaken puts in the request's place what it has become.
func (r *request) shaken() {
	if over(r.ep) {
		err := tcpipError(r.ep.LastError())
		if err == nil {
			err = syscall.ECONNABORTED
		}
		r.giveUp("handshake: " + err.Error())
		return
	}
	if r.dns != nil {
		r.become(r.dns, func() {
			go r.answerDNS()
			r.link.worker.loop.Yield()
		})
		return
	}
	r.relay.ep, r.relay.watch = r.ep, r.watch
	r.become(r.relay, func() {
		r.watch.Handle(r.relay)
		r.relay.Ready(r.events)
	})
}

func (r *request) become(c cutter, start func()) {
	if !r.t.replace(r, c) {
		r.giveUp(r.cutCause())
		return
	}
	r.forget()
	start()
}

// forget lets go of what the request alone has held.
func (r *request) forget() {
	r.phase = phaseOver
	r.place.leave()
	if r.queue != nil {
		r.queue.EventUnregister(&r.entry)
	}
	if r.syn != nil {
		r.syn.DecRef()
		r.syn = nil
	}
}

// giveUp ends a request that became no connection. An end that there is already
// is reset.
func (r *request) giveUp(cause string) {
	r.forget()
	if r.ep != nil {
		r.ep.Abort()
	}
	if r.host >= 0 {
		abortSocket(r.host)
		r.watch.Closed()
	}
	r.flow.fail(cause)
	r.t.dialOver(r)
	r.t.ended(r.link, r.key, r)
}

// refuse tells the container, in the terms of its own network, why the host
// side did not come about.
func (r *request) refuse(err error) {
	var forbidden *RefusedError
	cause := err.Error()
	switch {
	case errors.As(err, &forbidden):
		// The rules changed since the SYN was judged, or the hook's dialler
		// chose another address.
		cause = "policy: " + forbidden.Reason
		r.link.drop(dropForPolicy(r.t.s.rules.Load().CheckDial(forbidden.Target.Addr(), r.t.s.hostAddrs.Load())))
		r.link.rejectPacket(r.quote(), packet.ErrAdminProhibited, netip.Addr{}, 0)
	case isTimeout(err):
		cause = "dial timed out"
		r.link.drop(DropDialTimeout)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		r.link.rejectPacket(r.quote(), packet.ErrHostUnreachable, netip.Addr{}, 0)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
		r.link.rejectPacket(r.quote(), packet.ErrNetUnreachable, netip.Addr{}, 0)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		r.link.rejectPacket(r.quote(), packet.ErrAdminProhibited, netip.Addr{}, 0)
	default:
		// Refused by the far end, and whatever else there is: the client
		// should know at once.
		r.link.sendPacket(packet.AppendTCPReset(nil, r.quote()))
	}
	r.giveUp(cause)
}

// quote is the headers of the SYN.
func (r *request) quote() []byte {
	ip := r.syn.NetworkHeader().Slice()
	return append(ip[:len(ip):len(ip)], r.syn.TransportHeader().Slice()...)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// answerDNS hands the connection to the resolver, on a goroutine that ends with
// it.
func (r *request) answerDNS() {
	c := r.dns
	c.start(r.ep, r.flow)
	cause := ""
	if err := r.t.s.resolver.serveStream(context.Background(), r.link, c); err != nil {
		cause = err.Error()
	}
	c.Close()
	r.flow.close(cause)
	r.t.ended(r.link, r.key, c)
}
