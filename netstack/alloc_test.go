package netstack

import (
	"net/netip"
	"os"
	"testing"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

// sink is a device that swallows what is written to it and has nothing to
// read: what is measured with it is the switch alone.
type sink struct{ closed chan struct{} }

func newSink() *sink { return &sink{closed: make(chan struct{})} }

func (s *sink) ReadFrame([][]byte) (int, error) { <-s.closed; return 0, os.ErrClosed }
func (s *sink) WriteFrame([][]byte) error       { return nil }
func (s *sink) MTU() int                        { return DefaultMTU }
func (s *sink) Close() error                    { close(s.closed); return nil }

// forwarder is two links on sinks, of one switch or of two that are joined, and
// a frame from one to the other, as its reader would hold it.
func forwarder(tb testing.TB, payload int, joined bool) (*Switch, *Link, *frame, int) {
	s := sinkSwitch(tb, Config{Gateways: []netip.Prefix{netip.MustParsePrefix("10.88.0.1/24")}})
	addrs := []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("10.88.0.3")}
	switches := []*Switch{s, s}
	if joined {
		if err := s.SetPolicy(Policy{Ingress: IngressOpen}); err != nil {
			tb.Fatal(err)
		}
		addrs[1] = netip.MustParseAddr("10.99.0.3")
		switches[1] = sinkSwitch(tb, Config{
			Gateways: []netip.Prefix{netip.MustParsePrefix("10.99.0.1/24")}, Fabric: s.cfg.Fabric, Policy: s.Policy(),
		})
	}
	var links []*Link
	for i, a := range addrs {
		s := switches[i]
		l, err := s.Attach(newSink(), LinkConfig{Name: string('a' + rune(i)), Addrs: []netip.Addr{a}})
		if err != nil {
			tb.Fatal(err)
		}
		links = append(links, l)
	}
	hdr, pkt := tcpSuperframe(ap(addrs[0], 1), ap(addrs[1], 2), make([]byte, payload), 1400)
	if payload <= 1400 {
		hdr.GSOType, hdr.GSOSize = tunnel.GSONone, 0
	}
	f := new(frame)
	return s, links[0], f, fill(f, hdr, pkt)
}

// fill puts a packet where a read would, and returns the frame's length.
func fill(f *frame, hdr tunnel.Header, pkt []byte) int {
	raw := make([]byte, tunnel.HeaderLen, tunnel.HeaderLen+len(pkt))
	hdr.Encode(raw)
	raw = append(raw, pkt...)
	rest := raw
	for _, b := range f.prepare() {
		rest = rest[copy(b, rest):]
	}
	return len(raw)
}

func sinkSwitch(tb testing.TB, cfg Config) *Switch {
	tb.Helper()
	cfg.DNS.ResolvConf = os.DevNull
	s, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

// forwardOnce does what the reader does with a frame, the read aside.
func forwardOnce(tb testing.TB, s *Switch, l *Link, f *frame, n int) {
	f.prepare()
	if reason := f.decode(n); reason != dropNone {
		tb.Fatal(reason)
	}
	f.bufs[0][8] = 64 // the hop limit, as a new frame has it
	f.bufs[0][10], f.bufs[0][11] = 0, 0
	sum := ^packet.Checksum(f.bufs[0][:20], 0)
	f.bufs[0][10], f.bufs[0][11] = byte(sum>>8), byte(sum)
	s.fromContainer(l, f)
}

func TestForwardingDoesNotAllocate(t *testing.T) {
	for _, joined := range []bool{false, true} {
		for _, payload := range []int{1, 60000} {
			s, l, f, n := forwarder(t, payload, joined)
			forwardOnce(t, s, l, f, n) // opens the flow
			if allocs := testing.AllocsPerRun(1000, func() { forwardOnce(t, s, l, f, n) }); allocs != 0 {
				t.Errorf("%v allocations per frame of %d bytes, joined %v", allocs, n, joined)
			}
			if d := l.Stats().Drops; len(d) != 0 {
				t.Errorf("drops %v", d)
			}
		}
	}
}

// hostForwarder is forwarder with a host link: the frame is the first link's
// answer in one of several flows of the host's.
func hostForwarder(tb testing.TB, payload, flows int) (*Switch, *Link, *frame, int) {
	s, l, f, _ := forwarder(tb, payload, false)
	host, err := s.AttachHost(newSink(), HostLinkConfig{Name: "host"})
	if err != nil {
		tb.Fatal(err)
	}
	var question frame
	for i := range flows {
		n := fill(&question, tunnel.Header{}, tcpPacket(ap(s.gateway4, uint16(40000+i)), ap(l.addrs[0], 80), packet.FlagACK))
		if reason := question.decode(n); reason != dropNone {
			tb.Fatal(reason)
		}
		s.fromHost(host, &question)
	}
	hdr, pkt := tcpSuperframe(ap(l.addrs[0], 80), ap(s.gateway4, 40000), make([]byte, payload), 1400)
	if payload <= 1400 {
		hdr.GSOType, hdr.GSOSize = tunnel.GSONone, 0
	}
	return s, l, f, fill(f, hdr, pkt)
}

func TestForwardingToTheHostDoesNotAllocate(t *testing.T) {
	for _, payload := range []int{1, 60000} {
		s, l, f, n := hostForwarder(t, payload, 1)
		if allocs := testing.AllocsPerRun(1000, func() { forwardOnce(t, s, l, f, n) }); allocs != 0 {
			t.Errorf("%v allocations per frame of %d bytes", allocs, n)
		}
		if d := l.Stats().Drops; len(d) != 0 {
			t.Errorf("drops %v", d)
		}
	}
}

func BenchmarkForwardToHost(b *testing.B) {
	for name, payload := range map[string]int{"small": 1, "superframe": 60000} {
		b.Run(name, func(b *testing.B) {
			s, l, f, n := hostForwarder(b, payload, 1000)
			b.SetBytes(int64(n - tunnel.HeaderLen))
			b.ReportAllocs()
			for b.Loop() {
				forwardOnce(b, s, l, f, n)
			}
		})
	}
}

func BenchmarkForward(b *testing.B) {
	for _, bench := range []struct {
		name    string
		payload int
		joined  bool
	}{{"small", 1, false}, {"superframe", 60000, false}, {"joined", 1, true}} {
		b.Run(bench.name, func(b *testing.B) {
			s, l, f, n := forwarder(b, bench.payload, bench.joined)
			b.SetBytes(int64(n - tunnel.HeaderLen))
			b.ReportAllocs()
			for b.Loop() {
				forwardOnce(b, s, l, f, n)
			}
		})
	}
}
