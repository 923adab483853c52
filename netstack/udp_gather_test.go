package netstack

import (
	"bytes"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

// gatherWorld is a link whose reader has more to read, and a service of the host
// that the link's datagrams lead to.
type gatherWorld struct {
	tb     testing.TB
	l      *Link
	target netip.AddrPort // as the container addresses it
	server *net.UDPConn
	frame  frame
}

func newGatherWorld(tb testing.TB, change func(*LinkConfig)) *gatherWorld {
	tb.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { pc.Close() })
	w := &gatherWorld{tb: tb, server: pc.(*net.UDPConn)}
	service := w.server.LocalAddr().(*net.UDPAddr).AddrPort()
	s := sinkSwitch(tb, Config{
		Gateways:     []netip.Prefix{netip.MustParsePrefix("10.88.0.1/24"), netip.MustParsePrefix("fd88::1/64")},
		HostServices: []HostService{{Name: "target", Target: service}},
	})
	cfg := LinkConfig{Name: "a", Addrs: []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd88::2")}}
	if change != nil {
		change(&cfg)
	}
	if w.l, err = s.Attach(newSink(), cfg); err != nil {
		tb.Fatal(err)
	}
	w.l.reader = &reader{l: w.l, pulse: pulse{hot: true}}
	w.target = ap(s.gateway4, service.Port())
	return w
}

// send has the link take a packet as one of many.
func (w *gatherWorld) send(hdr tunnel.Header, pkt []byte) {
	w.tb.Helper()
	n := loadFrame(&w.frame, hdr, pkt)
	if reason := w.frame.decode(n); reason != dropNone {
		w.tb.Fatal(reason)
	}
	w.l.take(&w.frame)
}

func (w *gatherWorld) flush() { w.l.s.udp.flushAll(w.l.worker) }

// sender returns what takes one datagram of that size.
func (w *gatherWorld) sender(size int) func() {
	n := loadFrame(&w.frame, tunnel.Header{}, udpPacket(ap(w.l.addrs[0], 5000), w.target, 64, make([]byte, size)))
	return func() {
		w.frame.prepare()
		if reason := w.frame.decode(n); reason != dropNone {
			w.tb.Fatal(reason)
		}
		w.l.take(&w.frame)
	}
}

// sizes reads what arrives, by read(2)s that return several datagrams where the
// kernel has them together.
func (w *gatherWorld) sizes() (sizes []int) {
	w.tb.Helper()
	if err := w.server.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		w.tb.Fatal(err)
	}
	buf := make([]byte, 65536)
	for {
		n, _, err := w.server.ReadFrom(buf)
		if err != nil {
			return sizes
		}
		sizes = append(sizes, n)
	}
}

// together makes the server's kernel leave datagrams together that came so.
func (w *gatherWorld) together() {
	w.tb.Helper()
	conn, err := w.server.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) { setOptions(fd, udpOptions(true)[:1]) })
	}
	if err != nil {
		w.tb.Fatal(err)
	}
}

// datagram is one that a container sends.
type datagram struct {
	port, size int
	tos, hops  byte
	free       bool // routers may fragment it
}

func (w *gatherWorld) sendAll(all []datagram) {
	w.tb.Helper()
	for _, d := range all {
		pkt := packet.AppendIP(nil, packet.ProtoUDP, w.l.addrs[0], w.target.Addr(), max(d.hops, 2), d.tos, 8+d.size, 1, !d.free)
		src, payload := ap(w.l.addrs[0], uint16(5000+d.port)), bytes.Repeat([]byte{'x'}, d.size)
		pkt = packet.AppendUDPHeader(pkt, src, w.target, [][]byte{payload})
		w.send(tunnel.Header{}, append(pkt, payload...))
	}
	w.flush()
}

// What goes to the kernel together is what it can tell apart again.
func TestUDPGather(t *testing.T) {
	many := slices.Repeat([]datagram{{size: 100}}, 200)
	large := slices.Repeat([]datagram{{size: 30000}}, 3)
	tests := []struct {
		name string
		sent []datagram
		want []int
	}{
		{"one", []datagram{{size: 5}}, []int{5}},
		{"equal", []datagram{{size: 5}, {size: 5}, {size: 5}}, []int{15}},
		{"a shorter one ends it", []datagram{{size: 5}, {size: 4}, {size: 4}, {size: 4}}, []int{9, 8}},
		{"a longer one", []datagram{{size: 4}, {size: 5}, {size: 5}}, []int{4, 10}},
		{"empty ones", []datagram{{size: 5}, {size: 0}, {size: 0}, {size: 5}}, []int{5, 0, 0, 5}},
		{"traffic class", []datagram{{size: 5}, {size: 5, tos: 8}, {size: 5, tos: 8}}, []int{5, 10}},
		{"hop limit", []datagram{{size: 5}, {size: 5, hops: 9}}, []int{5, 5}},
		{"may be fragmented", []datagram{{size: 5}, {size: 5, free: true}}, []int{5, 5}},
		{"two ports", []datagram{{size: 5}, {size: 4, port: 1}, {size: 5}, {size: 4, port: 1}}, []int{10, 8}},
		{"as many as the kernel takes", many, []int{6400, 6400, 6400, 800}},
		{"as much as a packet takes", large, []int{60000, 30000}},
		{"too large for two", []datagram{{size: 40000}, {size: 40000}}, []int{40000, 40000}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newGatherWorld(t, nil)
			w.together()
			flows := []datagram{{size: 1}, {size: 1, port: 1}}
			w.sendAll(flows)
			if got, want := w.sizes(), []int{1, 1}; !slices.Equal(got, want) {
				t.Fatalf("arrived %d, want %d", got, want)
			}
			w.sendAll(tt.sent)
			if got := w.sizes(); !slices.Equal(got, tt.want) {
				t.Errorf("arrived %d, want %d", got, tt.want)
			}
			var n, size uint64
			for _, f := range w.l.s.Flows() {
				n += f.FromContainer.Packets
				size += f.FromContainer.Bytes
			}
			if st := w.l.Stats(); len(st.Drops) > 0 || n != uint64(len(flows)+len(tt.sent)) || size != st.FromContainer.Bytes {
				t.Errorf("%d packets and %d bytes of %d and %d, drops %v", n, size, len(flows)+len(tt.sent), st.FromContainer.Bytes, st.Drops)
			}
		})
	}
}

// A superframe of the container's comes after what was sent before it.
func TestUDPGatherKeepsTheOrder(t *testing.T) {
	w := newGatherWorld(t, nil)
	src := ap(w.l.addrs[0], 5000)
	w.send(tunnel.Header{}, udpPacket(src, w.target, 64, make([]byte, 7)))
	w.send(udpSuperframe(src, w.target, make([]byte, 15), 5))
	w.send(tunnel.Header{}, udpPacket(src, w.target, 64, make([]byte, 6)))
	w.flush()
	if got, want := w.sizes(), []int{7, 5, 5, 5, 6}; !slices.Equal(got, want) {
		t.Errorf("arrived %d, want %d", got, want)
	}
}

// Flows that take turns are gathered apart, as many as there are places; beyond
// that nothing is lost and each keeps its order.
func TestUDPGatherOfManyFlows(t *testing.T) {
	for _, flows := range []int{gatherFlows, gatherFlows + 1} {
		w := newGatherWorld(t, nil)
		w.together()
		var first, turns []datagram
		var want []int
		for i := range flows {
			first = append(first, datagram{port: i, size: 1})
			turns = append(turns, datagram{port: i, size: 100 + i})
			want = append(want, 2*(100+i))
		}
		if flows > gatherFlows { // each is displaced before its turn comes again
			want = nil
			for i := range 2 * flows {
				want = append(want, 100+i%flows)
			}
		}
		w.sendAll(first)
		w.sizes()
		w.sendAll(slices.Concat(turns, turns))
		if got := w.sizes(); !slices.Equal(got, want) {
			t.Errorf("of %d flows arrived %d, want %d", flows, got, want)
		}
		if d := w.l.Stats().Drops; len(d) > 0 {
			t.Errorf("drops %v", d)
		}
	}
}

// A flow that begins may end another: what that one has sent goes first.
func TestUDPGatherBeforeEviction(t *testing.T) {
	w := newGatherWorld(t, func(c *LinkConfig) { c.Limits = &Limits{UDPFlows: 1} })
	w.sendAll([]datagram{{size: 5}}) // the flow is there
	w.sendAll([]datagram{{size: 5}, {size: 5}, {size: 6, port: 1}, {size: 6, port: 1}})
	if got, want := w.sizes(), []int{5, 5, 5, 6, 6}; !slices.Equal(got, want) {
		t.Errorf("arrived %d, want %d", got, want)
	}
	if d := w.l.Stats().Drops; len(d) > 0 {
		t.Errorf("drops %v", d)
	}
}

// What the kernel refuses counts datagram by datagram.
func TestUDPGatherCountsWhatIsLost(t *testing.T) {
	w := newGatherWorld(t, nil)
	w.sendAll([]datagram{{size: 5}})
	w.l.nat.udp.socket(socketKey{ap(w.l.addrs[0], 5000), true}).close()
	w.sendAll(slices.Repeat([]datagram{{size: 5}}, 9))
	if d := w.l.Stats().Drops; len(d) != 1 || d[DropHostSend.String()] != 9 {
		t.Errorf("drops %v, want 9 of host send", d)
	}
}

// Where the way out is too narrow, datagrams that may be fragmented arrive, and
// the others are refused one by one.
func TestNetnsUDPGatherOnNarrowWay(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	if out, err := exec.CommandContext(t.Context(), "ip", "link", "set", "lo", "mtu", "1300").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w := newGatherWorld(t, nil)
	w.sendAll(slices.Repeat([]datagram{{size: 1400, free: true}}, 10))
	if got, want := w.sizes(), slices.Repeat([]int{1400}, 10); !slices.Equal(got, want) {
		t.Errorf("arrived %d, want %d", got, want)
	}
	if d := w.l.Stats().Drops; len(d) > 0 {
		t.Errorf("drops %v", d)
	}
	w.sendAll(slices.Repeat([]datagram{{size: 1400}}, 10))
	if got := w.sizes(); len(got) > 0 {
		t.Errorf("arrived %d", got)
	}
	if d := w.l.Stats().Drops; len(d) != 1 || d[DropTooBig.String()] != 10 {
		t.Errorf("drops %v, want 10 too big", d)
	}
}

// What comes in as many datagrams goes to the container as few frames.
func TestNATInputJoin(t *testing.T) {
	from := netip.MustParseAddrPort("192.0.2.1:5")
	input := func(size, segment int) *natInput {
		in := &natInput{from: from, hops: 64, segment: segment}
		in.data = in.buf[:size]
		return in
	}
	differs := func(change func(in *natInput)) *natInput {
		in := input(5, 0)
		change(in)
		return in
	}
	tests := []struct {
		name     string
		have, in *natInput
		want     int // bytes then; 0: apart
	}{
		{"equal", input(5, 0), input(5, 0), 10},
		{"shorter", input(5, 0), input(4, 0), 9},
		{"longer", input(4, 0), input(5, 0), 0},
		{"after a shorter one", input(9, 5), input(5, 0), 0},
		{"to a batch", input(10, 5), input(5, 0), 15},
		{"a batch", input(5, 0), input(10, 5), 0},
		{"empty", input(5, 0), input(0, 0), 0},
		{"to an empty one", input(0, 0), input(5, 0), 0},
		{"too many", input(64*5, 5), input(5, 0), 0},
		{"too much", input(60000, 30000), input(30000, 0), 0},
		{"another sender", input(5, 0), differs(func(in *natInput) { in.from = netip.MustParseAddrPort("192.0.2.1:6") }), 0},
		{"another hop limit", input(5, 0), differs(func(in *natInput) { in.hops-- }), 0},
		{"another class", input(5, 0), differs(func(in *natInput) { in.tos++ }), 0},
		{"another address of ours", input(5, 0), differs(func(in *natInput) { in.local = netip.MustParseAddr("192.0.2.9") }), 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			joined := tt.have.join(tt.in)
			if joined != (tt.want > 0) {
				t.Fatalf("joined: %v", joined)
			}
			if joined && (len(tt.have.data) != tt.want || tt.have.segment != 5) {
				t.Errorf("%d bytes in segments of %d, want %d", len(tt.have.data), tt.have.segment, tt.want)
			}
		})
	}
}

// What several senders send by turns is held apart, for as many of them as there
// are places; beyond that nothing is lost and each keeps its order.
func TestHeldInputs(t *testing.T) {
	sender := func(i int) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1+i)) }
	for _, senders := range []int{1, 2, gatherFlows, gatherFlows + 1} {
		got := map[netip.AddrPort][]byte{}
		batches := 0
		s := &natSocket{deliver: func(_ *natSocket, in *natInput) {
			batches++
			got[in.from] = append(got[in.from], in.data...)
		}}
		var held heldInputs
		const turns = 5
		for turn := range turns {
			for i := range senders {
				in := natInputs.Get().(*natInput)
				in.from, in.segment, in.hops = sender(i), 0, 64
				in.data = in.buf[:1]
				in.data[0] = byte(turn)
				held.add(s, in)
			}
		}
		held.pass(s)
		want := senders
		if senders > gatherFlows { // each is displaced before its turn comes again
			want *= turns
		}
		if batches != want {
			t.Errorf("%d senders: %d batches, want %d", senders, batches, want)
		}
		for i := range senders {
			if !bytes.Equal(got[sender(i)], []byte{0, 1, 2, 3, 4}) {
				t.Errorf("%d senders: of %v came %v", senders, sender(i), got[sender(i)])
			}
		}
	}
}

// Bursts of real datagrams of a real container arrive, those of several flows by
// turns, in order, and so does what comes back.
func TestNetnsUDPBurst(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	families(t, func(t *testing.T, v4 bool) {
		server := echoIn(t, w.server, serverAddr(v4))
		w.sendBursts(t, []net.Conn{w.c.dialUDP(t, server), w.c.dialUDP(t, server), w.c.dialUDP(t, server)})
	})
}

// So do those of several clients of a publication.
func TestNetnsUDPPublishBurst(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	families(t, func(t *testing.T, v4 bool) {
		own, host := w.c.v4, netip.MustParseAddr("10.77.0.1")
		if !v4 {
			own, host = w.c.v6, netip.MustParseAddr("fd77::1")
		}
		service := echoIn(t, w.c.ns, own)
		p, err := w.s.Publish(PublishConfig{Link: "c", Proto: "udp", Host: ap(host, 0), Port: service.Port()})
		if err != nil {
			t.Fatal(err)
		}
		var conns []net.Conn
		for range 3 {
			conn, err := nstest.Dial(t, w.server, "udp", p.Host().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
		w.sendBursts(t, conns)
	})
}

// sendBursts sends on all connections by turns, and reads what an echo makes of it.
func (w *outsideWorld) sendBursts(t *testing.T, conns []net.Conn) {
	t.Helper()
	const bursts = 50
	burst := 20 * len(conns)
	buf := make([]byte, 65536)
	for i := range bursts {
		for j := range burst {
			if _, err := conns[j%len(conns)].Write(bytes.Repeat([]byte{byte(i), byte(j)}, 600)); err != nil {
				t.Fatal(err)
			}
		}
		for j := range burst {
			n, err := conns[j%len(conns)].Read(buf)
			if err != nil {
				t.Fatalf("burst %d, datagram %d: %v; drops %v", i, j, err, w.c.link.Stats().Drops)
			}
			if n != 1200 || buf[0] != byte(i) || buf[1] != byte(j) || buf[1198] != byte(i) {
				t.Fatalf("burst %d, datagram %d: %d bytes, of burst %d, datagram %d", i, j, n, buf[0], buf[1])
			}
		}
	}
	if d := w.c.link.Stats().Drops; len(d) > 0 {
		t.Logf("drops %v", d)
	}
}

// The flow that was found last is found no more when it has ended.
func TestUDPFlowThatEndedBeginsAgain(t *testing.T) {
	w := newGatherWorld(t, nil)
	key := natKey{ap(w.l.addrs[0], 5000), w.target}
	for range 2 {
		w.sendAll([]datagram{{size: 5}, {size: 5}})
		p := w.l.nat.udp.find(key)
		if p == nil || !w.l.nat.udp.remove(p) {
			t.Fatal("no flow")
		}
		p.end("test")
	}
	if got, want := w.sizes(), []int{5, 5, 5, 5}; !slices.Equal(got, want) {
		t.Errorf("arrived %d, want %d", got, want)
	}
	if d := w.l.Stats().Drops; len(d) > 0 {
		t.Errorf("drops %v", d)
	}
}
