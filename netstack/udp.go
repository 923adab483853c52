package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
	"github.com/usernet/usernet/tunnel"
)

// udpNAT carries UDP between links and host sockets, packet by packet and
// without gVisor. Each port of a container has one unconnected host socket per
// family, whatever it sends to (endpoint-independent mapping, RFC 4787 REQ-1),
// and hears only those addresses that it has sent to (address-dependent
// filtering, REQ-8).
//
// Packets of a container are sent by its link's reader. What comes back is read
// on the link's worker, which holds no buffer while it waits. One janitor, see
// natClock, ends what is idle.
type udpNAT struct {
	s      *Switch
	ctx    context.Context // ends with close
	cancel context.CancelFunc
	clock  natClock
	ids    atomic.Uint32 // of fragmented replies
}

func newUDPNAT(s *Switch) (*udpNAT, error) {
	u := &udpNAT{s: s}
	u.ctx, u.cancel = context.WithCancel(context.Background())
	return u, nil
}

// established carries a packet of a flow that policy has let be, and reports
// whether it was one. A flow judged by rules or host addresses that were
// replaced since is judged again.
func (u *udpNAT) established(l *Link, f *frame) bool {
	p := l.nat.find(natKey{f.pkt.SrcAddrPort(), f.pkt.DstAddrPort()})
	if p == nil || p.sock.pub == nil && !u.s.stillAllowed(l, p, f) {
		return false
	}
	if u.checksum(l, f) && !u.gather(l, p, f) {
		u.transmit(l, p, f)
	}
	return true
}

// stillAllowed reports whether policy lets a known flow be. One that it no
// longer does, or that now leads elsewhere, is ended. It runs on the link's
// reader.
func (s *Switch) stillAllowed(l *Link, p *natPeer, f *frame) bool {
	rules, hosts := s.rules.Load(), s.hostAddrs.Load()
	if p.rules == rules && p.hosts == hosts {
		return true
	}
	v := s.decide(l, &f.pkt)
	same := v.Addr == p.host || p.sock.ping && v.Addr.Addr() == p.host.Addr()
	if v.Action != policy.Forward || v.Target == policy.TargetPublication || !same {
		if p.sock.table.remove(p) {
			p.end("policy: " + v.Reason.String())
		}
		return false
	}
	p.rules, p.hosts = rules, hosts
	return true
}

// fromContainer takes the packet that begins a flow. It runs on the link's
// reader.
func (u *udpNAT) fromContainer(l *Link, f *frame, v policy.Verdict) {
	if !u.checksum(l, f) {
		return
	}
	switch v.Target {
	case policy.TargetDNS:
		u.s.resolver.fromContainer(l, f)
	case policy.TargetEgress, policy.TargetHostService:
		if l.reader.hot() {
			u.flushAll(l.worker) // a new flow may end another
		}
		if p := u.open(l, f, v); p != nil {
			u.transmit(l, p, f)
		}
	default:
		l.drop(DropNoFlow)
	}
}

// checksum reports whether the packet's checksum is right, or counts the drop:
// the host's kernel makes a new one, which must not hide damage.
func (u *udpNAT) checksum(l *Link, f *frame) bool {
	if f.checksumKnown() || packet.ValidL4Checksum(&f.pkt, f.bufs) {
		return true
	}
	l.drop(DropChecksum)
	return false
}

// open makes the flow of a packet and, if the container's port has none yet,
// its socket. Nil when a limit forbids it, which is counted.
func (u *udpNAT) open(l *Link, f *frame, v policy.Verdict) *natPeer {
	spec := flowSpec{
		link: l, direction: FlowEgress, proto: packet.ProtoUDP,
		source: f.pkt.SrcAddrPort(), destination: f.pkt.DstAddrPort(), target: v.Addr,
	}
	if v.Target == policy.TargetHostService {
		spec.direction = FlowService
	} else if r := u.s.rules.Load().CheckDial(v.Addr.Addr(), u.s.hostAddrs.Load()); r != policy.ReasonNone {
		l.drop(dropForPolicy(r))
		l.reject(f, packet.ErrAdminProhibited)
		return nil
	}
	fl := u.s.openFlow(spec)
	if fl == nil {
		return nil
	}
	k := socketKey{spec.source, v.Addr.Addr().Is4()}
	sock, err := u.socketFor(l, k)
	if err != nil {
		l.drop(DropHostSend)
		fl.fail("open a host socket: " + err.Error())
		return nil
	}
	p := &natPeer{
		sock: sock, key: natKey{spec.source, spec.destination}, host: v.Addr, flow: fl,
		rules: u.s.rules.Load(), hosts: u.s.hostAddrs.Load(),
	}
	if !u.clock.register(l, p) {
		l.drop(DropFlowLimit)
		return nil
	}
	return p
}

// register puts a flow into its table, at the price of another if it is full.
// False when there is no room; the flow and a socket without others are ended.
func (c *natClock) register(l *Link, p *natPeer) bool {
	p.name.set(p.host, p.sock.v4)
	c.watch(l) // brings the clock up to date
	evicted, ok := p.sock.table.add(p, l.natLimit(p.sock.ping), c.seconds.Load())
	if !ok {
		p.flow.fail("limit of flows")
		p.sock.table.discard(p.sock)
		return false
	}
	c.watch(l) // the janitor may have let the link go in between
	if evicted != nil {
		evicted.end("evicted: the link's table was full")
	}
	return true
}

// socketFor finds or opens the socket of a container's port. A process without
// free descriptors takes one from the same link.
func (u *udpNAT) socketFor(l *Link, k socketKey) (*natSocket, error) {
	if s := l.nat.udp.socket(k); s != nil {
		return s, nil
	}
	s, err := u.newSocket(l, k)
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		if old := l.nat.udp.evictOldest(); old != nil {
			old.end("evicted: no descriptors left")
			s, err = u.newSocket(l, k)
		}
	}
	return s, err
}

// transmit sends the datagrams of a frame to the far end. It runs on the link's
// reader and allocates nothing.
func (u *udpNAT) transmit(l *Link, p *natPeer, f *frame) {
	u.noteSent(p)
	size := f.pkt.Len - f.pkt.Payload
	var errno syscall.Errno
	if segment := int(f.hdr.GSOSize); f.hdr.Superframe() && size > segment {
		errno = u.sendSegments(l, p, f, segment)
	} else {
		errno = sendDatagram(l, p, f, f.pkt.Payload, size, 0)
	}
	if errno != 0 {
		u.sendFailed(l, p, f, errno)
		return
	}
	p.flow.add(fromContainer, 1, f.pkt.Len)
}

// noteSent keeps a flow that its container has sent to.
func (u *udpNAT) noteSent(p *natPeer) {
	p.active.Store(u.clock.seconds.Load())
	if p.sock.pub != nil {
		p.noteReply()
	}
}

const (
	// maxSegments is UDP_MAX_SEGMENTS of kernels before 6.9.
	maxSegments = 64
	// maxUDPPayload fits an IPv4 packet, which is the tighter family.
	maxUDPPayload = 65535 - 20 - 8
)

// sendSegments gives the datagrams of a superframe to the kernel in as few
// calls as it takes, or one by one where the way out cannot segment.
func (u *udpNAT) sendSegments(l *Link, p *natPeer, f *frame, segment int) syscall.Errno {
	batch := segment * min(maxSegments, maxUDPPayload/segment)
	for at := f.pkt.Payload; at < f.pkt.Len; at += batch {
		n := min(batch, f.pkt.Len-at)
		errno := sendDatagram(l, p, f, at, n, segment)
		if unsegmentable(errno) {
			errno = sendOneByOne(l, p, f, at, n, segment)
		}
		if errno != 0 {
			return errno
		}
	}
	return 0
}

// unsegmentable reports whether an errno may say that the way out cannot split
// superframes.
func unsegmentable(errno syscall.Errno) bool {
	return errno == unix.EINVAL || errno == unix.EIO || errno == unix.EOPNOTSUPP
}

func sendOneByOne(l *Link, p *natPeer, f *frame, at, n, segment int) syscall.Errno {
	for end := at + n; at < end; at += segment {
		if errno := sendDatagram(l, p, f, at, min(segment, end-at), 0); errno != 0 {
			return errno
		}
	}
	return 0
}

// sendDatagram sends once, and again when the call only reported what an
// earlier packet met: the kernel gives such an error to whoever calls next,
// and does not send.
func sendDatagram(l *Link, p *natPeer, f *frame, at, n, segment int) syscall.Errno {
	errno := l.nat.sender.send(p, f, at, n, segment)
	for tries := 0; tries < 3 && isReport(errno); tries++ {
		p.sock.drainErrors()
		errno = l.nat.sender.send(p, f, at, n, segment)
	}
	return errno
}

// isReport reports whether an errno may be an ICMP error about an earlier
// packet.
func isReport(errno syscall.Errno) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN,
		unix.ENOPROTOOPT, unix.EPROTO, unix.EOPNOTSUPP, unix.EACCES, unix.ENONET:
		return true
	}
	return false
}

// sendFailed counts a packet that the host's kernel did not take, and tells the
// container why.
func (u *udpNAT) sendFailed(l *Link, p *natPeer, f *frame, errno syscall.Errno) {
	if errno == unix.EMSGSIZE {
		l.drop(DropTooBig)
		p.sock.drainErrors() // the kernel has queued a report of its own
		if mtu := u.s.pathMTU(p.host); mtu > 0 && mtu < f.segmentSize() {
			l.rejectTooBig(f, mtu)
		}
		return
	}
	l.drop(DropHostSend)
	switch errno {
	case unix.ENETUNREACH, unix.EADDRNOTAVAIL:
		l.reject(f, packet.ErrNetUnreachable)
	case unix.EHOSTUNREACH, unix.EHOSTDOWN:
		l.reject(f, packet.ErrHostUnreachable)
	case unix.EACCES, unix.EPERM:
		l.reject(f, packet.ErrAdminProhibited)
	case unix.ECONNREFUSED:
		l.reject(f, packet.ErrPortUnreachable)
	}
}

// deliver takes what came to a container's socket. It runs on the link's worker.
func (u *udpNAT) deliver(s *natSocket, in *natInput) {
	p, known := s.table.byHost(s, in.from)
	if p == nil && known {
		p = u.openFromHost(s, in.from)
	}
	if p == nil {
		s.link.drop(DropUnsolicited)
		return
	}
	p.noteReply()
	p.active.Store(u.clock.seconds.Load())
	u.toContainer(s.link, p, in)
}

// openFromHost makes the flow of a peer that answers from another port than it
// was asked at, as TFTP servers do.
func (u *udpNAT) openFromHost(s *natSocket, from netip.AddrPort) *natPeer {
	fl := u.s.openFlow(flowSpec{
		link: s.link, direction: FlowEgress, proto: packet.ProtoUDP,
		source: s.key.container, destination: from,
	})
	if fl == nil {
		return nil
	}
	p := &natPeer{sock: s, key: natKey{s.key.container, from}, host: from, flow: fl}
	if !u.clock.register(s.link, p) {
		return nil
	}
	return p
}

// toContainer sends one batch of datagrams of a flow to its container.
func (u *udpNAT) toContainer(l *Link, p *natPeer, in *natInput) {
	src, dst := p.key.far, p.key.container
	headers := ipUDPHeaderLen(dst.Addr().Is4())
	segment := len(in.data)
	if in.segment > 0 {
		segment = min(segment, in.segment)
	}
	hops := max(in.hops, 2) - 1
	if headers+segment > l.mtu {
		u.sendFragmented(l, p, in, segment, hops)
		return
	}
	hdr := tunnel.Header{Flags: tunnel.FlagNeedsCsum, CsumStart: uint16(headers - 8), CsumOffset: 6}
	if len(in.data) > segment {
		hdr.GSOType, hdr.GSOSize, hdr.HdrLen = tunnel.GSOUDPL4, uint16(segment), uint16(headers)
	}
	if headers+len(in.data) > tunnel.MaxPacket { // a batch may be a little longer than a packet
		u.sendFragmented(l, p, in, segment, hops)
		return
	}
	b := in.head[:tunnel.HeaderLen]
	hdr.Encode(b)
	b = packet.AppendIP(b, packet.ProtoUDP, src.Addr(), dst.Addr(), hops, in.tos, 8+len(in.data), 0, true)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(in.data)))
	// Only the pseudo-header's sum: the container's kernel does the rest, or
	// knows that it need not.
	b = binary.BigEndian.AppendUint16(b, packet.PseudoHeaderSum(packet.ProtoUDP, src.Addr(), dst.Addr(), 8+len(in.data)))
	in.bufs[0], in.bufs[1] = b, in.data
	p.flow.add(toContainer, 1, len(b)-tunnel.HeaderLen+len(in.data))
	l.send(in.bufs[:])
}

// sendFragmented sends datagrams one by one, in fragments where they are larger
// than the link's MTU.
func (u *udpNAT) sendFragmented(l *Link, p *natPeer, in *natInput, segment int, hops uint8) {
	src, dst := p.key.far, p.key.container
	for data := in.data; len(data) > 0; data = data[min(segment, len(data)):] {
		one := data[:min(segment, len(data))]
		id := u.ids.Add(1)
		pkt := make([]byte, 0, ipUDPHeaderLen(dst.Addr().Is4())+len(one))
		pkt = packet.AppendIP(pkt, packet.ProtoUDP, src.Addr(), dst.Addr(), hops, in.tos, 8+len(one), uint16(id), false)
		pkt = packet.AppendUDPHeader(pkt, src, dst, [][]byte{one})
		pkt = append(pkt, one...)
		p.flow.add(toContainer, 1, len(pkt))
		l.sendFragments(pkt, id)
	}
}

// sendFragments writes a packet to the container, in fragments if it is larger
// than the link's MTU.
func (l *Link) sendFragments(pkt []byte, id uint32) {
	err := packet.Fragments(pkt, l.mtu, id, func(frag []byte) error {
		l.sendPacket(frag)
		return nil
	})
	if err != nil {
		l.drop(DropTooBig)
	}
}

// linkGone ends the link's flows and waits for what its sockets have begun.
func (u *udpNAT) linkGone(l *Link) {
	l.nat.udp.endAll("link detached")
	l.nat.published.endAll("link detached") // the publications are closed by now
	l.worker.settle()
	l.nat.fragments.drop()
}

// endAll ends every flow and socket of a table, for good.
func (t *natTable) endAll(cause string) {
	over, idle := t.clear(nil)
	for _, p := range over {
		p.end(cause)
	}
	for _, s := range idle {
		s.closeIfUnused()
	}
}

// close stops the janitor. Links are detached by then.
func (u *udpNAT) close() {
	u.cancel()
	u.clock.stop()
}
