package netstack

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
)

// linkNAT is what a link holds for UDP, ICMP echo and DNS. The zero value is
// ready.
type linkNAT struct {
	udp, ping natTable
	published natTable // apart, so that clients from outside take no place of the container's own
	dns       dnsQueries
	fragments fragments
	sender    natSender // the link's reader's own
	last      lastFlow  // likewise
}

// lastFlow is the flow that was found last, as long as no flow of the link has
// come or gone since.
type lastFlow struct {
	key      natKey
	peer     *natPeer
	versions [2]uint64
}

// find returns the flow of a UDP packet from the container, or nil. A client of a
// publication is answered by it. It runs on the link's reader.
func (n *linkNAT) find(k natKey) *natPeer {
	versions := [2]uint64{n.published.version.Load(), n.udp.version.Load()}
	if n.last.peer != nil && n.last.key == k && n.last.versions == versions {
		return n.last.peer
	}
	p := n.published.find(k)
	if p == nil {
		p = n.udp.find(k)
	}
	n.last = lastFlow{k, p, versions}
	return p
}

// natKey is a flow as the container sees it. For ICMP echo both ports are the
// identifier.
type natKey struct{ container, far netip.AddrPort }

// socketKey finds the host socket of a container's port: one per port and
// family of the far side, whatever the destination (RFC 4787 REQ-1).
type socketKey struct {
	container netip.AddrPort
	host4     bool
}

// natPeer is one flow of a natTable: a container's port and one far end.
type natPeer struct {
	sock *natSocket
	key  natKey
	host netip.AddrPort // the far end as the host's kernel sees it
	name sockName       // the same, for sendmsg(2)
	flow *flow

	// local is the host address that a publication's client uses, the source
	// of what it is sent; invalid: the kernel's choice.
	local netip.Addr

	active  atomic.Int64 // natTable clock, seconds, at the last packet
	replied atomic.Bool  // packets have gone both ways

	// The rules and host addresses under which policy let the flow be. Only
	// the link's reader looks. Nil rules: the flow came in by a publication
	// and is judged once.
	rules *policy.Table
	hosts *policy.HostAddrs

	// single says that datagrams cannot go out several at once. The link's
	// reader's own.
	single bool

	// Guarded by natTable.mu.
	slot        int // of the wheel
	wheelPrev   *natPeer
	wheelNext   *natPeer
	older       *natPeer // of the unreplied ones
	newer       *natPeer
	inTable     bool
	isUnreplied bool
}

// The life of a flow after its last packet. RFC 4787 REQ-5 asks for at least
// two minutes; what was never answered is not worth a socket for as long, and a
// resolver answers within seconds or not at all.
const (
	natUnreplied = 30 // seconds
	natReplied   = 180
	natDNS       = 10
	natPing      = 30
)

func (p *natPeer) lifetime() int64 {
	switch {
	case p.sock.ping:
		return natPing
	case p.key.far.Port() == dnsPort:
		return natDNS
	case p.replied.Load():
		return natReplied
	}
	return natUnreplied
}

// wheelSlots is more than the longest lifetime in seconds, so that a slot holds
// one deadline only.
const wheelSlots = 256

// natTable holds the flows of one link and protocol. Packets take its lock for
// reading only.
type natTable struct {
	version atomic.Uint64 // changes with peers

	mu      sync.RWMutex // guards what follows
	peers   map[natKey]*natPeer
	sockets map[socketKey]*natSocket
	wheel   []*natPeer // wheelSlots of them, by the second of the next look; nil: none yet
	swept   int64      // the second that was swept last
	oldest  *natPeer   // unreplied, by age
	newest  *natPeer
	gone    bool
}

// find returns the flow of a packet from the container.
func (t *natTable) find(k natKey) *natPeer {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.peers[k]
}

func (t *natTable) socket(k socketKey) *natSocket {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.sockets[k]
}

// byHost returns the flow of a packet that came to a socket, and whether the
// socket has any flow with that address: packets from another port of a peer
// that was contacted are let in (RFC 4787 REQ-8, address-dependent filtering).
func (t *natTable) byHost(s *natSocket, host netip.AddrPort) (p *natPeer, known bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if p = s.peers[host]; p != nil {
		return p, true
	}
	return nil, s.addrs[host.Addr()] > 0
}

// size is the number of flows.
func (t *natTable) size() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.peers)
}

// addSocket registers a socket and begins to read it. It is closed if that
// fails.
func (t *natTable) addSocket(k socketKey, s *natSocket) error {
	err := s.begin(unix.EPOLLIN)
	if err == nil && !t.holdSocket(k, s) {
		err = ErrClosed
	}
	if err != nil {
		s.close()
	}
	return err
}

// holdSocket reports false when the link is gone.
func (t *natTable) holdSocket(k socketKey, s *natSocket) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return false
	}
	if t.sockets == nil {
		t.sockets = map[socketKey]*natSocket{}
	}
	t.sockets[k] = s
	return true
}

// add registers a flow. At the limit it makes room by taking out the flow that
// has waited longest for its first reply; evicted is that flow, for the caller
// to end. False when there is no room, the socket is closed or the link gone.
func (t *natTable) add(p *natPeer, limit int, now int64) (evicted *natPeer, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone || p.sock.closed || t.peers[p.key] != nil || p.sock.peers[p.host] != nil {
		return nil, false
	}
	if len(t.peers) >= limit {
		if evicted = t.oldest; evicted == nil {
			return nil, false
		}
	}
	if t.peers == nil {
		t.peers = map[natKey]*natPeer{}
	}
	t.peers[p.key] = p
	t.version.Add(1)
	p.sock.peers[p.host] = p
	p.sock.addrs[p.host.Addr()]++
	p.active.Store(now)
	p.inTable = true
	t.wheelInsertLocked(p, now+p.lifetime())
	p.isUnreplied = true
	p.older = t.newest
	if t.newest != nil {
		t.newest.newer = p
	} else {
		t.oldest = p
	}
	t.newest = p
	if evicted != nil { // only now, so that a socket they share stays in use
		t.removeLocked(evicted)
	}
	return evicted, true
}

// evictOldest takes out the flow that has waited longest for its first reply.
func (t *natTable) evictOldest() *natPeer {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.oldest
	if p != nil {
		t.removeLocked(p)
	}
	return p
}

// remove takes one flow out; false when somebody else did.
func (t *natTable) remove(p *natPeer) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := p.inTable
	t.removeLocked(p)
	return was
}

// discard takes out a socket that no flow came to use.
func (t *natTable) discard(s *natSocket) {
	t.mu.Lock()
	t.closeUnusedLocked(s)
	t.mu.Unlock()
	s.closeIfUnused()
}

// noteReply remembers that the far end, or the container of a publication, has
// answered: the flow lives longer and makes no room for others.
func (p *natPeer) noteReply() {
	if p.replied.Load() || p.replied.Swap(true) {
		return
	}
	t := p.sock.table
	t.mu.Lock()
	defer t.mu.Unlock()
	t.answeredLocked(p)
}

func (t *natTable) answeredLocked(p *natPeer) {
	if !p.isUnreplied {
		return
	}
	p.isUnreplied = false
	if p.older != nil {
		p.older.newer = p.newer
	} else {
		t.oldest = p.newer
	}
	if p.newer != nil {
		p.newer.older = p.older
	} else {
		t.newest = p.older
	}
	p.older, p.newer = nil, nil
}

// removeLocked takes a flow out. A socket that only it used, and that is no
// publication's, is marked closed and left to the caller to close, see end.
func (t *natTable) removeLocked(p *natPeer) {
	if !p.inTable {
		return
	}
	p.inTable = false
	t.answeredLocked(p)
	t.wheelRemoveLocked(p)
	delete(t.peers, p.key)
	t.version.Add(1)
	s := p.sock
	delete(s.peers, p.host)
	if s.addrs[p.host.Addr()]--; s.addrs[p.host.Addr()] == 0 {
		delete(s.addrs, p.host.Addr())
	}
	t.closeUnusedLocked(s)
}

func (t *natTable) closeUnusedLocked(s *natSocket) {
	if len(s.peers) > 0 || s.pub != nil {
		return
	}
	s.closed = true
	if t.sockets[s.key] == s {
		delete(t.sockets, s.key)
	}
}

// end finishes a flow that was taken out of its table, and its socket if
// nothing uses it any more. Not under a lock: it closes and reports.
func (p *natPeer) end(cause string) {
	p.flow.close(cause)
	p.sock.closeIfUnused()
}

func (t *natTable) wheelInsertLocked(p *natPeer, at int64) {
	if t.wheel == nil {
		t.wheel = make([]*natPeer, wheelSlots)
	}
	p.slot = int(at % wheelSlots)
	p.wheelPrev, p.wheelNext = nil, t.wheel[p.slot]
	if p.wheelNext != nil {
		p.wheelNext.wheelPrev = p
	}
	t.wheel[p.slot] = p
}

func (t *natTable) wheelRemoveLocked(p *natPeer) {
	if p.wheelPrev != nil {
		p.wheelPrev.wheelNext = p.wheelNext
	} else {
		t.wheel[p.slot] = p.wheelNext
	}
	if p.wheelNext != nil {
		p.wheelNext.wheelPrev = p.wheelPrev
	}
	p.wheelPrev, p.wheelNext = nil, nil
}

// sweep takes out the flows whose time is over by the second now. A flow that
// was active since it was put on the wheel only moves on: packets themselves
// never touch the wheel.
func (t *natTable) sweep(now int64) (over []*natPeer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wheel == nil {
		return nil
	}
	if t.swept == 0 || now-t.swept > wheelSlots {
		t.swept = now - wheelSlots
	}
	for ; t.swept < now; t.swept++ { // at most once around
		p := t.wheel[(t.swept+1)%wheelSlots]
		for p != nil {
			next := p.wheelNext
			if at := p.active.Load() + p.lifetime(); at > now {
				t.wheelRemoveLocked(p)
				t.wheelInsertLocked(p, at)
			} else {
				t.removeLocked(p)
				over = append(over, p)
			}
			p = next
		}
	}
	return over
}

// clear takes everything out of the flows that match; nil matches all and lets
// nothing in any more.
func (t *natTable) clear(match func(*natPeer) bool) (over []*natPeer, idle []*natSocket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.peers {
		if match == nil || match(p) {
			over = append(over, p)
		}
	}
	for _, p := range over {
		t.removeLocked(p)
	}
	if match == nil {
		t.gone = true
		for _, s := range t.sockets { // made, and not yet used
			s.closed = true
			idle = append(idle, s)
		}
		clear(t.sockets)
	}
	return over, idle
}

// natLimit is the number of flows that a protocol's table may hold.
func (l *Link) natLimit(ping bool) int {
	if ping {
		return l.limits.PingFlows
	}
	return l.limits.UDPFlows
}

// ipUDPHeaderLen is the length of the headers of a plain UDP packet.
func ipUDPHeaderLen(v4 bool) int {
	if v4 {
		return 28
	}
	return 48
}

// defaultHopLimit is what packets leave with that carry no one else's (RFC 1700).
const defaultHopLimit = 64

// echoProto is the ICMP of a family.
func echoProto(v4 bool) uint8 {
	if v4 {
		return packet.ProtoICMP
	}
	return packet.ProtoICMPv6
}
