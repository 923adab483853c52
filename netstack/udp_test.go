package netstack

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

// echoServer answers every datagram on loopback with itself, until the test
// ends.
func echoServer(t testing.TB) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

// serviceHarness is a switch with one host service on loopback.
func serviceHarness(t *testing.T, target netip.AddrPort, change func(*Config)) *harness {
	return newHarness(t, func(c *Config) {
		c.HostServices = []HostService{{Name: "echo", Target: target}}
		if change != nil {
			change(c)
		}
	})
}

// wantUDP checks a plain UDP packet and returns its payload.
func wantUDP(t *testing.T, hdr tunnel.Header, pkt []byte, src, dst netip.AddrPort) []byte {
	t.Helper()
	h := parse(t, pkt)
	if h.Proto != packet.ProtoUDP || h.SrcAddrPort() != src || h.DstAddrPort() != dst {
		t.Fatalf("got protocol %d from %v to %v, want UDP from %v to %v", h.Proto, h.SrcAddrPort(), h.DstAddrPort(), src, dst)
	}
	whole := bytes.Clone(pkt)
	f := frame{hdr: hdr, pkt: h}
	f.completeChecksum(whole)
	if !packet.ValidL4Checksum(&h, [][]byte{whole}) {
		t.Errorf("wrong checksum: %+v % x", hdr, pkt)
	}
	return pkt[h.Payload:]
}

func TestUDPHostService(t *testing.T) {
	target := echoServer(t)
	families(t, func(t *testing.T, v4 bool) {
		h := serviceHarness(t, target, nil)
		a := h.attach("a", 2, nil)
		src, dst := ap(a.addr(v4), 5000), ap(h.s.gateway(v4), target.Port())
		for _, payload := range [][]byte{[]byte("hello"), {}, bytes.Repeat([]byte("x"), 1400)} {
			a.send(udpPacket(src, dst, 64, payload))
			hdr, pkt := a.receive()
			if got := wantUDP(t, hdr, pkt, dst, src); !bytes.Equal(got, payload) {
				t.Errorf("%d bytes came back as %d", len(payload), len(got))
			}
		}
		a.wantDrops(map[string]uint64{})
		eventually(t, func() bool { return h.s.Flows()[0].FromContainer.Packets == 3 })
		flows := h.s.Flows()
		if len(flows) != 1 || flows[0].Direction != FlowService || flows[0].Target == nil || *flows[0].Target != target ||
			flows[0].FromContainer.Packets != 3 || flows[0].ToContainer.Packets != 3 {
			t.Errorf("flows %+v", flows)
		}
	})
}

// What is larger than the link's MTU goes both ways in fragments.
func TestUDPFragmentsBothWays(t *testing.T) {
	target := echoServer(t)
	families(t, func(t *testing.T, v4 bool) {
		h := serviceHarness(t, target, nil)
		a := h.attach("a", 2, nil)
		src, dst := ap(a.addr(v4), 5000), ap(h.s.gateway(v4), target.Port())
		payload := bytes.Repeat([]byte("0123456789"), 900)
		err := packet.Fragments(udpPacket(src, dst, 64, payload), DefaultMTU, 77, func(frag []byte) error {
			a.send(frag)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		r := packet.NewReassembler(packet.ReassemblyLimits{})
		var whole []byte
		for whole == nil {
			_, frag := a.receive()
			if len(frag) > DefaultMTU {
				t.Fatalf("fragment of %d bytes", len(frag))
			}
			hdr := parse(t, frag)
			whole, _ = r.Add(&hdr, [][]byte{frag}, testNow)
		}
		if got := wantUDP(t, tunnel.Header{}, whole, dst, src); !bytes.Equal(got, payload) {
			t.Errorf("%d bytes came back as %d", len(payload), len(got))
		}
		a.wantDrops(map[string]uint64{})
	})
}

// A superframe is many datagrams to the far end, and a batch from the host is a
// superframe to the container.
func TestUDPSuperframe(t *testing.T) {
	target := echoServer(t)
	families(t, func(t *testing.T, v4 bool) {
		h := serviceHarness(t, target, nil)
		a := h.attach("a", 2, nil)
		src, dst := ap(a.addr(v4), 5000), ap(h.s.gateway(v4), target.Port())
		payload := make([]byte, 100*500+17) // more than 64 segments
		for i := range payload {
			payload[i] = byte(i / 500)
		}
		hdr, pkt := udpSuperframe(src, dst, payload, 500)
		a.sendFrame(hdr, pkt)
		var got []byte
		for len(got) < len(payload) {
			hdr, pkt := a.receive()
			p := parse(t, pkt)
			if err := hdr.Check(&p); err != nil {
				t.Fatal(err)
			}
			got = append(got, pkt[p.Payload:]...)
		}
		if !bytes.Equal(got, payload) {
			t.Error("the datagrams came back changed or in another order")
		}
		a.wantDrops(map[string]uint64{})
	})
}

// udpSuperframe is what a container's kernel hands over for one sendmsg with
// UDP_SEGMENT.
func udpSuperframe(src, dst netip.AddrPort, payload []byte, segment int) (tunnel.Header, []byte) {
	pkt := udpPacket(src, dst, 64, payload)
	l4 := len(pkt) - len(payload) - 8
	sum := packet.PseudoHeaderSum(packet.ProtoUDP, src.Addr(), dst.Addr(), 8+len(payload))
	pkt[l4+6], pkt[l4+7] = byte(sum>>8), byte(sum)
	return tunnel.Header{
		Flags: tunnel.FlagNeedsCsum, GSOType: tunnel.GSOUDPL4, HdrLen: uint16(l4 + 8), GSOSize: uint16(segment),
		CsumStart: uint16(l4), CsumOffset: 6,
	}, pkt
}

func TestUDPWrongChecksumIsDropped(t *testing.T) {
	target := echoServer(t)
	families(t, func(t *testing.T, v4 bool) {
		h := serviceHarness(t, target, nil)
		a := h.attach("a", 2, nil)
		good := udpPacket(ap(a.addr(v4), 5000), ap(h.s.gateway(v4), target.Port()), 64, []byte("hello"))
		bad := bytes.Clone(good)
		bad[len(bad)-1]++
		a.send(bad) // begins no flow
		a.send(good)
		a.receive()
		a.send(bad) // of a flow that exists
		a.wantDrops(map[string]uint64{"checksum": 2})
	})
}

// A closed port on the host is reported as the port of the gateway that the
// container asked for.
func TestUDPRefusedPort(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	pc.Close()
	families(t, func(t *testing.T, v4 bool) {
		h := serviceHarness(t, target, nil)
		a := h.attach("a", 2, nil)
		src, dst := ap(a.addr(v4), 5000), ap(h.s.gateway(v4), target.Port())
		for range 3 { // the report must not cost a later datagram its way
			a.send(udpPacket(src, dst, 64, []byte("anybody?")))
			_, pkt := a.receive()
			wantICMPError(t, pkt, h.s.gateway(v4), packet.ErrPortUnreachable, src, dst)
		}
		a.wantDrops(map[string]uint64{})
	})
}

// wantICMPError checks an ICMP error about a packet from src to dst.
func wantICMPError(t *testing.T, pkt []byte, from netip.Addr, kind packet.ErrorKind, src, dst netip.AddrPort) {
	t.Helper()
	h := parse(t, pkt)
	var got packet.ErrorKind
	switch h.Proto {
	case packet.ProtoICMP:
		got = icmp4ErrorKind(h.ICMPType, h.ICMPCode)
	case packet.ProtoICMPv6:
		got = icmp6ErrorKind(h.ICMPType, h.ICMPCode)
	}
	if h.Src != from || h.Dst != src.Addr() || got != kind {
		t.Fatalf("got %v from %v to %v (%+v), want %v from %v", got, h.Src, h.Dst, h, kind, from)
	}
	if !packet.ValidL4Checksum(&h, [][]byte{pkt}) {
		t.Error("wrong ICMP checksum")
	}
	var quoted packet.Header
	inner := pkt[h.L4+8:]
	if fault := quoted.Parse(inner, len(inner)); fault != packet.FaultNone || quoted.SrcAddrPort() != src || quoted.DstAddrPort() != dst {
		t.Errorf("quotes a packet from %v to %v (%v), want %v to %v", quoted.SrcAddrPort(), quoted.DstAddrPort(), fault, src, dst)
	}
}

// One port of a container has one port on the host, whatever it sends to.
func TestUDPMappingIsEndpointIndependent(t *testing.T) {
	one, two := echoServer(t), echoServer(t)
	h := newHarness(t, func(c *Config) {
		c.HostServices = []HostService{{Name: "one", Target: one}, {Name: "two", Target: two}}
	})
	a := h.attach("a", 2, nil)
	for _, port := range []uint16{5000, 5001} {
		for _, target := range []netip.AddrPort{one, two} {
			a.send(udpPacket(ap(a.v4, port), ap(h.s.gateway4, target.Port()), 64, []byte("x")))
			a.receive()
		}
	}
	if n, f := len(a.link.nat.udp.socketList()), a.link.nat.udp.size(); n != 2 || f != 4 {
		t.Errorf("%d sockets and %d flows, want 2 and 4", n, f)
	}
}

// Nobody but those that the container wrote to gets through its socket.
func TestUDPUnsolicitedIsDropped(t *testing.T) {
	target := echoServer(t)
	h := serviceHarness(t, target, nil)
	a := h.attach("a", 2, nil)
	src, dst := ap(a.v4, 5000), ap(h.s.gateway4, target.Port())
	a.send(udpPacket(src, dst, 64, []byte("x")))
	a.receive()
	sock := a.link.nat.udp.socket(socketKey{src, true})
	local := sock.closer.(*net.UDPConn).LocalAddr().(*net.UDPAddr).AddrPort()
	stranger, err := net.ListenPacket("udp4", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.WriteTo([]byte("let me in"), net.UDPAddrFromAddrPort(ap(target.Addr(), local.Port()))); err != nil {
		t.Fatal(err)
	}
	a.wantDrops(map[string]uint64{"unsolicited": 1})
	a.quiet()
}

func TestUDPFlowLimitEvictsTheOldestUnreplied(t *testing.T) {
	target := echoServer(t)
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0") // reads nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	quiet := silent.LocalAddr().(*net.UDPAddr).AddrPort()
	h := newHarness(t, func(c *Config) {
		c.HostServices = []HostService{{Name: "echo", Target: target}, {Name: "silent", Target: quiet}}
		c.Limits.UDPFlows = 3
	})
	a := h.attach("a", 2, nil)
	open := func(port uint16, to netip.AddrPort) {
		a.send(udpPacket(ap(a.v4, port), ap(h.s.gateway4, to.Port()), 64, []byte("x")))
	}
	open(1, target)
	a.receive() // replied: has its place
	open(2, quiet)
	open(3, quiet)
	open(4, quiet) // takes the place of 2
	eventually(t, func() bool { return len(h.s.Flows()) == 4 && h.s.flows.liveCount() == 3 })
	var live []uint16
	for _, f := range h.s.Flows() {
		if f.End == nil {
			live = append(live, f.Source.Port())
		} else if f.Reason != "evicted: the link's table was full" {
			t.Errorf("flow %+v", f)
		}
	}
	if diff := cmp.Diff([]uint16{1, 3, 4}, live); diff != "" {
		t.Errorf("live flows (-want +got):\n%s", diff)
	}
	a.wantDrops(map[string]uint64{})
}

// A table full of flows that live takes no more.
func TestUDPFlowLimitRefuses(t *testing.T) {
	target := echoServer(t)
	h := serviceHarness(t, target, func(c *Config) { c.Limits.UDPFlows = 1 })
	a := h.attach("a", 2, nil)
	a.send(udpPacket(ap(a.v4, 1), ap(h.s.gateway4, target.Port()), 64, []byte("x")))
	a.receive()
	a.send(udpPacket(ap(a.v4, 2), ap(h.s.gateway4, target.Port()), 64, []byte("x")))
	a.wantDrops(map[string]uint64{"flow_limit": 1})
	if n := len(a.link.nat.udp.socketList()); n != 1 {
		t.Errorf("%d sockets, want 1: the one that was refused must not stay open", n)
	}
}

func TestUDPFlowRate(t *testing.T) {
	target := echoServer(t)
	h := serviceHarness(t, target, func(c *Config) { c.Limits.NewFlows = 1 }) // and a burst of 2
	a := h.attach("a", 2, nil)
	for port := uint16(1); port <= 3; port++ {
		a.send(udpPacket(ap(a.v4, port), ap(h.s.gateway4, target.Port()), 64, []byte("x")))
	}
	a.receive()
	a.receive()
	a.wantDrops(map[string]uint64{"flow_rate": 1})
}

// A rule that comes later ends the flows that it forbids, and no others.
func TestUDPNewRulesJudgeOldFlows(t *testing.T) {
	target := echoServer(t)
	h := serviceHarness(t, target, nil)
	a := h.attach("a", 2, nil)
	pkt := udpPacket(ap(a.v4, 5000), ap(h.s.gateway4, target.Port()), 64, []byte("x"))
	a.send(pkt)
	a.receive()
	if err := h.s.SetRefuse([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}); err != nil {
		t.Fatal(err)
	}
	a.send(pkt)
	a.receive()
	if n := len(h.s.Flows()); n != 1 {
		t.Fatalf("%d flows: one that stays allowed was opened anew", n)
	}
	h.s.cfg.HostServices = nil
	if err := h.s.SetRefuse(nil); err != nil {
		t.Fatal(err)
	}
	a.send(pkt)
	_, answer := a.receive()
	wantICMPError(t, answer, h.s.gateway4, packet.ErrPortUnreachable, ap(a.v4, 5000), ap(h.s.gateway4, target.Port()))
	a.wantDrops(map[string]uint64{"policy_no_service": 1})
	if f := h.s.Flows()[0]; f.End == nil || f.Reason != "policy: no_service" {
		t.Errorf("flow %+v", f)
	}
	if n := len(a.link.nat.udp.socketList()); n != 0 {
		t.Errorf("%d sockets stay open", n)
	}
}

func TestUDPDetachClosesSockets(t *testing.T) {
	target := echoServer(t)
	h := serviceHarness(t, target, nil)
	a := h.attach("a", 2, nil)
	for port := uint16(1); port <= 20; port++ {
		a.send(udpPacket(ap(a.v4, port), ap(h.s.gateway4, target.Port()), 64, []byte("x")))
		a.receive()
	}
	before := openFiles(t)
	if err := a.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := openFiles(t); before-after < 20 {
		t.Errorf("%d descriptors before, %d after detaching a link with 20 sockets", before, after)
	}
	for _, f := range h.s.Flows() {
		if f.End == nil || f.Reason != "link detached" {
			t.Errorf("flow %+v", f)
		}
	}
}

// TestUDPSendingDoesNotAllocate is the rule of the packet path, for what leaves
// by a host socket.
func TestUDPSendingDoesNotAllocate(t *testing.T) {
	sinkhole, err := net.ListenPacket("udp4", "127.0.0.1:0") // reads nothing: the kernel drops
	if err != nil {
		t.Fatal(err)
	}
	defer sinkhole.Close()
	target := sinkhole.LocalAddr().(*net.UDPAddr).AddrPort()
	for name, payload := range map[string]int{"small": 1, "superframe": 60000} {
		t.Run(name, func(t *testing.T) {
			l, once := udpSender(t, target, payload)
			once() // opens the flow
			if allocs := testing.AllocsPerRun(1000, once); allocs != 0 {
				t.Errorf("%v allocations per frame of %d bytes", allocs, payload)
			}
			if d := l.Stats().Drops; len(d) != 0 {
				t.Errorf("drops %v", d)
			}
			if f := l.s.Flows(); len(f) != 1 || f[0].FromContainer.Packets != 1002 {
				t.Errorf("flows %+v", f)
			}
		})
	}
}

// udpSender returns what a link's reader does with one frame to a host service,
// the read aside.
func udpSender(tb testing.TB, target netip.AddrPort, payload int) (*Link, func()) {
	s, err := New(Config{
		Gateways:     []netip.Prefix{netip.MustParsePrefix("10.88.0.1/24")},
		DNS:          DNSConfig{ResolvConf: os.DevNull},
		HostServices: []HostService{{Name: "target", Target: target}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	l, err := s.Attach(newSink(), LinkConfig{Name: "a", Addrs: []netip.Addr{netip.MustParseAddr("10.88.0.2")}})
	if err != nil {
		tb.Fatal(err)
	}
	hdr, pkt := udpSuperframe(ap(l.addrs[0], 5000), ap(s.gateway4, target.Port()), make([]byte, payload), 1400)
	if payload <= 1400 {
		hdr.GSOType, hdr.GSOSize = tunnel.GSONone, 0
	}
	// A traffic class and a hop limit that have to be copied, so that control
	// messages are made.
	pkt[1] = 0xb8
	packet.DecrementHopLimit(pkt)
	pkt[10], pkt[11] = 0, 0
	sum := ^packet.Checksum(pkt[:20], 0)
	pkt[10], pkt[11] = byte(sum>>8), byte(sum)
	f := new(frame)
	raw := make([]byte, tunnel.HeaderLen, tunnel.HeaderLen+len(pkt))
	hdr.Encode(raw)
	raw = append(raw, pkt...)
	rest := raw
	for _, b := range f.prepare() {
		rest = rest[copy(b, rest):]
	}
	return l, func() {
		f.prepare()
		if reason := f.decode(len(raw)); reason != dropNone {
			tb.Fatal(reason)
		}
		s.fromContainer(l, f)
	}
}

// The way back allocates nothing either, batches of datagrams included.
func TestUDPReceivingDoesNotAllocate(t *testing.T) {
	sinkhole, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sinkhole.Close()
	target := sinkhole.LocalAddr().(*net.UDPAddr).AddrPort()
	l, once := udpSender(t, target, 1)
	once() // opens the flow
	p := l.nat.udp.find(natKey{ap(l.addrs[0], 5000), ap(l.s.gateway4, target.Port())})
	in := new(natInput)
	for _, size := range []int{1, 60000} {
		in.from, in.data, in.segment, in.hops = target, in.buf[:size], 1200, 64
		if allocs := testing.AllocsPerRun(1000, func() { l.s.udp.deliver(p.sock, in) }); allocs != 0 {
			t.Errorf("%v allocations for %d bytes", allocs, size)
		}
	}
	if d := l.Stats().Drops; len(d) != 0 || p.flow.packets[toContainer].Load() != 2002 {
		t.Errorf("drops %v, %d packets", d, p.flow.packets[toContainer].Load())
	}
}

// A process without free descriptors serves new flows at the price of the same
// link's oldest unanswered ones.
func TestUDPWithoutDescriptors(t *testing.T) {
	target := echoServer(t)
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0") // reads nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	quiet := silent.LocalAddr().(*net.UDPAddr).AddrPort()
	h := newHarness(t, func(c *Config) {
		c.HostServices = []HostService{{Name: "echo", Target: target}, {Name: "silent", Target: quiet}}
	})
	a := h.attach("a", 2, nil)
	a.send(udpPacket(ap(a.v4, 1), ap(h.s.gateway4, quiet.Port()), 64, []byte("x")))
	eventually(t, func() bool { return a.link.nat.udp.size() == 1 })

	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	low := was
	low.Cur = uint64(openFiles(t) - 1) // the one that counted is closed again
	for fd := low.Cur; fd < low.Cur+8; fd++ {
		if _, err := os.Stat("/proc/self/fd/" + strconv.FormatUint(fd, 10)); err == nil {
			low.Cur = fd + 1 // descriptors need not be dense
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}()
	var hogs []int // take what is free below the limit
	for {
		fd, err := unix.Dup(2)
		if err != nil {
			break
		}
		hogs = append(hogs, fd)
	}
	defer func() {
		for _, fd := range hogs {
			_ = unix.Close(fd)
		}
	}()
	a.send(udpPacket(ap(a.v4, 2), ap(h.s.gateway4, target.Port()), 64, []byte("x")))
	a.receive()
	a.wantDrops(map[string]uint64{})
	if f := h.s.Flows(); len(f) != 2 || f[0].Reason != "evicted: no descriptors left" {
		t.Errorf("flows %+v", f)
	}
	a.send(udpPacket(ap(a.v4, 3), ap(h.s.gateway4, target.Port()), 64, []byte("x")))
	a.wantDrops(map[string]uint64{"host_send": 1})
}

func BenchmarkUDPOut(b *testing.B) {
	sinkhole, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer sinkhole.Close()
	target := sinkhole.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, payload := range []int{1, 60000} {
		b.Run(strconv.Itoa(payload), func(b *testing.B) {
			_, once := udpSender(b, target, payload)
			b.SetBytes(int64(payload))
			b.ReportAllocs()
			for b.Loop() {
				once()
			}
		})
	}
}
