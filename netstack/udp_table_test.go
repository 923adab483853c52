package netstack

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"
)

func openFiles(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// socketList is a table's sockets of containers' ports.
func (t *natTable) socketList() (all []*natSocket) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, s := range t.sockets {
		all = append(all, s)
	}
	return all
}

// tablePeer is a flow of a table under test, on a socket that is never used.
func tablePeer(sock *natSocket, port, far uint16) *natPeer {
	c := ap(netip.MustParseAddr("10.88.0.2"), port)
	f := ap(netip.MustParseAddr("192.0.2.1"), far)
	return &natPeer{sock: sock, key: natKey{c, f}, host: f}
}

func tableSocket(t *natTable) *natSocket {
	return &natSocket{table: t, peers: map[netip.AddrPort]*natPeer{}, addrs: map[netip.Addr]int{}}
}

func TestNATLifetimes(t *testing.T) {
	const start = 1000
	tests := []struct {
		name string
		far  uint16
		ping bool
		// when the flow is active and answered, in seconds after its start
		active  []int64
		replied bool
		ends    int64
	}{
		{name: "unreplied", far: 99, ends: natUnreplied},
		{name: "unreplied, active", far: 99, active: []int64{5, 20, 45}, ends: 45 + natUnreplied},
		{name: "replied", far: 99, replied: true, ends: natReplied},
		{name: "replied, active", far: 99, replied: true, active: []int64{170, 340}, ends: 340 + natReplied},
		{name: "DNS", far: dnsPort, replied: true, active: []int64{1}, ends: 1 + natDNS},
		{name: "ping", ping: true, replied: true, active: []int64{29}, ends: 29 + natPing},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var table natTable
			sock := tableSocket(&table)
			sock.ping = tt.ping
			p := tablePeer(sock, 1, tt.far)
			if _, ok := table.add(p, 10, start); !ok {
				t.Fatal("not added")
			}
			p.replied.Store(tt.replied)
			active := tt.active
			for at := int64(1); at <= tt.ends+5; at++ {
				if len(active) > 0 && active[0] == at {
					p.active.Store(start + at)
					active = active[1:]
				}
				over := table.sweep(start + at)
				if (len(over) == 1) != (at == tt.ends) {
					t.Fatalf("%d flows ended after %d s, want one after %d s", len(over), at, tt.ends)
				}
			}
			if table.size() != 0 || len(sock.peers)+len(sock.addrs) != 0 || !sock.closed {
				t.Errorf("left: %d flows, %d peers, socket closed %v", table.size(), len(sock.peers), sock.closed)
			}
		})
	}
}

// tableModel is the obvious form of a natTable: a set of flows, looked through
// whole.
type tableModel struct {
	t     *testing.T
	rng   *rand.Rand
	table natTable
	sock  *natSocket
	flows map[*natPeer]bool
	order []*natPeer // by age, ended ones included
	now   int64
}

const modelLimit = 200

func (m *tableModel) forget(p *natPeer) {
	if !m.flows[p] {
		m.t.Fatalf("flow %v ended twice", p.key)
	}
	delete(m.flows, p)
}

func (m *tableModel) oldestUnreplied() *natPeer {
	for _, p := range m.order {
		if m.flows[p] && !p.replied.Load() {
			return p
		}
	}
	return nil
}

// any is one of the flows, or nil.
func (m *tableModel) any() *natPeer {
	for p := range m.flows {
		return p
	}
	return nil
}

func (m *tableModel) add() {
	p := tablePeer(m.sock, uint16(m.rng.IntN(1000)), uint16(50+m.rng.IntN(5)))
	p.host = ap(p.host.Addr(), uint16(m.rng.IntN(65536)))
	oldest := m.oldestUnreplied()
	full := len(m.flows) == modelLimit
	free := m.table.find(p.key) == nil && m.sock.peers[p.host] == nil
	evicted, ok := m.table.add(p, modelLimit, m.now)
	if want := free && (!full || oldest != nil); ok != want {
		m.t.Fatalf("added %v, want %v", ok, want)
	}
	if !ok {
		return
	}
	if full {
		if evicted != oldest {
			m.t.Fatal("not the oldest unreplied flow was evicted")
		}
		m.forget(evicted)
	}
	m.flows[p] = true
	m.order = append(m.order, p)
}

func (m *tableModel) sweep() {
	m.now += m.rng.Int64N(3)
	if m.rng.IntN(20) == 0 {
		m.now += m.rng.Int64N(300)
	}
	for _, p := range m.table.sweep(m.now) {
		if left := p.active.Load() + p.lifetime() - m.now; left > 0 {
			m.t.Fatalf("flow %v ended %d s early", p.key, left)
		}
		m.forget(p)
	}
	for p := range m.flows {
		if left := p.active.Load() + p.lifetime() - m.now; left <= 0 {
			m.t.Fatalf("flow %v lives %d s too long", p.key, -left)
		}
	}
}

// The wheel and the list of unreplied flows against the obvious.
func TestNATTableAgainstModel(t *testing.T) {
	m := &tableModel{t: t, rng: rand.New(rand.NewPCG(1, 2)), flows: map[*natPeer]bool{}, now: wheelSlots}
	m.sock = tableSocket(&m.table)
	m.sock.pub = new(Publication) // stays open without flows
	for range 50_000 {
		p := m.any()
		switch op := m.rng.IntN(8); {
		case op < 4:
			m.add()
		case op == 4:
			m.sweep()
		case p == nil:
		case op == 5:
			if !m.table.remove(p) || m.table.remove(p) {
				t.Fatal("a flow is removed once")
			}
			m.forget(p)
		default:
			p.active.Store(m.now)
			if m.rng.IntN(3) == 0 {
				p.noteReply()
			}
		}
		if m.table.size() != len(m.flows) || len(m.sock.peers) != len(m.flows) {
			t.Fatalf("%d flows and %d peers, want %d", m.table.size(), len(m.sock.peers), len(m.flows))
		}
	}
}

func TestNATTableAfterTheLinkIsGone(t *testing.T) {
	var table natTable
	sock := tableSocket(&table)
	if _, ok := table.add(tablePeer(sock, 1, 1), 10, wheelSlots); !ok {
		t.Fatal("not added")
	}
	over, _ := table.clear(nil)
	if len(over) != 1 || table.size() != 0 {
		t.Fatalf("%d flows taken out, %d left", len(over), table.size())
	}
	if _, ok := table.add(tablePeer(tableSocket(&table), 1, 1), 10, wheelSlots); ok || table.holdSocket(socketKey{}, sock) {
		t.Error("a link that is gone takes flows or sockets")
	}
}

// The janitor runs while there is something to sweep and not longer.
func TestNATClockRests(t *testing.T) {
	h := newHarness(t, nil)
	a := h.attach("a", 2, nil)
	c := &h.s.udp.clock
	running := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.timer != nil
	}
	if running() {
		t.Fatal("runs without a flow")
	}
	sock := tableSocket(&a.link.nat.udp)
	sock.link, sock.pub = a.link, new(Publication)
	p := tablePeer(sock, 1, dnsPort)
	p.flow = h.s.flows.open(flowSpec{link: a.link})
	if !c.register(a.link, p) || !running() {
		t.Fatal("does not run with a flow")
	}
	p.active.Store(-natDNS) // over long ago
	c.mu.Lock()
	c.start = c.start.Add(-wheelSlots * time.Second)
	c.mu.Unlock()
	eventually(t, func() bool { return a.link.nat.udp.size() == 0 && !running() })
}
