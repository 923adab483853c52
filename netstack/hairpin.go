package netstack

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
	"github.com/usernet/usernet/tunnel"
)

// A container that sends to a published port at one of the host's addresses
// reaches the publication's link within the switches: its packets get another
// destination, and the gateway as their source, so that the answers come back
// here. No socket of the host's is involved, hence none but the published port
// can be reached, however publications and host addresses change meanwhile.

// hairpin is a flow between a container and a publication's link. Packets are
// rewritten in place, superframes included.
type hairpin struct {
	proto      uint8
	from, to   *Link // the client's and the publication's
	pub        *Publication
	client     netip.AddrPort
	via        netip.AddrPort // what the client sends to: the host's address
	alias      netip.AddrPort // what stands for the client: the gateway of to
	target     netip.AddrPort // the container's port
	flow       *flow
	decidedFor atomic.Pointer[policy.Table] // the rules under which it was allowed
}

func (h *hairpin) there() peerKey { return peerKey{h.proto, h.client, h.via} }
func (h *hairpin) back() peerKey  { return peerKey{h.proto, h.target, h.alias} }

// remove takes the flow out of both switches' tables.
func (h *hairpin) remove() {
	h.from.s.pins.remove(h.there(), h)
	h.to.s.pins.remove(h.back(), h)
}

// pinTable finds a switch's hairpins by what its containers send: to the
// publication, or in answer.
type pinTable struct {
	count atomic.Int64 // without any, no packet needs to be looked up

	mu   sync.RWMutex // guards what follows
	pins map[peerKey]*hairpin
}

func (t *pinTable) find(k peerKey) *hairpin {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.pins[k]
}

// add enters a flow under a key that is free.
func (t *pinTable) add(k peerKey, h *hairpin) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pins[k] != nil {
		return false
	}
	if t.pins == nil {
		t.pins = map[peerKey]*hairpin{}
	}
	t.pins[k] = h
	t.count.Add(1)
	return true
}

func (t *pinTable) remove(k peerKey, h *hairpin) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pins[k] == h {
		delete(t.pins, k)
		t.count.Add(-1)
	}
}

// published finds the publication that a container's packet to a host address
// may be for.
func (s *Switch) published(p *packet.Header) *Publication {
	if p.Proto != packet.ProtoTCP && p.Proto != packet.ProtoUDP {
		return nil
	}
	return s.cfg.Fabric.publication(p.Proto, p.DstAddrPort())
}

// hairpin forwards a packet of a flow that leads to a publication, or answers
// one, and reports whether it was that. It runs on the container's reader.
func (s *Switch) hairpin(l *Link, f *frame) bool {
	if f.pkt.IsICMPError() {
		return s.hairpinError(l, f)
	}
	k := peerKey{f.pkt.Proto, f.pkt.SrcAddrPort(), f.pkt.DstAddrPort()}
	h := s.pins.find(k)
	if h == nil {
		return false
	}
	if k == h.there() && h.from == l {
		if !s.stillPublished(l, h, f) {
			s.flows.endPeer(k, h.flow, "unpublished")
			return false
		}
		s.turn(h, fromContainer, f)
		return true
	}
	s.turn(h, toContainer, f)
	return true
}

// stillPublished reports whether policy lets a known flow be, and whether what
// begins anew still finds its publication: established TCP outlives that.
func (s *Switch) stillPublished(l *Link, h *hairpin, f *frame) bool {
	begins := f.pkt.Proto == packet.ProtoUDP || f.pkt.TCPFlags&(packet.FlagSYN|packet.FlagACK) == packet.FlagSYN
	if begins && s.published(&f.pkt) != h.pub {
		return false
	}
	rules := s.rules.Load()
	if h.decidedFor.Load() == rules {
		return true
	}
	v := s.decide(l, &f.pkt)
	if v.Target != policy.TargetPublication && (begins || v.Reason == policy.ReasonHairpin) {
		return false
	}
	h.decidedFor.Store(rules)
	return true
}

// openHairpin begins the flow of a packet that policy lets through to a
// publication. It runs on the container's reader.
func (s *Switch) openHairpin(l *Link, f *frame) {
	pub := s.published(&f.pkt)
	if pub == nil { // it went while policy was asked
		s.refuse(l, nil, f, policy.Verdict{Action: policy.Reject, Reason: policy.ReasonNoService})
		return
	}
	v4 := f.pkt.Version == 4
	to, target := pub.link, pub.link.addrOf(v4)
	if !target.IsValid() {
		l.drop(DropFamily)
		l.reject(f, packet.ErrHostUnreachable)
		return
	}
	switch {
	case int(l.peerFlows.Load()) >= l.limits.PeerFlows:
		l.drop(DropFlowLimit)
		return
	case !l.newFlows.Allow():
		l.drop(DropFlowRate)
		return
	}
	h := &hairpin{
		proto: f.pkt.Proto, from: l, to: to, pub: pub, client: f.pkt.SrcAddrPort(), via: f.pkt.DstAddrPort(),
		target: netip.AddrPortFrom(target, pub.port),
	}
	h.decidedFor.Store(s.rules.Load())
	// The flow is there before anybody can find the hairpin, and is looked at
	// again after: it may have ended meanwhile, with a link.
	l.peerFlows.Add(1)
	h.flow = s.flows.openPeer(h.there(), flowSpec{
		link: l, peer: to, direction: FlowPeer, proto: h.proto, source: h.client, destination: h.via, target: h.target, pin: h,
	})
	if !h.chooseAlias() || !s.pins.add(h.there(), h) || s.linkByAddr(h.client.Addr()) != l || to.s.linkByAddr(target) != to {
		s.flows.endPeer(h.there(), h.flow, "no room")
		h.remove()
		l.drop(DropFlowLimit)
		return
	}
	pub.flows.Add(1)
	s.turn(h, fromContainer, f)
}

// Ports of the gateway that stand for clients of hairpins: below those that the
// stack and UDP publications take, so that the two never meet.
const (
	hairpinPortMin = 4096
	hairpinPorts   = 16000 - hairpinPortMin
)

// chooseAlias enters the flow into the table of the link that it leads to,
// under a port of its gateway that nothing else uses toward the target.
func (h *hairpin) chooseAlias() bool {
	s := h.to.s
	gateway := s.gateway(h.target.Addr().Is4())
	first := uint16(rand.UintN(hairpinPorts))
	for i := range uint16(hairpinPorts) {
		h.alias = netip.AddrPortFrom(gateway, hairpinPortMin+(first+i)%hairpinPorts)
		service := slices.ContainsFunc(s.cfg.HostServices, func(svc HostService) bool { return svc.Target.Port() == h.alias.Port() })
		hosts := s.flows.host(peerKey{h.proto, h.alias, h.target}) != nil
		if !service && !hosts && s.pins.add(h.back(), h) {
			return true
		}
	}
	return false
}

// turn sends a packet of a flow on its way: rewritten, hop limit less one.
func (s *Switch) turn(h *hairpin, dir direction, f *frame) {
	from, to, src, dst := h.from, h.to, h.alias, h.target
	if dir == toContainer {
		from, to, src, dst = h.to, h.from, h.via, h.client
	}
	switch {
	case f.pkt.HopLimit <= 1:
		from.drop(DropHopLimit)
		from.reject(f, packet.ErrTimeExceeded)
		return
	case f.raw != nil && f.segmentSize() > to.mtu && (f.pkt.DontFragment || f.hdr.GSOType != tunnel.GSONone):
		from.drop(DropTooBig) // while the packet is what its sender would know again
		from.rejectTooBig(f, to.mtu)
		return
	}
	if f.pkt.Proto == packet.ProtoTCP {
		if f.pkt.TCPFlags&(packet.FlagSYN|packet.FlagACK) == packet.FlagSYN {
			h.flow.ending.Store(0) // the client uses its port again
		}
		h.flow.noteTCP(dir, f.pkt.TCPFlags)
	}
	h.flow.add(dir, 1, f.pkt.Len)
	packet.Readdress(f.bufs[0], &f.pkt, src, dst, f.hdr.Flags&tunnel.FlagNeedsCsum != 0)
	packet.DecrementHopLimit(f.bufs[0])
	s.cross(from, to, f)
}

// hairpinError tells the client of a flow that the container's kernel has
// refused its packet: a UDP port that nobody listens on. What the container
// quotes is the rewritten packet; the client gets its own.
func (s *Switch) hairpinError(l *Link, f *frame) bool {
	q, ok := f.pkt.Quoted(f.bufs[0])
	if !ok || q.Proto != packet.ProtoUDP || q.Src.Addr() != f.pkt.Dst || !l.owns(q.Dst.Addr()) {
		return false
	}
	h := s.pins.find(peerKey{q.Proto, q.Dst, q.Src})
	if h == nil || h.to != l {
		return false
	}
	orig := packet.AppendIP(make([]byte, 0, 64), h.proto, h.client.Addr(), h.via.Addr(), defaultHopLimit, 0, 8, 0, false)
	orig = packet.AppendUDPHeader(orig, h.client, h.via, nil)
	h.from.rejectPacket(orig, packet.ErrPortUnreachable, h.via.Addr(), 0)
	return true
}
