package netstack

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/packet"
)

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
