package netstack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
)

// icmpNAT carries ICMP echo: requests to the gateway are answered here, those to
// the outside leave by ping sockets, one per identifier of a container. Hop
// limits are copied and the errors of routers come back from the routers, so
// that traceroute sees the path.
type icmpNAT struct {
	s       *Switch
	replies sync.Pool     // of *[]byte, for answers of the gateway
	ids     atomic.Uint32 // of fragmented replies
}

func newICMPNAT(s *Switch) (*icmpNAT, error) {
	return &icmpNAT{s: s, replies: sync.Pool{New: func() any { return new([]byte) }}}, nil
}

// icmpHeaderLen is the length of an echo header (RFC 792).
const icmpHeaderLen = 8

// fromContainer takes an echo request. It runs on the link's reader.
func (n *icmpNAT) fromContainer(l *Link, f *frame, v policy.Verdict) {
	switch {
	case !f.pkt.IsEchoRequest():
		l.drop(DropProtocol)
	case !packet.ValidL4Checksum(&f.pkt, f.bufs):
		l.drop(DropChecksum)
	case v.Target == policy.TargetGateway:
		n.answer(l, f)
	case v.Target == policy.TargetEgress:
		n.toOutside(l, f, v)
	default:
		l.drop(DropNoFlow)
	}
}

// answer is the gateway's own reply.
func (n *icmpNAT) answer(l *Link, f *frame) {
	b := n.replies.Get().(*[]byte)
	defer n.replies.Put(b)
	*b = f.bytes((*b)[:0])
	payload := (*b)[f.pkt.Payload:]
	end := len(*b)
	*b = packet.AppendEcho(*b, true, f.pkt.Dst, f.pkt.Src, f.pkt.SrcPort, f.pkt.ICMPSeq, defaultHopLimit, payload)
	l.sendFragments((*b)[end:], n.ids.Add(1))
}

// toOutside sends a request by the socket of its identifier.
func (n *icmpNAT) toOutside(l *Link, f *frame, v policy.Verdict) {
	k := natKey{f.pkt.SrcAddrPort(), f.pkt.DstAddrPort()}
	p := l.nat.ping.find(k)
	if p != nil && !n.s.stillAllowed(l, p, f) {
		p = nil
	}
	if p == nil {
		if p = n.open(l, f, k, v.Addr.Addr()); p == nil {
			return
		}
	}
	n.send(l, p, f)
}

// open makes the flow of an identifier and destination.
func (n *icmpNAT) open(l *Link, f *frame, k natKey, dst netip.Addr) *natPeer {
	if r := n.s.rules.Load().CheckDial(dst, n.s.hostAddrs.Load()); r != policy.ReasonNone {
		l.drop(dropForPolicy(r))
		l.reject(f, packet.ErrAdminProhibited)
		return nil
	}
	fl := n.s.openFlow(flowSpec{
		link: l, direction: FlowEgress, proto: echoProto(dst.Is4()), source: k.container, destination: k.far,
	})
	if fl == nil {
		return nil
	}
	sock, err := n.socketFor(l, socketKey{k.container, dst.Is4()})
	if err != nil {
		fl.fail(err.Error())
		if errors.Is(err, ErrPingUnavailable) {
			l.drop(DropPingUnavailable)
			l.reject(f, packet.ErrAdminProhibited)
		} else {
			l.drop(DropHostSend)
		}
		return nil
	}
	p := &natPeer{
		sock: sock, key: k, host: netip.AddrPortFrom(dst, 0), flow: fl,
		rules: n.s.rules.Load(), hosts: n.s.hostAddrs.Load(),
	}
	if !n.s.udp.clock.register(l, p) {
		l.drop(DropFlowLimit)
		return nil
	}
	return p
}

func (n *icmpNAT) socketFor(l *Link, k socketKey) (*natSocket, error) {
	if s := l.nat.ping.socket(k); s != nil {
		return s, nil
	}
	return n.newSocket(l, k)
}

// send gives the request to the host's kernel, which replaces the identifier by
// the socket's own and makes the checksum, or, for raw sockets, leaves both to
// us.
func (n *icmpNAT) send(l *Link, p *natPeer, f *frame) {
	p.active.Store(n.s.udp.clock.seconds.Load())
	d := &l.nat.sender
	errno := d.sendEcho(p, f)
	for tries := 0; tries < 3 && isReport(errno); tries++ {
		p.sock.drainErrors()
		errno = d.sendEcho(p, f)
	}
	if errno != 0 {
		n.s.udp.sendFailed(l, p, f, errno)
		return
	}
	p.flow.add(fromContainer, 1, f.pkt.Len)
}

// sendEcho is send for ICMP: a header of the socket's identifier, then the
// container's payload.
func (d *natSender) sendEcho(p *natPeer, f *frame) (errno unix.Errno) {
	d.load(f, f.pkt.Payload, f.pkt.Len-f.pkt.Payload)
	copy(d.iov[1:], d.iov[:numViews])
	d.head = [8]byte{f.pkt.ICMPType, f.pkt.ICMPCode}
	binary.BigEndian.PutUint16(d.head[4:], p.sock.id)
	binary.BigEndian.PutUint16(d.head[6:], f.pkt.ICMPSeq)
	if p.sock.raw && p.sock.v4 {
		// Header and payload differ from the container's in the identifier
		// only, so its checksum changes by that (RFC 1624 eqn. 3). ICMPv6's
		// is the kernel's work also on raw sockets (RFC 3542 §3.1).
		sum := ^binary.BigEndian.Uint16(f.bufs[0][f.pkt.L4+2:])
		binary.BigEndian.PutUint16(d.head[2:], ^addOnes(addOnes(sum, ^f.pkt.SrcPort), p.sock.id))
	}
	d.iov[0].Base = &d.head[0]
	d.iov[0].SetLen(len(d.head))
	d.msg.SetIovlen(int(d.msg.Iovlen) + 1)
	d.controls(p, f, 0)
	return d.submit(p, f)
}

// addOnes adds in one's complement.
func addOnes(a, b uint16) uint16 {
	sum := uint32(a) + uint32(b)
	return uint16(sum>>16 + sum&0xffff)
}

// deliver takes what came to a ping socket. It runs on the link's worker.
func (n *icmpNAT) deliver(s *natSocket, in *natInput) {
	msg := in.data
	if s.raw && s.v4 { // such sockets show the IP header too (raw(7))
		if len(msg) < 20 || len(msg) < int(msg[0]&0xf)*4 {
			return
		}
		msg = msg[int(msg[0]&0xf)*4:]
	}
	wantType := uint8(0) // echo reply
	if !s.v4 {
		wantType = 129
	}
	if len(msg) < icmpHeaderLen || msg[0] != wantType || binary.BigEndian.Uint16(msg[4:]) != s.id {
		return // not this container's: a raw socket hears the whole host
	}
	p, _ := s.table.byHost(s, netip.AddrPortFrom(in.from.Addr(), 0))
	if p == nil {
		s.link.drop(DropUnsolicited)
		return
	}
	p.noteReply()
	p.active.Store(n.s.udp.clock.seconds.Load())
	b := n.replies.Get().(*[]byte)
	defer n.replies.Put(b)
	*b = packet.AppendEcho((*b)[:0], true, p.key.far.Addr(), p.key.container.Addr(), p.key.container.Port(),
		binary.BigEndian.Uint16(msg[6:]), max(in.hops, 2)-1, msg[icmpHeaderLen:])
	p.flow.add(toContainer, 1, len(*b))
	s.link.sendFragments(*b, n.ids.Add(1))
}

// linkGone ends the link's echo flows and waits for what its sockets have begun.
func (n *icmpNAT) linkGone(l *Link) {
	l.nat.ping.endAll("link detached")
	l.worker.settle()
}

// close has nothing to do: every socket belongs to a link.
func (n *icmpNAT) close() {}
