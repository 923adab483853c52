package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
)

// acceptor is the TCP half of a publication.
type acceptor struct {
	t    *tcpNAT
	pub  *Publication
	ln   net.Listener
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup // accept
}

func newAcceptor(t *tcpNAT, p *Publication, ln net.Listener) *acceptor {
	a := &acceptor{t: t, pub: p, ln: ln, stop: make(chan struct{})}
	a.wg.Add(1) // before anybody can close it
	return a
}

func (a *acceptor) start() { go a.accept() }

// Close ends accept and waits for it.
func (a *acceptor) Close() error {
	var err error
	a.once.Do(func() {
		close(a.stop)
		err = a.ln.Close()
		a.wg.Wait()
	})
	return err
}

// Limits of the pause after an accept that failed for want of something that
// may come back, such as file descriptors.
const (
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// accept takes connections in. start starts it; Close ends it.
func (a *acceptor) accept() {
	defer a.wg.Done()
	pause := acceptPauseMin
	for {
		host, err := a.ln.Accept()
		if err == nil {
			pause = acceptPauseMin
			a.pub.flows.Add(1)
			go a.serve(host)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		a.t.s.log.Warn("accept on a published port", "publication", a.pub, "err", err)
		select {
		case <-a.stop:
			return
		case <-time.After(pause):
			pause = min(2*pause, acceptPauseMax)
		}
	}
}

// serve carries one client's connection into the network, to its relay. accept
// starts it; the dial is bounded in time, and the link's end cuts it.
func (a *acceptor) serve(conn net.Conn) {
	client, err := addrPortOf(conn.RemoteAddr())
	if err != nil {
		conn.Close()
		return
	}
	host, err := socketOf(conn)
	if err != nil {
		a.t.s.log.Warn("accept on a published port", "publication", a.pub, "client", client, "err", err)
		return
	}
	setNoDelay(host)
	l := a.pub.link
	source, target := a.t.s.sourceFor(l, client, a.pub.port)
	v := a.t.s.decideIngress(l, packet.ProtoTCP, source, target)
	if v.Action != policy.Forward {
		abortSocket(host)
		l.drop(dropForPolicy(v.Reason))
		return
	}
	fl := a.t.s.flows.open(flowSpec{
		link: l, direction: FlowIngress, proto: packet.ProtoTCP,
		source: client, destination: a.pub.host, target: target,
	})
	rel := newRelay(a.t, l, tuple{}, fl, host)
	if err := a.t.connect(rel, source, target); err != nil {
		abortSocket(host)
		fl.fail(err.Error())
		return
	}
	rel.post()
}

// connect dials a link's port for a relay. A client's port that another
// connection into the network has is no reason to fail: the gateway has more.
func (t *tcpNAT) connect(rel *relay, source, target netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	in := &ingress{t: t, link: rel.link, cancel: cancel}
	ep, err := in.dial(ctx, source, target, &rel.queue)
	if isAddrInUse(err) {
		ep, err = in.dial(ctx, netip.AddrPortFrom(t.s.gateway(target.Addr().Is4()), 0), target, &rel.queue)
	}
	if err != nil {
		return err
	}
	rel.key, rel.ep = in.key, ep
	if !in.become(rel) {
		ep.Abort()
		t.ended(in.link, in.key, in)
		return ErrClosed
	}
	return nil
}

// ingress is a dial into the network, from a publication or a program.
type ingress struct {
	t      *tcpNAT
	link   *Link
	key    tuple
	cancel context.CancelFunc

	// t.mu guards these.
	gone   bool
	became cutter
}

// cut cancels the dial.
func (in *ingress) cut(cause string) {
	in.t.mu.Lock()
	in.gone = true
	became := in.became
	in.t.mu.Unlock()
	in.cancel()
	if became != nil {
		became.cut(cause)
	}
}

// become puts the connection in the dial's place, unless the dial was cut.
func (in *ingress) become(c cutter) bool {
	in.t.mu.Lock()
	defer in.t.mu.Unlock()
	if in.gone {
		return false
	}
	in.became = c
	lt := in.t.links[in.link]
	delete(lt.flows, in)
	lt.flows[c] = struct{}{}
	in.t.flows[in.key] = c
	return true
}

// dial connects an endpoint of the stack, bound to source, with target. The
// dial counts among the link's flows as soon as its name is settled; if it
// succeeds, it still does.
func (in *ingress) dial(ctx context.Context, source, target netip.AddrPort, queue *waiter.Queue) (tcpip.Endpoint, error) {
	ep, terr := in.t.stack.NewEndpoint(tcp.ProtocolNumber, networkProtocol(target.Addr()), queue)
	if terr != nil {
		return nil, tcpipError(terr)
	}
	// One client's port may lead to several publications at a time.
	ep.SocketOptions().SetReuseAddress(true)
	if terr := ep.Bind(fullAddress(source)); terr != nil {
		ep.Close()
		return nil, tcpipError(terr)
	}
	local, terr := ep.GetLocalAddress()
	if terr != nil {
		ep.Close()
		return nil, tcpipError(terr)
	}
	in.key = tuple{container: target, far: netip.AddrPortFrom(source.Addr(), local.Port)}
	if err := in.t.add(in.link, in.key, in); err != nil {
		ep.Close()
		return nil, err
	}
	if in.t.s.flows.host(peerKey{packet.ProtoTCP, in.key.far, in.key.container}) != nil {
		ep.Close()
		in.t.ended(in.link, in.key, in)
		return nil, syscall.EADDRINUSE // the container's answers would reach a host link
	}
	if err := in.handshake(ctx, ep, target, queue); err != nil {
		ep.Abort()
		in.t.ended(in.link, in.key, in)
		return nil, err
	}
	return ep, nil
}

// handshake waits for the container to answer.
func (in *ingress) handshake(ctx context.Context, ep tcpip.Endpoint, target netip.AddrPort, queue *waiter.Queue) error {
	answered := make(chan struct{}, 1)
	entry := waiter.NewFunctionEntry(waiter.WritableEvents|waiter.EventHUp|waiter.EventErr, func(waiter.EventMask) {
		token(answered)
		in.link.worker.loop.Yield()
	})
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	terr := ep.Connect(fullAddress(target))
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-answered:
			terr = ep.LastError()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return tcpipError(terr)
}
