package netstack

import (
	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
)

// fromContainer decides where a frame goes and sends it there. It runs on the
// link's reader and must not block.
func (s *Switch) fromContainer(l *Link, f *frame) {
	if l.dhcp != nil && l.dhcp.mine(&f.pkt) {
		l.dhcp.serve(l, f)
		return
	}
	if reason := s.inspect(l, &f.pkt); reason != dropNone {
		l.drop(reason)
		return
	}
	to := s.linkByAddr(f.pkt.Dst)
	if to == nil {
		to = s.foreignLink(f.pkt.Dst)
	}
	if to != nil {
		s.toPeer(l, to, f)
		return
	}
	if f.pkt.HopLimit <= 1 && !s.isGateway(f.pkt.Dst) {
		l.drop(DropHopLimit)
		l.reject(f, packet.ErrTimeExceeded)
		return
	}
	if f.pkt.Fragment {
		// Sockets take whole datagrams, and only the first fragment has the
		// ports that policy asks for.
		if f = s.udp.reassemble(l, f); f == nil {
			return
		}
	}
	if s.pins.count.Load() != 0 && s.hairpin(l, f) {
		return
	}
	if s.flows.hostFlows.Load() != 0 && s.toHost(l, f) {
		return
	}
	if f.pkt.Proto == packet.ProtoTCP && f.pkt.TCPFlags&(packet.FlagSYN|packet.FlagACK) != packet.FlagSYN {
		// Policy was asked when the flow began, be it here or at a publication;
		// what belongs to no flow is reset by the stack.
		s.tcp.fromContainer(l, f, policy.Verdict{})
		return
	}
	if f.pkt.Proto == packet.ProtoUDP && s.udp.established(l, f) {
		return
	}
	v := s.decide(l, &f.pkt)
	if v.Action != policy.Forward {
		s.refuse(l, nil, f, v)
		return
	}
	if v.Target == policy.TargetPublication {
		s.openHairpin(l, f)
		return
	}
	s.toNAT(l, f, v)
}

// inspect holds what is never let through, whatever its destination.
func (s *Switch) inspect(l *Link, p *packet.Header) DropReason {
	if !s.gateway(p.Version == 4).IsValid() {
		return DropFamily
	}
	if reason := neverForwarded(p); reason != dropNone {
		return reason
	}
	if !l.owns(p.Src) {
		return DropSpoofed
	}
	if l.owns(p.Dst) {
		return DropLoop
	}
	return dropNone
}

// neverForwarded are the protocols that set up networks: a container has no
// business with them, and its neighbours must not hear of it.
func neverForwarded(p *packet.Header) DropReason {
	switch p.Proto {
	case packet.ProtoICMPv6:
		switch p.ICMPType {
		case 130, 131, 132, 143, 133, 135, 136: // MLD; solicitations and neighbour advertisements
			return DropNeighbor
		case 134, 137: // RFC 4861: router advertisement, redirect
			return DropRouterAdvert
		}
	case packet.ProtoICMP:
		switch p.ICMPType {
		case 5, 9: // RFC 792 redirect, RFC 1256 router advertisement
			return DropRouterAdvert
		}
	case 2: // IGMP
		return DropNeighbor
	case packet.ProtoUDP:
		switch p.DstPort {
		case 67, 68, 546, 547:
			return DropDHCP
		}
	}
	return dropNone
}

// decide asks policy about a packet that begins a flow.
func (s *Switch) decide(l *Link, p *packet.Header) policy.Verdict {
	pub := s.published(p)
	return s.rules.Load().Decide(policy.Flow{
		Origin: policy.FromContainer, Link: l.name, Proto: p.Proto,
		Src: p.SrcAddrPort(), Dst: p.DstAddrPort(), Joined: s.joined(p.Dst) != nil,
		Published: pub != nil, OwnPort: pub != nil && pub.link == l && l.noOwnPorts,
	}, s.hostAddrs.Load(), s.isLink)
}

// refuse drops what policy does not forward, and answers where the verdict
// says so: a TCP port that nobody serves is reset, as a host would do it;
// everything else learns by ICMP that it is prohibited, so that clients fail
// at once.
//
// peer is the link that it was for, nil for the outside.
func (s *Switch) refuse(l, peer *Link, f *frame, v policy.Verdict) {
	l.drop(dropForPolicy(v.Reason))
	if v.Action != policy.Reject {
		return
	}
	if l.newFlows.Allow() {
		spec := flowSpec{
			link: l, peer: peer, direction: FlowEgress, proto: f.pkt.Proto,
			source: f.pkt.SrcAddrPort(), destination: f.pkt.DstAddrPort(),
		}
		if peer != nil {
			spec.direction = FlowPeer
		}
		s.flows.refused(spec, v.Reason.String())
	}
	switch {
	case v.Reason != policy.ReasonNoService && v.Reason != policy.ReasonNoSuchLink:
		l.reject(f, packet.ErrAdminProhibited)
	case v.Reason == policy.ReasonNoSuchLink:
		l.reject(f, packet.ErrHostUnreachable)
	case f.pkt.Proto == packet.ProtoTCP:
		if l.icmpErrors.Allow() {
			if rst := packet.AppendTCPReset(nil, f.bufs[0]); len(rst) > 0 {
				l.sendPacket(rst)
			}
		}
	case f.pkt.Proto == packet.ProtoUDP:
		l.reject(f, packet.ErrPortUnreachable)
	default:
		l.reject(f, packet.ErrProtoUnreachable)
	}
}

// toNAT hands a packet to what carries its protocol to the outside.
func (s *Switch) toNAT(l *Link, f *frame, v policy.Verdict) {
	switch f.pkt.Proto {
	case packet.ProtoTCP:
		s.tcp.fromContainer(l, f, v)
	case packet.ProtoUDP:
		s.udp.fromContainer(l, f, v)
	case packet.ProtoICMP, packet.ProtoICMPv6:
		if f.pkt.IsICMPError() {
			l.drop(DropICMPError)
			return
		}
		s.icmp.fromContainer(l, f, v)
	default:
		l.drop(DropProtocol)
		l.reject(f, packet.ErrProtoUnreachable)
	}
}

// toPeer forwards a frame to another link of this network, or of one that it is
// joined with, verbatim but for the hop limit: checksums that the kernel left
// open and segmentation stay open, and the far kernel completes them. Of
// acknowledgements that come in a run only a flow's last is written, see
// passingACKs.
func (s *Switch) toPeer(from, to *Link, f *frame) {
	if v := from.decidePeer(to); v.Action != policy.Forward {
		s.refuse(from, to, f, v)
		return
	}
	if f.pkt.HopLimit <= 1 {
		from.drop(DropHopLimit)
		from.reject(f, packet.ErrTimeExceeded)
		return
	}
	fl, dir := s.peerFlow(from, to, &f.pkt)
	if fl == nil {
		return
	}
	packet.DecrementHopLimit(f.bufs[0])
	switch from.pass(fl, to, f) {
	case passNever:
		from.drop(DropSuperseded)
		return
	case passLater:
	case passNow:
		if f.segmentSize() > to.mtu {
			s.fragmentToPeer(from, to, f)
		} else {
			to.send(f.raw)
		}
	}
	fl.add(dir, 1, f.pkt.Len)
	if f.pkt.Proto == packet.ProtoTCP {
		fl.noteTCP(dir, f.pkt.TCPFlags)
	}
}

// fragmentToPeer handles what the next link's MTU does not take: IPv4 without
// DF is fragmented, everything else told (RFC 791 §3.2, RFC 8201).
func (s *Switch) fragmentToPeer(from, to *Link, f *frame) {
	if f.pkt.DontFragment || f.hdr.GSOType != 0 {
		from.drop(DropTooBig)
		from.rejectTooBig(f, to.mtu)
		return
	}
	whole := f.bytes(make([]byte, 0, f.pkt.Len))
	f.completeChecksum(whole)
	err := packet.Fragments(whole, to.mtu, f.pkt.FragID, func(frag []byte) error {
		to.sendPacket(frag)
		return nil
	})
	if err != nil {
		from.drop(DropTooBig)
	}
}

// peerFlow finds or opens the flow of a packet between two links; nil when the
// origin's limits forbid it.
func (s *Switch) peerFlow(from, to *Link, p *packet.Header) (*flow, direction) {
	k := peerKey{p.Proto, p.SrcAddrPort(), p.DstAddrPort()}
	if fl, dir := s.flows.lookupPeer(k); fl != nil {
		return fl, dir
	}
	if to.s != s { // the flow is where it began
		if fl, dir := to.s.flows.lookupPeer(k); fl != nil {
			return fl, dir
		}
	}
	if int(from.peerFlows.Load()) >= from.limits.PeerFlows {
		from.drop(DropFlowLimit)
		return nil, 0
	}
	if !from.newFlows.Allow() {
		from.drop(DropFlowRate)
		return nil, 0
	}
	from.peerFlows.Add(1)
	return s.flows.openPeer(k, flowSpec{
		link: from, peer: to, direction: FlowPeer, proto: p.Proto,
		source: k.src, destination: k.dst,
	}), fromContainer
}

// noteTCP remembers how a TCP flow between links ends.
func (f *flow) noteTCP(d direction, flags uint8) {
	var bits uint32
	if flags&packet.FlagRST != 0 {
		bits |= endingReset
	}
	if flags&packet.FlagFIN != 0 {
		bits |= 1 << d
	}
	if bits != 0 {
		f.ending.Or(bits)
	}
}
