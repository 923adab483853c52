package netstack

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/usernet/usernet/internal/packet"
)

// FlowDirection says who began a flow and where it leads.
type FlowDirection string

// The directions of flows.
const (
	FlowEgress  FlowDirection = "egress"  // container to the outside
	FlowIngress FlowDirection = "ingress" // host client to a publication
	FlowPeer    FlowDirection = "peer"    // link to link
	FlowService FlowDirection = "service" // container to the gateway: DNS, host services
	FlowHost    FlowDirection = "host"    // the host itself to a container, by a host link
)

// FlowVerdict says what became of a flow.
type FlowVerdict string

// The verdicts of flows.
const (
	FlowForwarded FlowVerdict = "FORWARDED"
	FlowDropped   FlowVerdict = "DROPPED" // refused by policy
	FlowError     FlowVerdict = "ERROR"   // allowed, and the far side did not take it
)

// Traffic counts packets and their IP bytes. A superframe counts as one packet.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Flow is a snapshot of one conversation.
type Flow struct {
	ID          uint64         `json:"id"`
	Network     string         `json:"network"`
	Link        string         `json:"link"`                  // the container's link; for peer flows, the origin's
	Peer        string         `json:"peer,omitempty"`        // the target's link of a peer flow
	PeerNetwork string         `json:"peerNetwork,omitempty"` // that link's network, if it is another one
	Direction   FlowDirection  `json:"direction"`
	Proto       string         `json:"proto"` // "tcp", "udp", "icmp" or the IP protocol's number
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	// Target is where the flow really leads when that differs from
	// Destination: a host service, or the container's port of a publication.
	Target        *netip.AddrPort `json:"target,omitempty"`
	Verdict       FlowVerdict     `json:"verdict"`
	Reason        string          `json:"reason,omitempty"` // of a drop or error, or how the flow ended
	Start         time.Time       `json:"start"`
	End           *time.Time      `json:"end,omitempty"` // nil while the flow lives
	FromContainer Traffic         `json:"fromContainer"` // for peer flows: origin to target
	ToContainer   Traffic         `json:"toContainer"`   // for peer flows: target to origin
}

// direction is a packet's direction in one frame of reference.
type direction uint8

const (
	fromContainer direction = iota
	toContainer
)

// flowSpec is what is known when a flow opens.
type flowSpec struct {
	link        *Link
	peer        *Link
	direction   FlowDirection
	proto       uint8
	source      netip.AddrPort
	destination netip.AddrPort
	target      netip.AddrPort // invalid: destination
	pin         *hairpin       // what translates the flow; nil: nothing
}

// flow is a live flow. Its counters are atomic, so that both directions count
// without a lock.
type flow struct {
	table   *flowTable
	id      uint64
	spec    flowSpec
	start   time.Time
	packets [2]atomic.Uint64
	bytes   [2]atomic.Uint64

	// of peer flows: which sides have sent FIN (bits 0 and 1) and whether
	// either has reset (bit 2). Only the sweeper acts on it.
	ending atomic.Uint32
	swept  uint64 // packets at the last sweep; the sweeper's own
	idle   time.Duration
}

const (
	endingFINs  = 3
	endingReset = 4
)

// add counts packets of one direction.
func (f *flow) add(d direction, packets, bytes int) {
	f.packets[d].Add(uint64(packets))
	f.bytes[d].Add(uint64(bytes))
}

// close ends the flow; cause says how, empty for the ordinary end.
// Only the first call counts.
func (f *flow) close(cause string) { f.table.end(f, FlowForwarded, cause) }

// fail ends a flow whose far side did not take it.
func (f *flow) fail(cause string) { f.table.end(f, FlowError, cause) }

func (f *flow) snapshot() Flow {
	s := f.spec
	out := Flow{
		ID: f.id, Network: f.table.network, Link: s.link.name, Direction: s.direction,
		Proto: protoName(s.proto), Source: s.source, Destination: s.destination,
		Verdict: FlowForwarded, Start: f.start,
		FromContainer: Traffic{f.packets[fromContainer].Load(), f.bytes[fromContainer].Load()},
		ToContainer:   Traffic{f.packets[toContainer].Load(), f.bytes[toContainer].Load()},
	}
	switch {
	case s.direction == FlowHost: // the origin is no container
		out.Link, out.FromContainer, out.ToContainer = s.peer.name, out.ToContainer, out.FromContainer
	case s.peer != nil:
		out.Peer = s.peer.name
		if s.peer.s != s.link.s {
			out.PeerNetwork = s.peer.s.cfg.Name
		}
	}
	if s.target.IsValid() && s.target != s.destination {
		out.Target = &s.target
	}
	return out
}

func protoName(p uint8) string {
	switch p {
	case packet.ProtoTCP:
		return "tcp"
	case packet.ProtoUDP:
		return "udp"
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return "icmp"
	}
	return itoa(p)
}

// peerKey finds the flow of a forwarded packet.
type peerKey struct {
	proto    uint8
	src, dst netip.AddrPort
}

// flowTable holds the live flows of a switch and the last ended ones.
type flowTable struct {
	network string
	onFlow  func(Flow)
	nextID  atomic.Uint64

	// hostFlows counts those of peers that hosts have opened: without any, no
	// packet needs to be looked up.
	hostFlows atomic.Int64

	mu    sync.RWMutex // guards what follows
	live  map[*flow]struct{}
	peers map[peerKey]*flow
	ended []Flow // ring of the last ended flows
	next  int    // where the ring goes on
	timer *time.Timer
	done  bool
}

// endedFlows is how many ended flows are kept for listings. At about 300
// bytes each, a busy network holds 1.2 MB of history.
const endedFlows = 4096

func newFlowTable(network string, onFlow func(Flow)) *flowTable {
	return &flowTable{
		network: network, onFlow: onFlow,
		live: map[*flow]struct{}{}, peers: map[peerKey]*flow{},
	}
}

func (t *flowTable) open(spec flowSpec) *flow {
	f := &flow{table: t, id: t.nextID.Add(1), spec: spec, start: time.Now()}
	t.mu.Lock()
	t.live[f] = struct{}{}
	t.mu.Unlock()
	return f
}

// refused records a flow that policy did not let be.
func (t *flowTable) refused(spec flowSpec, reason string) {
	f := &flow{table: t, id: t.nextID.Add(1), spec: spec, start: time.Now()}
	t.record(f, FlowDropped, reason)
}

func (t *flowTable) end(f *flow, v FlowVerdict, cause string) {
	t.mu.Lock()
	_, was := t.live[f]
	delete(t.live, f)
	t.mu.Unlock()
	if was {
		t.record(f, v, cause)
	}
}

func (t *flowTable) record(f *flow, v FlowVerdict, reason string) {
	out, now := f.snapshot(), time.Now()
	out.Verdict, out.Reason, out.End = v, reason, &now
	t.mu.Lock()
	if len(t.ended) < endedFlows {
		t.ended = append(t.ended, out)
	} else {
		t.ended[t.next] = out
		t.next = (t.next + 1) % endedFlows
	}
	t.mu.Unlock()
	if t.onFlow != nil {
		t.onFlow(out)
	}
}

// list returns the live flows and the last ended ones, oldest first.
func (t *flowTable) list() []Flow {
	t.mu.RLock()
	all := make([]Flow, 0, len(t.live)+len(t.ended))
	all = append(all, t.ended...)
	for f := range t.live {
		all = append(all, f.snapshot())
	}
	t.mu.RUnlock()
	slices.SortFunc(all, func(a, b Flow) int { return int(int64(a.ID) - int64(b.ID)) })
	return all
}

func (t *flowTable) liveCount() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.live)
}

// lookupPeer finds the flow of a packet between links, and its direction in
// the flow: fromContainer is origin to target.
func (t *flowTable) lookupPeer(k peerKey) (*flow, direction) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if f := t.peers[k]; f != nil {
		return f, fromContainer
	}
	return t.peers[peerKey{k.proto, k.dst, k.src}], toContainer
}

// openPeer records a new flow between links.
func (t *flowTable) openPeer(k peerKey, spec flowSpec) *flow {
	f := t.open(spec)
	t.mu.Lock()
	t.addPeerLocked(k, f)
	t.mu.Unlock()
	return f
}

func (t *flowTable) addPeerLocked(k peerKey, f *flow) {
	t.peers[k] = f
	if t.timer == nil && !t.done {
		t.timer = time.AfterFunc(sweepInterval, t.sweep)
	}
}

// Peer flows have no socket whose end could be seen, so a sweeper ends them:
// it runs only while there are any, and reads idleness off the packet
// counters, so that packets need no clock.
const (
	sweepInterval   = 5 * time.Second
	peerIdleUnclear = 30 * time.Second  // unreplied, and everything but TCP and UDP
	peerIdleUDP     = 180 * time.Second // RFC 4787 REQ-5 asks for two minutes
	peerIdleTCP     = 124 * time.Minute // RFC 5382 REQ-5: longer than keepalive's two hours
)

// sweep ends the peer flows that are over. The timer runs it; stop ends it.
func (t *flowTable) sweep() {
	t.mu.Lock()
	var over []*flow
	for k, f := range t.peers {
		if f.sweepOne() {
			delete(t.peers, k)
			over = append(over, f)
		}
	}
	t.timer = nil
	if len(t.peers) > 0 && !t.done {
		t.timer = time.AfterFunc(sweepInterval, t.sweep)
	}
	t.mu.Unlock()
	for _, f := range over {
		f.peerOver(f.endCause())
	}
}

// sweepOne reports whether a peer flow is over.
func (f *flow) sweepOne() bool {
	sent, replied := f.packets[fromContainer].Load(), f.packets[toContainer].Load()
	if sent+replied != f.swept {
		f.swept, f.idle = sent+replied, 0
		return false
	}
	f.idle += sweepInterval
	ending := f.ending.Load()
	if ending&endingReset != 0 || ending&endingFINs == endingFINs {
		return true
	}
	switch {
	case replied == 0:
		return f.idle >= peerIdleUnclear
	case f.spec.proto == packet.ProtoTCP:
		return f.idle >= peerIdleTCP
	case f.spec.proto == packet.ProtoUDP:
		return f.idle >= peerIdleUDP
	}
	return f.idle >= peerIdleUnclear
}

func (f *flow) endCause() string {
	switch ending := f.ending.Load(); {
	case ending&endingReset != 0:
		return "reset"
	case ending&endingFINs == endingFINs:
		return ""
	}
	return "idle"
}

// dropPeers ends the peer flows for which cause names one.
func (t *flowTable) dropPeers(cause func(*flow) string) {
	t.mu.Lock()
	over := map[*flow]string{}
	for k, f := range t.peers {
		if c := cause(f); c != "" {
			delete(t.peers, k)
			over[f] = c
		}
	}
	t.mu.Unlock()
	for f, c := range over {
		f.peerOver(c)
	}
}

// stop ends the sweeper.
func (t *flowTable) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = true
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
}
