package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
)

// request is a container's SYN on its way to a connection.
type request struct {
	t       *tcpNAT
	key     tuple
	link    *Link
	flow    *flow
	verdict policy.Verdict
	ctx     context.Context // ends with the dial's time, or the request
	cancel  context.CancelFunc
	syn     []byte      // the packet's first bytes, for the ICMP error that may answer
	taken   atomic.Bool // the forwarder has it

	// t.mu guards these.
	dialling bool // holds a dial slot
	cause    string
	became   cutter

	mu      sync.Mutex // guards settled, and the endpoint while it is not
	settled bool       // the handshake is over
}

func newRequest(t *tcpNAT, key tuple, l *Link, fl *flow, v policy.Verdict) *request {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	return &request{t: t, key: key, link: l, flow: fl, verdict: v, ctx: ctx, cancel: cancel, dialling: true}
}

// cut gives the request up: its dial is cancelled and its handshake aborted.
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
	r.cancel()
	r.abortHandshake()
}

func (r *request) cutCause() string {
	r.t.mu.Lock()
	defer r.t.mu.Unlock()
	return r.cause
}

// abortHandshake ends a handshake under way. It must never reach an endpoint
// that has a relay, which writes from the endpoint's memory; settled, set
// before there is a relay, sees to it.
func (r *request) abortHandshake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.settled {
		return
	}
	if ep := r.t.stack.FindTransportEndpoint(r.key.network(), tcp.ProtocolNumber, r.key.id(), nicID); ep != nil {
		ep.Abort()
	}
}

func (r *request) settle() {
	r.mu.Lock()
	r.settled = true
	r.mu.Unlock()
}

// serve carries a request through dial and handshake to its relay. The forwarder
// starts it as a goroutine per request; dial and handshake are bounded in time.
func (t *tcpNAT) serve(fr *tcp.ForwarderRequest) {
	r := t.request(tupleOf(fr.ID()))
	if r == nil {
		fr.Complete(false)
		return
	}
	if r.verdict.Target == policy.TargetDNS {
		r.serveDNS(fr)
		return
	}
	host, err := r.dialHost(r.ctx)
	t.dialled(r)
	if err != nil {
		r.refuse(fr, err)
		return
	}
	rel := newRelay(t, r.link, r.key, r.flow, host)
	ep, cause := r.handshake(fr, &rel.queue)
	if ep == nil {
		abortSocket(host)
		r.giveUp(cause)
		return
	}
	rel.ep = ep
	if !t.replace(r, rel) {
		ep.Abort()
		abortSocket(host)
		r.giveUp(r.cutCause())
		return
	}
	r.cancel()
	rel.post()
}

// handshake completes the container's half. ep is nil if it came to nothing.
func (r *request) handshake(fr *tcp.ForwarderRequest, queue *waiter.Queue) (ep tcpip.Endpoint, cause string) {
	timer := time.AfterFunc(handshakeTimeout, r.abortHandshake)
	ep, err := fr.CreateEndpoint(queue)
	r.settle()
	timer.Stop()
	fr.Complete(false)
	if err != nil {
		if c := r.cutCause(); c != "" {
			return nil, c
		}
		return nil, "handshake: " + tcpipError(err).Error()
	}
	return ep, ""
}

// refuse tells the container, in the terms of its own network, why the host
// side did not come about.
func (r *request) refuse(fr *tcp.ForwarderRequest, err error) {
	var forbidden *RefusedError
	reset, cause := false, err.Error()
	switch {
	case r.cutCause() != "":
		cause = r.cutCause()
	case errors.As(err, &forbidden):
		// The rules changed since the SYN was judged, or the hook's dialler
		// chose another address.
		cause = "policy: " + forbidden.Reason
		r.link.drop(dropForPolicy(r.t.s.rules.Load().CheckDial(forbidden.Target.Addr(), r.t.s.hostAddrs.Load())))
		r.link.rejectPacket(r.syn, packet.ErrAdminProhibited, netip.Addr{}, 0)
	case isTimeout(err):
		cause = "dial timed out"
		r.link.drop(DropDialTimeout)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		r.link.rejectPacket(r.syn, packet.ErrHostUnreachable, netip.Addr{}, 0)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
		r.link.rejectPacket(r.syn, packet.ErrNetUnreachable, netip.Addr{}, 0)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		r.link.rejectPacket(r.syn, packet.ErrAdminProhibited, netip.Addr{}, 0)
	default:
		// Refused by the far end, and whatever else there is: the client
		// should know at once.
		reset = true
	}
	fr.Complete(reset)
	r.giveUp(cause)
}

// giveUp ends a request that became no connection.
func (r *request) giveUp(cause string) {
	r.flow.fail(cause)
	r.cancel()
	r.t.dialled(r)
	r.t.ended(r.link, r.key, r)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// serveDNS hands a connection to the resolver.
func (r *request) serveDNS(fr *tcp.ForwarderRequest) {
	r.t.dialled(r)
	c := newConn(r.key)
	ep, failure := r.handshake(fr, &c.queue)
	if ep == nil {
		r.giveUp(failure)
		return
	}
	c.start(ep, r.flow)
	if !r.t.replace(r, c) {
		c.cut("")
		r.giveUp(r.cutCause())
		return
	}
	r.cancel()
	cause := ""
	if err := r.t.s.resolver.serveStream(context.Background(), r.link, c); err != nil {
		cause = err.Error()
	}
	c.Close()
	r.flow.close(cause)
	r.t.ended(r.link, r.key, c)
}
