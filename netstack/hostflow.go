package netstack

import (
	"net/netip"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
)

// A host link shares its addresses with the gateway, which the switch itself
// speaks from as well: the resolver, host services, publications for clients on
// loopback. What tells them apart is the flow: a packet from a container is the
// host's if it answers one that the host has opened, and the switch's otherwise.
// Hence no flow may be both; whoever comes second is refused, see taken.

// fromHost decides where a frame of the host's goes and sends it there. It runs
// on the host link's reader and must not block.
func (s *Switch) fromHost(h *Link, f *frame) {
	if reason := s.inspectHost(h, &f.pkt); reason != dropNone {
		h.drop(reason)
		return
	}
	to := s.linkByAddr(f.pkt.Dst)
	if to != nil && f.pkt.FragOffset > 0 {
		// Without its first fragment, which was judged, it is of no use.
		s.cross(h, to, f)
		return
	}
	if to != nil && f.pkt.IsICMPError() {
		s.errorFromHost(h, to, f)
		return
	}
	k := peerKey{f.pkt.Proto, f.pkt.SrcAddrPort(), f.pkt.DstAddrPort()}
	fl := s.flows.host(k)
	if fl == nil || fl.spec.link != h || fl.spec.peer != to {
		if fl = s.openHostFlow(h, to, f, k); fl == nil {
			return
		}
	}
	if f.pkt.Proto == packet.ProtoTCP {
		if f.pkt.TCPFlags&packet.FlagSYN != 0 {
			fl.ending.Store(0) // ports are used again while the last flow is remembered
		}
		fl.noteTCP(fromContainer, f.pkt.TCPFlags)
	}
	fl.add(fromContainer, 1, f.pkt.Len)
	s.cross(h, to, f)
}

// inspectHost holds what is never taken from a host link.
func (s *Switch) inspectHost(h *Link, p *packet.Header) DropReason {
	if !s.gateway(p.Version == 4).IsValid() {
		return DropFamily
	}
	if reason := neverForwarded(p); reason != dropNone {
		return reason
	}
	if !h.maySend(p.Src) {
		return DropSpoofed
	}
	return dropNone
}

// openHostFlow opens the flow of a packet to a link, which is nil if nobody has
// the address. Nil when it is not to be; the drop is counted and the host told.
func (s *Switch) openHostFlow(h, to *Link, f *frame, k peerKey) *flow {
	v := s.rules.Load().Decide(policy.Flow{
		Origin: policy.FromHost, Link: h.name, Proto: k.proto, Src: k.src, Dst: k.dst,
	}, s.hostAddrs.Load(), s.isLink)
	switch {
	case v.Action != policy.Forward || to == nil:
		h.drop(dropForPolicy(v.Reason))
		if v.Reason == policy.ReasonNoSuchLink {
			h.reject(f, packet.ErrHostUnreachable)
		} else if v.Action == policy.Reject {
			h.reject(f, packet.ErrAdminProhibited)
		}
		return nil
	case !opensFlow(&f.pkt):
		h.drop(DropNoFlow)
		return nil
	case int(h.peerFlows.Load()) >= h.limits.PeerFlows:
		h.drop(DropFlowLimit)
		return nil
	}
	fl := s.flows.openHost(k, flowSpec{
		link: h, peer: to, direction: FlowHost, proto: k.proto, source: k.src, destination: k.dst,
	})
	// Not before: a publication's flow that begins at the same time looks for
	// this one after it has made itself known.
	if fl == nil || s.taken(to, k) {
		if fl != nil {
			s.flows.endPeer(k, fl, "flow taken")
		}
		h.drop(DropFlowTaken)
		h.reject(f, packet.ErrHostUnreachable)
		return nil
	}
	return fl
}

// opensFlow reports whether a packet can be the first of a conversation, or one
// of a conversation that was forgotten: an answer that nobody waits for is not.
func opensFlow(p *packet.Header) bool {
	switch p.Proto {
	case packet.ProtoTCP:
		return p.TCPFlags&packet.FlagRST == 0
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return p.IsEchoRequest()
	}
	return true
}

// taken reports whether the switch itself speaks to a container from a host
// packet's source, or would: an answer could be either's.
func (s *Switch) taken(to *Link, k peerKey) bool {
	if s.pins.find(peerKey{k.proto, k.dst, k.src}) != nil {
		return true
	}
	switch k.proto {
	case packet.ProtoTCP:
		return s.tcp.holds(tuple{container: k.dst, far: k.src})
	case packet.ProtoUDP:
		nk := natKey{container: k.dst, far: k.src}
		if to.nat.published.find(nk) != nil || to.nat.udp.find(nk) != nil {
			return true
		}
		v := s.rules.Load().Decide(policy.Flow{
			Origin: policy.FromContainer, Link: to.name, Proto: k.proto, Src: k.dst, Dst: k.src,
		}, s.hostAddrs.Load(), s.isLink)
		return v.Target == policy.TargetDNS || v.Target == policy.TargetHostService
	}
	return false
}

// errorFromHost forwards an ICMP error about what a container sent in a flow of
// the host's.
func (s *Switch) errorFromHost(h, to *Link, f *frame) {
	q, ok := f.pkt.Quoted(f.bufs[0])
	if !ok || q.Src.Addr() != f.pkt.Dst || s.flows.host(peerKey{q.Proto, q.Dst, q.Src}) == nil {
		h.drop(DropICMPError)
		return
	}
	s.cross(h, to, f)
}

// toHost forwards what a container sends in a flow of the host's, and reports
// whether it was that. It runs on the container's reader.
func (s *Switch) toHost(l *Link, f *frame) bool {
	p := &f.pkt
	if p.IsICMPError() {
		return s.errorToHost(l, f)
	}
	if p.Proto == packet.ProtoICMP || p.Proto == packet.ProtoICMPv6 {
		if !p.IsEchoReply() {
			return false // a flow of its own
		}
	}
	fl := s.flows.host(peerKey{p.Proto, p.DstAddrPort(), p.SrcAddrPort()})
	if fl == nil {
		return false
	}
	if p.Proto == packet.ProtoTCP {
		if p.TCPFlags&(packet.FlagSYN|packet.FlagACK) == packet.FlagSYN {
			l.drop(DropFlowTaken)
			return true
		}
		fl.noteTCP(toContainer, p.TCPFlags)
	}
	fl.add(toContainer, 1, p.Len)
	s.cross(l, fl.spec.link, f)
	return true
}

// errorToHost is toHost for ICMP errors: those about what the host sent.
func (s *Switch) errorToHost(l *Link, f *frame) bool {
	q, ok := f.pkt.Quoted(f.bufs[0])
	if !ok || q.Src.Addr() != f.pkt.Dst || !l.owns(q.Dst.Addr()) {
		return false
	}
	fl := s.flows.host(peerKey{q.Proto, q.Src, q.Dst})
	if fl == nil {
		return false
	}
	s.cross(l, fl.spec.link, f)
	return true
}

// cross sends a frame to the other side as it is: host and containers are
// neighbours.
func (s *Switch) cross(from, to *Link, f *frame) {
	switch {
	case f.raw == nil: // put together from fragments
		to.sendFragments(f.bufs[0], s.udp.ids.Add(1))
	case f.segmentSize() > to.mtu:
		s.fragmentToPeer(from, to, f)
	default:
		to.send(f.raw)
	}
}

// errorSource is where a link's ICMP errors come from when no router sent them:
// the gateway. A host would not believe an error from its own address; there
// the destination stands for itself.
func (l *Link) errorSource(orig []byte) netip.Addr {
	if l.host {
		return destination(orig)
	}
	return l.s.gateway(orig[0]>>4 == 4)
}

// host finds a flow that a host has opened, by the host's packets.
func (t *flowTable) host(k peerKey) *flow {
	t.mu.RLock()
	f := t.peers[k]
	t.mu.RUnlock()
	if f == nil || f.spec.direction != FlowHost {
		return nil
	}
	return f
}

// openHost records a new flow of a host's; nil if the name is another's.
func (t *flowTable) openHost(k peerKey, spec flowSpec) *flow {
	f := t.open(spec)
	t.mu.Lock()
	if t.peers[k] != nil {
		delete(t.live, f)
		f = nil
	} else {
		t.addPeerLocked(k, f)
		t.hostFlows.Add(1)
	}
	t.mu.Unlock()
	if f != nil {
		spec.link.peerFlows.Add(1)
	}
	return f
}

// endPeer ends one flow between links.
func (t *flowTable) endPeer(k peerKey, f *flow, cause string) {
	t.mu.Lock()
	was := t.peers[k] == f
	if was {
		delete(t.peers, k)
	}
	t.mu.Unlock()
	if was {
		f.peerOver(cause)
	}
}

// peerOver ends a flow between links that has left the table.
func (f *flow) peerOver(cause string) {
	f.spec.link.peerFlows.Add(-1)
	if f.spec.pin != nil {
		f.spec.pin.remove()
	}
	if f.spec.direction == FlowHost {
		f.table.hostFlows.Add(-1)
	}
	f.close(cause)
}
