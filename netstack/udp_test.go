package netstack

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

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
		err := packet.Fragments(udpPacket(src, dst, 64, payload), testMTU, 77, func(frag []byte) error {
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
			if len(frag) > testMTU {
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
	local, err := unix.Getsockname(sock.fd)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := net.ListenPacket("udp4", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.WriteTo([]byte("let me in"), net.UDPAddrFromAddrPort(ap(target.Addr(), uint16(local.(*unix.SockaddrInet4).Port)))); err != nil {
		t.Fatal(err)
	}
	a.wantDrops(map[string]uint64{"unsolicited": 1})
	a.quiet()
}
