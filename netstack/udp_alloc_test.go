package netstack

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

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
	n := loadFrame(f, hdr, pkt)
	return l, func() {
		f.prepare()
		if reason := f.decode(n); reason != dropNone {
			tb.Fatal(reason)
		}
		s.fromContainer(l, f)
	}
}

// loadFrame leaves a frame in f's views as a read does, and returns its length.
func loadFrame(f *frame, hdr tunnel.Header, pkt []byte) int {
	raw := make([]byte, tunnel.HeaderLen, tunnel.HeaderLen+len(pkt))
	hdr.Encode(raw)
	raw = append(raw, pkt...)
	rest := raw
	for _, b := range f.prepare() {
		rest = rest[copy(b, rest):]
	}
	return len(raw)
}

// Nor does what goes out several at a time.
func TestUDPGatheringDoesNotAllocate(t *testing.T) {
	w := newGatherWorld(t, nil)
	once := w.sender(1400)
	once()
	if allocs := testing.AllocsPerRun(1000, once); allocs != 0 {
		t.Errorf("%v allocations a datagram", allocs)
	}
	w.flush()
	if d := w.l.Stats().Drops; len(d) != 0 {
		t.Errorf("drops %v", d)
	}
	if f := w.l.s.Flows(); len(f) != 1 || f[0].FromContainer != (Traffic{1002, 1002 * 1428}) {
		t.Errorf("flows %+v", f)
	}
}

// BenchmarkUDPOutGathered is BenchmarkUDPOut of a reader that has more to read.
func BenchmarkUDPOutGathered(b *testing.B) {
	for _, size := range []int{1, 1400} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			once := newGatherWorld(b, nil).sender(size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				once()
			}
		})
	}
}

// udpReceiver returns a link with a flow to a socket of the host, and what that
// socket's reader holds of an answer, its data aside.
func udpReceiver(tb testing.TB) (*Link, *natPeer, *natInput) {
	sinkhole, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { sinkhole.Close() })
	target := sinkhole.LocalAddr().(*net.UDPAddr).AddrPort()
	l, once := udpSender(tb, target, 1)
	once() // opens the flow
	in := new(natInput)
	in.from, in.segment, in.hops = target, 1200, 64
	return l, l.nat.udp.find(natKey{ap(l.addrs[0], 5000), ap(l.s.gateway4, target.Port())}), in
}

// The way back allocates nothing either, batches of datagrams included.
func TestUDPReceivingDoesNotAllocate(t *testing.T) {
	l, p, in := udpReceiver(t)
	for _, size := range []int{1, 60000} {
		in.data = in.buf[:size]
		if allocs := testing.AllocsPerRun(1000, func() { l.s.udp.deliver(p.sock, in) }); allocs != 0 {
			t.Errorf("%v allocations for %d bytes", allocs, size)
		}
	}
	if d := l.Stats().Drops; len(d) != 0 || p.flow.packets[toContainer].Load() != 2002 {
		t.Errorf("drops %v, %d packets", d, p.flow.packets[toContainer].Load())
	}
}

func BenchmarkUDPOut(b *testing.B) {
	sinkhole, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer sinkhole.Close()
	target := sinkhole.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, payload := range []int{1, 1400, 60000} {
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

func BenchmarkUDPIn(b *testing.B) {
	for _, payload := range []int{1, 60000} {
		b.Run(strconv.Itoa(payload), func(b *testing.B) {
			l, p, in := udpReceiver(b)
			in.data = in.buf[:payload]
			b.SetBytes(int64(payload))
			b.ReportAllocs()
			for b.Loop() {
				l.s.udp.deliver(p.sock, in)
			}
		})
	}
}
