package netstack

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
)

// udpPublication is the UDP half of a publication: what clients send to its
// socket reaches the container from the clients' own addresses, and what the
// container answers leaves by the same socket, from the very address that the
// client has sent to.
type udpPublication struct {
	u    *udpNAT
	pub  *Publication
	sock *natSocket
	once sync.Once
}

// publish makes the UDP half of a publication on the socket of pc, of which it
// has a descriptor of its own: pc stays the caller's until start is called.
// start begins to serve, half.Close ends it and frees the port.
func (u *udpNAT) publish(p *Publication, pc net.PacketConn) (half io.Closer, start func(), err error) {
	c, ok := pc.(*net.UDPConn)
	if !ok {
		return nil, nil, fmt.Errorf("a packet socket of type %T: want a *net.UDPConn", pc)
	}
	fd, err := duplicateSocket(c)
	if err != nil {
		return nil, nil, err
	}
	h := &udpPublication{u: u, pub: p}
	h.sock = &natSocket{link: p.link, table: &p.link.nat.published, pub: p, deliver: h.deliver}
	h.sock.prepare(fd)
	if p.host.Addr().IsUnspecified() {
		h.tellLocal(fd)
	}
	if err := h.sock.begin(0); err != nil {
		h.sock.close()
		return nil, nil, err
	}
	return h, func() { pc.Close(); h.sock.listen() }, nil
}

// tellLocal makes the kernel say which of the host's addresses a datagram came
// to.
func (h *udpPublication) tellLocal(fd int) {
	setOptions(uintptr(fd), []option{{unix.SOL_IP, unix.IP_PKTINFO, 1}})
	if !h.sock.v4 {
		setOptions(uintptr(fd), []option{{unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1}})
	}
}

// Close ends the publication's flows and waits for what its socket has begun.
func (h *udpPublication) Close() error {
	h.once.Do(func() {
		t := h.sock.table
		over, _ := t.clear(func(p *natPeer) bool { return p.sock == h.sock })
		t.mu.Lock()
		h.sock.closed = true
		t.mu.Unlock()
		h.sock.close()
		h.pub.link.worker.settle()
		late, _ := t.clear(func(p *natPeer) bool { return p.sock == h.sock })
		for _, p := range append(over, late...) {
			p.end("unpublished")
		}
	})
	return nil
}

// deliver takes what a client sent. It runs on the link's
// worker.
func (h *udpPublication) deliver(s *natSocket, in *natInput) {
	p, _ := s.table.byHost(s, in.from)
	if p == nil {
		if p = h.open(in); p == nil {
			return
		}
	}
	p.active.Store(h.u.clock.seconds.Load())
	h.u.toContainer(s.link, p, in)
}

// open makes the flow of a client that is heard of for the first time.
func (h *udpPublication) open(in *natInput) *natPeer {
	l, s := h.sock.link, h.u.s
	source, target := s.sourceFor(l, in.from, h.pub.port)
	if v := s.decideIngress(l, packet.ProtoUDP, source, target); v.Action != policy.Forward {
		l.drop(dropForPolicy(v.Reason))
		return nil
	}
	if source.Port() != 0 && s.flows.host(peerKey{packet.ProtoUDP, source, target}) != nil {
		source = netip.AddrPortFrom(s.gateway(target.Addr().Is4()), 0) // the answers would reach a host link
	}
	if source.Port() == 0 {
		if source = h.alias(source.Addr(), target, in.from.Port()); source.Port() == 0 {
			l.drop(DropFlowLimit)
			return nil
		}
	}
	p := &natPeer{
		sock: h.sock, key: natKey{target, source}, host: in.from, local: in.local,
		flow: s.flows.open(flowSpec{
			link: l, direction: FlowIngress, proto: packet.ProtoUDP,
			source: in.from, destination: h.pub.host, target: target,
		}),
	}
	h.pub.flows.Add(1)
	if !h.u.clock.register(l, p) {
		l.drop(DropFlowLimit)
		return nil
	}
	if s.flows.host(peerKey{packet.ProtoUDP, source, target}) != nil { // begun at the same time
		if h.sock.table.remove(p) {
			p.end("flow taken")
		}
		l.drop(DropFlowTaken)
		return nil
	}
	return p
}

// Ports of the gateway that stand for clients whose own address the container
// cannot see: the dynamic ones (RFC 6335 §6).
const (
	aliasPortMin = 49152
	aliasPorts   = 65536 - aliasPortMin
)

// alias finds a port of the gateway that is free toward target, the client's own
// if possible. Port 0: there is none.
func (h *udpPublication) alias(gateway netip.Addr, target netip.AddrPort, wish uint16) netip.AddrPort {
	first := uint16(rand.UintN(aliasPorts))
	for i := range uint16(aliasPorts) {
		port := aliasPortMin + (first+i)%aliasPorts
		if i == 0 && wish >= aliasPortMin {
			port = wish
		}
		a := netip.AddrPortFrom(gateway, port)
		if !h.isService(port) && h.sock.table.find(natKey{target, a}) == nil && h.u.s.flows.host(peerKey{packet.ProtoUDP, a, target}) == nil {
			return a
		}
	}
	return netip.AddrPortFrom(gateway, 0)
}

func (h *udpPublication) isService(port uint16) bool {
	for _, svc := range h.u.s.cfg.HostServices {
		if svc.Target.Port() == port {
			return true
		}
	}
	return false
}
