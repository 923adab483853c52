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

// The wheel and the list of unreplied flows against the obvious: a map of
// deadlines, looked through whole.
func TestNATTableAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var table natTable
	sock := tableSocket(&table)
	sock.pub = new(Publication) // stays open without flows
	model := map[*natPeer]bool{}
	var order []*natPeer // by age
	const limit = 200
	now := int64(wheelSlots)
	forget := func(p *natPeer) {
		if !model[p] {
			t.Fatalf("flow %v ended twice", p.key)
		}
		delete(model, p)
	}
	for range 50_000 {
		switch rng.IntN(10) {
		case 0, 1, 2, 3:
			p := tablePeer(sock, uint16(rng.IntN(1000)), uint16(50+rng.IntN(5)))
			p.host = ap(p.host.Addr(), uint16(rng.IntN(65536)))
			var oldest *natPeer
			for _, o := range order {
				if model[o] && !o.replied.Load() {
					oldest = o
					break
				}
			}
			room := len(model) < limit || oldest != nil
			free := table.find(p.key) == nil && sock.peers[p.host] == nil
			evicted, ok := table.add(p, limit, now)
			if ok != (room && free) {
				t.Fatalf("added %v with room %v and key free %v", ok, room, free)
			}
			if ok && len(model) == limit {
				if evicted != oldest {
					t.Fatal("not the oldest unreplied flow was evicted")
				}
				forget(evicted)
			}
			if ok {
				model[p] = true
				order = append(order, p)
			}
		case 4, 5:
			for p := range model {
				p.active.Store(now)
				if rng.IntN(3) == 0 {
					p.noteReply()
				}
				break
			}
		case 6:
			for p := range model {
				if !table.remove(p) || table.remove(p) {
					t.Fatal("a flow is removed once")
				}
				forget(p)
				break
			}
		case 7:
			if rng.IntN(20) == 0 {
				now += rng.Int64N(300)
			} else {
				now += rng.Int64N(3)
			}
			for _, p := range table.sweep(now) {
				if p.active.Load()+p.lifetime() > now {
					t.Fatalf("flow %v ended %d s early", p.key, p.active.Load()+p.lifetime()-now)
				}
				forget(p)
			}
			for p := range model {
				if p.active.Load()+p.lifetime() <= now {
					t.Fatalf("flow %v lives %d s too long", p.key, now-p.active.Load()-p.lifetime())
				}
			}
		}
		if table.size() != len(model) || len(sock.peers) != len(model) {
			t.Fatalf("%d flows and %d peers, want %d", table.size(), len(sock.peers), len(model))
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
	if _, ok := table.add(tablePeer(tableSocket(&table), 1, 1), 10, wheelSlots); ok || table.addSocket(socketKey{}, sock) {
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
