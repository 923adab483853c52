package netstack

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

// harness is a switch with links whose far ends the test holds.
type harness struct {
	t *testing.T
	s *Switch
}

// end is the container's side of a link.
type end struct {
	t    *testing.T
	link *Link
	dev  tunnel.Device
	got  chan []byte // frames that the switch wrote, header included
	v4   netip.Addr
	v6   netip.Addr
}

const testTimeout = 5 * time.Second

// testMTU is small, so that tests meet fragments and segments.
const testMTU = 1500

func newHarness(t *testing.T, change func(*Config)) *harness {
	t.Helper()
	cfg := Config{
		Name: "test",
		Gateways: []netip.Prefix{
			netip.MustParsePrefix("10.88.0.1/24"), netip.MustParsePrefix("fd00:88::1/64"),
		},
		DNS: DNSConfig{ResolvConf: os.DevNull},
		MTU: testMTU,
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return &harness{t: t, s: s}
}

// addr is the n-th address of the network's family.
func (h *harness) addr(v4 bool, n byte) netip.Addr {
	b := h.s.gateway(v4).AsSlice()
	if b == nil {
		return netip.Addr{}
	}
	b[len(b)-1] = n
	a, _ := netip.AddrFromSlice(b)
	return a
}

// attach joins a container with the n-th addresses of the network.
func (h *harness) attach(name string, n byte, change func(*LinkConfig)) *end {
	h.t.Helper()
	dev, e := h.newEnd(testMTU, h.addr(true, n), h.addr(false, n))
	cfg := LinkConfig{Name: name}
	for _, addr := range []netip.Addr{e.v4, e.v6} {
		if addr.IsValid() {
			cfg.Addrs = append(cfg.Addrs, addr)
		}
	}
	if change != nil {
		change(&cfg)
	}
	e.begin(h.s.Attach(dev, cfg))
	return e
}

// newEnd makes the two sides of a link, of which begin starts the far one.
func (h *harness) newEnd(mtu int, v4, v6 netip.Addr) (tunnel.Device, *end) {
	a, b := tunneltest.Pair(mtu)
	return a, &end{t: h.t, dev: b, got: make(chan []byte, 64), v4: v4, v6: v6}
}

// begin gathers what comes, until the test's end.
func (e *end) begin(link *Link, err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
	e.link = link
	go e.collect()
	e.t.Cleanup(func() { e.dev.Close() })
}

// collect gathers what the switch writes. It ends with the device.
func (e *end) collect() {
	buf := make([]byte, tunnel.MaxFrame)
	for {
		n, err := e.dev.ReadFrame([][]byte{buf})
		if err != nil {
			return
		}
		e.got <- append([]byte(nil), buf[:n]...)
	}
}

// addr is the container's address of a family.
func (e *end) addr(v4 bool) netip.Addr {
	if v4 {
		return e.v4
	}
	return e.v6
}

// send writes a packet as the container's kernel would, its checksums done.
func (e *end) send(pkt []byte) { e.t.Helper(); e.sendFrame(tunnel.Header{}, pkt) }

func (e *end) sendFrame(hdr tunnel.Header, pkt []byte) {
	e.t.Helper()
	head := make([]byte, tunnel.HeaderLen)
	hdr.Encode(head)
	if err := e.dev.WriteFrame([][]byte{head, pkt}); err != nil {
		e.t.Fatal(err)
	}
}

// receive waits for the next frame to the container.
func (e *end) receive() (tunnel.Header, []byte) {
	e.t.Helper()
	select {
	case b := <-e.got:
		var hdr tunnel.Header
		hdr.Decode(b)
		return hdr, b[tunnel.HeaderLen:]
	case <-time.After(testTimeout):
		e.t.Fatalf("nothing reached %s", e.link.Name())
		return tunnel.Header{}, nil
	}
}

// quiet fails if anything waits for the container.
func (e *end) quiet() {
	e.t.Helper()
	select {
	case b := <-e.got:
		e.t.Errorf("%s got a packet: % x", e.link.Name(), b)
	default:
	}
}

// wantDrops waits until the link has dropped as many packets as want says, and
// compares every counter: nothing else may have moved.
func (e *end) wantDrops(want map[string]uint64) {
	e.t.Helper()
	sum := func(m map[string]uint64) (n uint64) {
		for _, v := range m {
			n += v
		}
		return n
	}
	eventually(e.t, func() bool { return sum(e.link.Stats().Drops) >= sum(want) })
	if diff := cmp.Diff(want, e.link.Stats().Drops); diff != "" {
		e.t.Errorf("drops of %s (-want +got):\n%s", e.link.Name(), diff)
	}
}

// eventually polls until cond holds.
func eventually(t *testing.T, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Error("condition not met in time")
			return
		case <-tick.C:
		}
	}
}

// udpPacket builds a whole UDP packet of either family.
func udpPacket(src, dst netip.AddrPort, hopLimit uint8, payload []byte) []byte {
	b := packet.AppendIP(nil, packet.ProtoUDP, src.Addr(), dst.Addr(), hopLimit, 0, 8+len(payload), 1, false)
	b = packet.AppendUDPHeader(b, src, dst, [][]byte{payload})
	return append(b, payload...)
}

func ap(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func isErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

// parse decodes a packet that must be good.
func parse(t *testing.T, pkt []byte) packet.Header {
	t.Helper()
	var h packet.Header
	if fault := h.Parse(pkt, len(pkt)); fault != packet.FaultNone {
		t.Fatalf("packet has fault %v: % x", fault, pkt)
	}
	return h
}
