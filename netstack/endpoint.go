package netstack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// tuple names a connection as the container sees it.
type tuple struct {
	container netip.AddrPort
	far       netip.AddrPort // whom the container talks to
}

// id is the tuple as the stack knows it: the stack plays the far end.
func (k tuple) id() stack.TransportEndpointID {
	return stack.TransportEndpointID{
		LocalAddress: tcpipAddr(k.far.Addr()), LocalPort: k.far.Port(),
		RemoteAddress: tcpipAddr(k.container.Addr()), RemotePort: k.container.Port(),
	}
}

func (k tuple) network() tcpip.NetworkProtocolNumber { return networkProtocol(k.container.Addr()) }

func tupleOf(id stack.TransportEndpointID) tuple {
	return tuple{
		container: addrPort(id.RemoteAddress, id.RemotePort),
		far:       addrPort(id.LocalAddress, id.LocalPort),
	}
}

func tcpipAddr(a netip.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpipAddr(a.Addr()), Port: a.Port()}
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	if a.Len() == header.IPv4AddressSize {
		return netip.AddrPortFrom(netip.AddrFrom4(a.As4()), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a.As16()), port)
}

func networkProtocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

// events are the stack's notifications of one endpoint, as two channels with
// room for one token each. A token says: look again. Who waits for one is a
// goroutine, to which the endpoint's worker gives way.
type events struct {
	worker   *worker
	queue    waiter.Queue
	entry    waiter.Entry
	readable chan struct{}
	writable chan struct{}
}

func (e *events) init(w *worker) {
	e.worker = w
	e.readable, e.writable = make(chan struct{}, 1), make(chan struct{}, 1)
}

// register starts the notifications; to stop them, unregister.
func (e *events) register(l waiter.EventListener) {
	e.entry.Init(l, waiter.ReadableEvents|waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	e.queue.EventRegister(&e.entry)
}

func (e *events) unregister() { e.queue.EventUnregister(&e.entry) }

// NotifyEvent is called by the stack, with the endpoint's lock held or not. It
// waits for nothing.
func (e *events) NotifyEvent(mask waiter.EventMask) {
	if mask&(waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr) != 0 {
		token(e.readable)
	}
	if mask&(waiter.WritableEvents|waiter.EventHUp|waiter.EventErr) != 0 {
		token(e.writable)
	}
	e.worker.loop.Yield()
}

func token(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func endpointState(ep tcpip.Endpoint) tcp.EndpointState { return tcp.EndpointState(ep.State()) }

// shaking reports whether an endpoint's handshake is under way.
func shaking(ep tcpip.Endpoint) bool {
	switch endpointState(ep) {
	case tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
		return true
	}
	return false
}

// connected reports whether an endpoint has a connection that is not over yet.
func connected(ep tcpip.Endpoint) bool {
	switch endpointState(ep) {
	case tcp.StateEstablished, tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateCloseWait, tcp.StateLastAck, tcp.StateClosing:
		return true
	}
	return false
}

// over reports whether both directions of a connection have ended, in peace or
// not.
func over(ep tcpip.Endpoint) bool {
	switch endpointState(ep) {
	case tcp.StateTimeWait, tcp.StateClose, tcp.StateError:
		return true
	}
	return false
}
