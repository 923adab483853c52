package netstack

import (
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// In gVisor a goroutine of the protocol, its processor, works on the segments that
// endpoints are given. Waking it, switching to it and back, and looking up which one
// it is are 5 % of a TCP round trip. A worker does the same by itself, by the same
// functions, and leaves to the processors what they alone know how to do. They are
// linked by name, see handshake.go.

//go:linkname enqueueSegment gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).enqueueSegment
func enqueueSegment(ep *tcp.Endpoint, s unsafe.Pointer) bool

//go:linkname handleConnecting gvisor.dev/gvisor/pkg/tcpip/transport/tcp.handleConnecting
func handleConnecting(ep *tcp.Endpoint)

//go:linkname handleConnected gvisor.dev/gvisor/pkg/tcpip/transport/tcp.handleConnected
func handleConnected(ep *tcp.Endpoint)

// leaveToProcessor has the endpoint's processor work on what is still in its queue,
// if that is neither empty nor about to be looked at by who holds the endpoint.
// gVisor's name for it tells what it needs it for itself.
//
//go:linkname leaveToProcessor gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).requeueOnRestore
func leaveToProcessor(ep *tcp.Endpoint)

// inbox is the endpoints that were given segments in this turn of a worker, to
// which it belongs. All that an endpoint was given is worked on together, so that
// it is acknowledged together. The zero inbox is empty.
type inbox struct{ endpoints []*tcp.Endpoint }

// put gives a segment to its endpoint. It reports false, and has done nothing,
// where the segment is gVisor's to refuse.
func (in *inbox) put(ep *tcp.Endpoint, id stack.TransportEndpointID, clock tcpip.Clock, pkt *stack.PacketBuffer) bool {
	s, err := newIncomingSegment(id, clock, pkt)
	if err != nil {
		return false
	}
	queued := enqueueSegment(ep, s) // else its queue is full, and the segment lost
	releaseSegment(s)
	if n := len(in.endpoints); queued && (n == 0 || in.endpoints[n-1] != ep) {
		in.endpoints = append(in.endpoints, ep)
	}
	return true
}

// work has the endpoints work on what they were given. It reports whether that is
// left to a processor.
func (in *inbox) work() (left bool) {
	for i, ep := range in.endpoints {
		in.endpoints[i] = nil
		known := false
		if shaking(ep) {
			handleConnecting(ep) // stops at the segment that completes the handshake
			known = true
		}
		if connected(ep) {
			handleConnected(ep)
			known = true
		}
		leaveToProcessor(ep)
		left = left || !known
	}
	in.endpoints = in.endpoints[:0]
	return left
}
