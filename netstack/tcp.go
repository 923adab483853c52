package netstack

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
)

// tcpNAT terminates the containers' TCP in a gVisor stack and carries it on in
// host sockets.
//
// A SYN that policy lets pass becomes a request: the host side is dialled
// first, and only when it answers does the container get its handshake. So a
// container sees of the far end what it would see on a real network: a refused
// port resets, an unreachable host yields ICMP, a black hole stays silent. Then a
// relay carries the connection.
//
// What carries no SYN goes to the stack without further ado; what belongs to
// no connection there is reset by it.
type tcpNAT struct {
	s        *Switch
	nic      *nic
	stack    *stack.Stack
	protocol tcpProtocol
	passive  passive
	pubs     publications

	mu       sync.Mutex // guards what follows
	closed   bool
	dialling int // requests that hold a dial slot
	flows    map[tuple]cutter
	links    map[*Link]*linkTCP
}

// tcpProtocol is the stack's TCP, below its IP layer and table of endpoints.
type tcpProtocol interface {
	stack.TransportProtocol
	// QueuePacket has an endpoint work on a segment later, on a goroutine of
	// the protocol.
	QueuePacket(stack.TransportEndpoint, stack.TransportEndpointID, *stack.PacketBuffer)
}

// linkTCP is what one link holds. tcpNAT.mu guards it.
type linkTCP struct {
	dialling int                 // requests whose host side has not answered
	flows    map[cutter]struct{} // requests and what became of them
	idle     *sync.Cond          // told when flows becomes empty
}

// cutter is a flow: a request, and then the relay or conn that it has become.
type cutter interface {
	// cut ends the flow from outside. It does not wait for the end.
	cut(cause string)
}

func newTCPNAT(s *Switch) (*tcpNAT, error) {
	t := &tcpNAT{
		s:     s,
		nic:   &nic{linkByAddr: s.linkByAddr},
		flows: map[tuple]cutter{},
		links: map[*Link]*linkTCP{},
	}
	t.pubs.init()
	var err error
	t.stack, err = newStack(t.nic, func(gs *stack.Stack) {
		t.passive = newPassive(gs)
		gs.SetTransportProtocolHandler(tcp.ProtocolNumber, t.unknownSegment)
		t.protocol = gs.TransportProtocolInstance(tcp.ProtocolNumber).(tcpProtocol)
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// fromContainer takes a TCP segment of a container. v is policy's verdict of a
// SYN; of other segments policy was asked before.
func (t *tcpNAT) fromContainer(l *Link, f *frame, v policy.Verdict) {
	if !f.checksumKnown() && !packet.ValidL4Checksum(&f.pkt, f.bufs) {
		l.drop(DropChecksum)
		return
	}
	if l.reader != nil {
		l.worker.bulk = l.worker.bulk || f.pkt.Len-f.pkt.Payload >= bulkSegment
	}
	switch f.pkt.TCPFlags & (packet.FlagSYN | packet.FlagACK | packet.FlagRST) {
	case packet.FlagSYN:
		t.syn(l, f, v)
		return
	case packet.FlagRST, packet.FlagRST | packet.FlagACK:
		t.abandon(tupleOfFrame(f))
	}
	t.inject(l, f)
}

// inject gives a segment to its endpoint, or to who deals with those that have
// none.
func (t *tcpNAT) inject(l *Link, f *frame) {
	key := tupleOfFrame(f)
	pkt := t.nic.parsed(f)
	if pkt == nil {
		if !t.nic.inject(f) {
			l.drop(DropStack)
		}
		l.worker.loop.Yield() // the stack may have left it to a processor
		return
	}
	id := key.id()
	if ep := t.stack.FindTransportEndpoint(key.network(), tcp.ProtocolNumber, id, nicID); ep != nil {
		t.give(l, ep, id, pkt)
	} else if !t.unknownSegment(id, pkt) {
		t.protocol.HandleUnknownDestinationPacket(id, pkt)
	}
	pkt.DecRef()
}

// give has an endpoint work on a segment: later in this turn of the link's worker, or
// on a goroutine of the stack's if the device is read by one.
func (t *tcpNAT) give(l *Link, ep stack.TransportEndpoint, id stack.TransportEndpointID, pkt *stack.PacketBuffer) {
	if e, ok := ep.(*tcp.Endpoint); ok && l.reader != nil && l.worker.inbox.put(e, id, t.stack.Clock(), pkt) {
		return
	}
	t.protocol.QueuePacket(ep, id, pkt)
}

func tupleOfFrame(f *frame) tuple {
	return tuple{container: f.pkt.SrcAddrPort(), far: f.pkt.DstAddrPort()}
}

// syn opens a request, unless the SYN belongs to a connection that is there.
func (t *tcpNAT) syn(l *Link, f *frame, v policy.Verdict) {
	key := tupleOfFrame(f)
	if t.known(key) {
		t.inject(l, f)
		return
	}
	if v.Action != policy.Forward {
		l.drop(dropForPolicy(v.Reason))
		return
	}
	r, reason := t.admit(l, key, v)
	if r == nil {
		if reason != dropNone { // else openFlow has counted it
			l.drop(reason)
		}
		return
	}
	t.inject(l, f)
	if r.syn == nil {
		// The stack refused the packet before it asked unknownSegment.
		l.drop(DropStack)
		r.cut("refused by the TCP stack")
	}
	l.worker.loop.Post(r)
}

// known reports whether there is a connection of that name that a SYN may
// concern. An endpoint that only waits out its time gives way, as on Linux;
// by then no relay reads from it.
func (t *tcpNAT) known(key tuple) bool {
	t.mu.Lock()
	c := t.flows[key]
	t.mu.Unlock()
	if c != nil {
		_, dialling := c.(*request)
		return !dialling
	}
	ep := t.stack.FindTransportEndpoint(key.network(), tcp.ProtocolNumber, key.id(), nicID)
	if ep == nil {
		return false
	}
	if e, ok := ep.(tcpip.Endpoint); ok && endpointState(e) == tcp.StateTimeWait {
		ep.Abort()
		return false
	}
	return true
}

// admit makes room for a request within the link's limits.
func (t *tcpNAT) admit(l *Link, key tuple, v policy.Verdict) (*request, DropReason) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, DropStack
	}
	if t.flows[key] != nil { // the end of the dial will answer it
		return nil, DropRepeatedSYN
	}
	lt := t.linkLocked(l)
	if len(lt.flows) >= l.limits.TCPFlows {
		return nil, DropFlowLimit
	}
	if lt.dialling >= l.limits.Dials || t.dialling >= maxRequests {
		return nil, DropDialLimit
	}
	direction := FlowEgress
	if v.Target != policy.TargetEgress {
		direction = FlowService
	}
	fl := t.s.openFlow(flowSpec{
		link: l, direction: direction, proto: packet.ProtoTCP,
		source: key.container, destination: key.far, target: v.Addr,
	})
	if fl == nil {
		return nil, dropNone
	}
	r := newRequest(t, key, l, fl, v)
	t.flows[key] = r
	lt.flows[r] = struct{}{}
	lt.dialling++
	t.dialling++
	return r, dropNone
}

func (t *tcpNAT) linkLocked(l *Link) *linkTCP {
	lt := t.links[l]
	if lt == nil {
		lt = &linkTCP{flows: map[cutter]struct{}{}, idle: sync.NewCond(&t.mu)}
		t.links[l] = lt
	}
	return lt
}

// unknownSegment is asked by the stack about segments that no endpoint takes.
// False makes the stack answer with a reset.
func (t *tcpNAT) unknownSegment(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	flags := header.TCP(pkt.TransportHeader().Slice()).Flags()
	if flags&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false
	}
	if r := t.request(tupleOf(id)); r != nil && r.syn == nil {
		r.syn = pkt.IncRef()
	} // else its connection ended between syn's look and the stack's, and the container repeats its SYN
	return true
}

func (t *tcpNAT) request(key tuple) *request {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, _ := t.flows[key].(*request)
	return r
}

// abandon cancels the dial of a request whose container has given up.
func (t *tcpNAT) abandon(key tuple) {
	if r := t.request(key); r != nil {
		r.cut("reset by container")
	}
}

// dialOver ends a request's use of a dial slot.
func (t *tcpNAT) dialOver(r *request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.dialling {
		r.dialling = false
		t.links[r.link].dialling--
		t.dialling--
	}
}

// replace puts what a request has become in its place. It reports false, and
// leaves the request, if the request was cut meanwhile.
func (t *tcpNAT) replace(r *request, c cutter) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.cause != "" {
		return false
	}
	r.became = c
	lt := t.links[r.link]
	delete(lt.flows, r)
	lt.flows[c] = struct{}{}
	t.flows[r.key] = c
	return true
}

// add counts a flow that did not begin as a request, unless it is over the
// link's limit, or link or switch are going.
func (t *tcpNAT) add(l *Link, key tuple, c cutter) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.s.linkByAddr(key.container.Addr()) != l {
		return ErrClosed
	}
	if t.flows[key] != nil {
		return syscall.EADDRINUSE
	}
	lt := t.linkLocked(l)
	if len(lt.flows) >= l.limits.TCPFlows {
		return errFlowLimit
	}
	lt.flows[c] = struct{}{}
	t.flows[key] = c
	return nil
}

// holds reports whether there is a flow of that name.
func (t *tcpNAT) holds(key tuple) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flows[key] != nil
}

// errFlowLimit says that a link has as many TCP flows as it may.
var errFlowLimit = errors.New("the link has as many TCP flows as its limit allows")

// ended takes a flow from its link's.
func (t *tcpNAT) ended(l *Link, key tuple, c cutter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flows[key] == c {
		delete(t.flows, key)
	}
	lt := t.links[l]
	delete(lt.flows, c)
	if len(lt.flows) == 0 {
		delete(t.links, l)
		lt.idle.Broadcast()
	}
}

// linkGone ends everything of a link that has left the tables and waits for
// it, so that no relay outlives the link.
func (t *tcpNAT) linkGone(l *Link) {
	t.pubs.linkGone(l)
	t.cutLink(l, "link detached")
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		lt := t.links[l]
		if lt == nil {
			return
		}
		lt.idle.Wait()
	}
}

func (t *tcpNAT) cutLink(l *Link, cause string) {
	t.mu.Lock()
	var all []cutter
	if lt := t.links[l]; lt != nil {
		for c := range lt.flows {
			all = append(all, c)
		}
	}
	t.mu.Unlock()
	for _, c := range all {
		c.cut(cause)
	}
}

// close ends what is left and takes the stack down: flows first, since their
// relays write from the endpoints' memory, then NIC, then stack.
func (t *tcpNAT) close(ctx context.Context) error {
	t.closePublications()
	t.mu.Lock()
	t.closed = true
	links := make([]*Link, 0, len(t.links))
	for l := range t.links {
		links = append(links, l)
	}
	t.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, l := range links {
			t.linkGone(l)
		}
		if err := t.stack.RemoveNIC(nicID); err != nil {
			t.s.log.Debug("remove the stack's NIC", "err", tcpipError(err))
		}
		t.stack.Destroy()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end TCP flows: %w", ctx.Err())
	}
}
