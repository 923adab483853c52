package netstack

import (
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Handshakes that gVisor's Forwarder makes take a goroutine each, which waits for
// the end: its creation, the growth of its stack and the switches to and from it
// were a tenth of what a short connection costs. The functions that it calls wait
// for nothing, and tell the end as they tell all else, by the endpoint's queue.
// They are not exported; here they are linked by name. TestLinkedFunctions holds
// what is said of them here against the source of the gVisor that is linked.

//go:linkname protocolFromStack gvisor.dev/gvisor/pkg/tcpip/transport/tcp.protocolFromStack
func protocolFromStack(s *stack.Stack) unsafe.Pointer

//go:linkname newListenContext gvisor.dev/gvisor/pkg/tcpip/transport/tcp.newListenContext
func newListenContext(stk *stack.Stack, protocol unsafe.Pointer, listenEP *tcp.Endpoint, rcvWnd seqnum.Size, v6Only bool, netProto tcpip.NetworkProtocolNumber) unsafe.Pointer

//go:linkname newIncomingSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.newIncomingSegment
func newIncomingSegment(id stack.TransportEndpointID, clock tcpip.Clock, pkt *stack.PacketBuffer) (unsafe.Pointer, error)

//go:linkname releaseSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*segment).DecRef
func releaseSegment(s unsafe.Pointer)

//go:linkname startHandshake gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*listenContext).startHandshake
func startHandshake(l, s unsafe.Pointer, opts header.TCPSynOptions, queue *waiter.Queue, owner tcpip.PacketOwner) (*startedHandshake, tcpip.Error)

// startedHandshake is the beginning of gVisor's handshake.
type startedHandshake struct{ ep *tcp.Endpoint }

// passive makes endpoints of SYNs. It is safe for concurrent use: what gVisor
// forbids to share of a listenContext is for SYN cookies, which only listening
// endpoints make.
type passive struct {
	stack  *stack.Stack
	listen unsafe.Pointer // *tcp.listenContext
}

func newPassive(s *stack.Stack) passive {
	return passive{s, newListenContext(s, protocolFromStack(s), nil, tcpBufferDefault, true, 0)}
}

// start answers a SYN and returns the endpoint, whose queue tells when it is
// connected (WritableEvents) or has failed (EventErr).
func (p passive) start(id stack.TransportEndpointID, syn *stack.PacketBuffer, queue *waiter.Queue) (tcpip.Endpoint, error) {
	s, err := newIncomingSegment(id, p.stack.Clock(), syn)
	if err != nil {
		return nil, err
	}
	defer releaseSegment(s)
	opts := header.ParseSynOptions(header.TCP(syn.TransportHeader().Slice()).Options(), false)
	h, terr := startHandshake(p.listen, s, opts, queue, nil)
	if terr != nil {
		return nil, tcpipError(terr)
	}
	return h.ep, nil
}
