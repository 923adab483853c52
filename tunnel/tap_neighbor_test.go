package tunnel_test

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

// tapContainer is a usual container's interface, with a MAC address.
func tapContainer() netns.Interface {
	return netns.Interface{
		Name: "eth0", MTU: 1500, MAC: containerMAC,
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.88.0.5/24"), netip.MustParsePrefix("fd88::5/64")},
		Routes: []netns.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.88.0.1")},
			{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd88::1")},
		},
	}
}

// gateway is the switch's end of a container's TAP: it answers pings, whoever
// they are for, and hands out the echo replies of the container.
type gateway struct {
	dev     tunnel.Device
	replies chan netip.Addr // by whom

	mu   sync.Mutex
	seen map[string]int // packets by source and protocol
}

func newGateway(t *testing.T, dev tunnel.Device) *gateway {
	g := &gateway{dev: dev, replies: make(chan netip.Addr, 100), seen: make(map[string]int)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.serve()
	}()
	t.Cleanup(func() {
		dev.Close()
		<-ended
	})
	return g
}

// serve ends with the device.
func (g *gateway) serve() {
	for {
		frame, err := tunneltest.ReadFrame(g.dev)
		if err != nil {
			return
		}
		pkt := frame[tunnel.HeaderLen:]
		var ip packet.Header
		if ip.Parse(pkt, len(pkt)) != packet.FaultNone {
			continue
		}
		g.mu.Lock()
		g.seen[ip.Src.String()]++
		g.mu.Unlock()
		switch {
		case ip.IsEchoRequest():
			answer := packet.AppendEcho(make([]byte, tunnel.HeaderLen), true, ip.Dst, ip.Src, ip.SrcPort, ip.ICMPSeq, 64, pkt[ip.Payload:])
			g.dev.WriteFrame([][]byte{answer})
		case ip.IsEchoReply():
			g.replies <- ip.Src
		}
	}
}

// reach sends echo requests to a container until it answers. The kernel makes
// the route to an IPv6 address of its own in a work queue, so the first may be
// lost.
func (g *gateway) reach(t *testing.T, from, to string) {
	t.Helper()
	request := packet.AppendEcho(make([]byte, tunnel.HeaderLen), false, netip.MustParseAddr(from), netip.MustParseAddr(to), 7, 1, 64, nil)
	nstest.WaitFor(t, 10*time.Second, func() bool {
		if err := g.dev.WriteFrame([][]byte{request}); err != nil {
			t.Fatal(err)
		}
		select {
		case by := <-g.replies:
			return by == netip.MustParseAddr(to)
		case <-time.After(200 * time.Millisecond):
			return false
		}
	})
}

func (g *gateway) drops() map[string]uint64 { return g.dev.(tunnel.DropCounter).Drops() }

// pings runs ping in ns and reports whether all was answered.
func pings(t *testing.T, ns *netns.Handle, addr string) bool {
	t.Helper()
	out, err := nstest.TryExec(t, ns, "ping", "-n", "-c", "2", "-i", "0.1", "-W", "5", addr)
	if err != nil {
		t.Logf("ping %s: %v\n%s", addr, err, out)
	}
	return err == nil && strings.Contains(out, " 0% packet loss")
}

// TestNetnsTAPEveryNeighborIsTheGateway lets a container's kernel find its
// neighbours.
func TestNetnsTAPEveryNeighborIsTheGateway(t *testing.T) {
	ns := nstest.NewNS(t)
	g := newGateway(t, nstest.TAP(t, ns, tapContainer()))
	neighbors := []string{"10.88.0.1", "10.88.0.9", "10.88.0.254", "fd88::1", "fd88::9", "fd88::ffff:9"}
	for _, addr := range append(neighbors, "192.0.2.7", "2001:db8::7") {
		if !pings(t, ns, addr) {
			t.Errorf("no answer from %s", addr)
		}
	}
	table := nstest.Exec(t, ns, "ip", "neigh", "show", "dev", "eth0")
	for _, addr := range neighbors {
		if !strings.Contains("\n"+table, "\n"+addr+" lladdr "+gatewayMAC.String()+" ") {
			t.Errorf("no neighbour %s at %v in\n%s", addr, gatewayMAC, table)
		}
	}
	for _, addr := range []string{"192.0.2.7", "2001:db8::7"} { // by way of the gateway
		if strings.Contains(table, addr) {
			t.Errorf("%s is a neighbour:\n%s", addr, table)
		}
	}
	if strings.Contains(table, "FAILED") || strings.Contains(table, "INCOMPLETE") {
		t.Errorf("a question went without an answer:\n%s", table)
	}
	// Of what the kernel said by itself, only its own announcement of its
	// IPv4 address was discarded.
	for reason, n := range g.drops() {
		if reason != "arp_unanswered" || n > 1 {
			t.Errorf("%d frames of an honest kernel dropped as %s", n, reason)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for source := range g.seen {
		if a := netip.MustParseAddr(source); a.Is6() && a != own6 && !a.IsLinkLocalUnicast() && !a.IsUnspecified() {
			t.Errorf("packets from %s", source)
		}
	}
}

// TestNetnsTAPNeighborsAreProbedAgain: a kernel that doubts what it knows asks
// by unicast, for IPv6 from its link-local address.
func TestNetnsTAPNeighborsAreProbedAgain(t *testing.T) {
	ns := nstest.NewNS(t)
	newGateway(t, nstest.TAP(t, ns, tapContainer()))
	for _, addr := range []string{"10.88.0.9", "fd88::9"} {
		if !pings(t, ns, addr) {
			t.Fatalf("no answer from %s", addr)
		}
		nstest.Exec(t, ns, "ip", "neigh", "change", addr, "dev", "eth0", "lladdr", gatewayMAC.String(), "nud", "probe")
		nstest.WaitFor(t, 10*time.Second, func() bool {
			state := nstest.Exec(t, ns, "ip", "neigh", "show", addr, "dev", "eth0")
			if strings.Contains(state, "FAILED") {
				t.Fatalf("a probe of %s was not answered:\n%s", addr, state)
			}
			return strings.Contains(state, "REACHABLE")
		})
	}
}

// TestNetnsTAPDuplicateAddressDetection: a container may look whether its own
// addresses are free, and finds others' in use.
func TestNetnsTAPDuplicateAddressDetection(t *testing.T) {
	ns := nstest.NewNS(t)
	cfg := tapContainer()
	dev, err := tunnel.OpenTAP(nstest.TAPFile(t, ns, cfg), 0, tunnel.TAPConfig{
		Addrs: []netip.Addr{own4, own6, netip.MustParseAddr("fd88::6")},
	})
	if err != nil {
		t.Fatal(err)
	}
	newGateway(t, dev)
	nstest.In(t, ns, func() error { return netns.SetSysctl("ipv6/conf/eth0/accept_dad", "1") })
	for addr, want := range map[string]string{"fd88::6": "", "fd88::7": "dadfailed", "fe80::77": ""} {
		nstest.Exec(t, ns, "ip", "addr", "add", addr+"/64", "dev", "eth0")
		nstest.WaitFor(t, 10*time.Second, func() bool {
			return !strings.Contains(address(t, ns, addr), "tentative") || strings.Contains(address(t, ns, addr), "dadfailed")
		})
		if got := address(t, ns, addr); got == "" || strings.Contains(got, "dadfailed") != (want != "") {
			t.Errorf("%s: %q, want it to say %q", addr, got, want)
		}
	}
}

// address is what ip-address says of an IPv6 address of eth0.
func address(t *testing.T, ns *netns.Handle, addr string) string {
	t.Helper()
	for line := range strings.Lines(nstest.Exec(t, ns, "ip", "-6", "-oneline", "addr", "show", "dev", "eth0")) {
		if strings.Contains(line, " "+addr+"/") {
			return line
		}
	}
	return ""
}

// TestNetnsTAPFollowsTheInterfacesMAC: a container that only listens is found
// again, because its kernel announces the change, be it of one address family
// alone.
func TestNetnsTAPFollowsTheInterfacesMAC(t *testing.T) {
	for name, family := range map[string]struct {
		prefix, other string
	}{
		"IPv4": {"10.88.0.5/24", "10.88.0.9"},
		"IPv6": {"fd88::5/64", "fd88::9"},
	} {
		t.Run(name, func(t *testing.T) {
			ns := nstest.NewNS(t)
			own := netip.MustParsePrefix(family.prefix)
			g := newGateway(t, nstest.TAP(t, ns, netns.Interface{Name: "eth0", MTU: 1500, MAC: containerMAC, Addrs: []netip.Prefix{own}}))
			set := func(args ...string) {
				nstest.Exec(t, ns, append([]string{"ip", "link", "set", "eth0"}, args...)...)
			}
			g.reach(t, family.other, own.Addr().String())
			for _, mac := range []string{strangerMAC.String(), "02:00:00:00:00:99"} {
				set("address", mac)
				g.reach(t, family.other, own.Addr().String())
				if !pings(t, ns, family.other) {
					t.Errorf("%v hears no answer with MAC address %s", own, mac)
				}
			}
			// As the tuning plugin does it.
			set("down")
			set("address", containerMAC.String())
			set("up")
			g.reach(t, family.other, own.Addr().String())
			if n := g.drops()["ether_source"]; n > 0 {
				t.Errorf("%d frames dropped as from a stranger", n)
			}
			// But not to the gateway's own.
			set("address", gatewayMAC.String())
			nstest.WaitFor(t, 10*time.Second, func() bool { return g.drops()["ether_source"] > 0 })
		})
	}
}

func TestNetnsTAPPinnedMACIsNotFollowed(t *testing.T) {
	ns := nstest.NewNS(t)
	dev, err := tunnel.OpenTAP(nstest.TAPFile(t, ns, tapContainer()), 0, tunnel.TAPConfig{MAC: containerMAC, Addrs: []netip.Addr{own4, own6}})
	if err != nil {
		t.Fatal(err)
	}
	g := newGateway(t, dev)
	if !pings(t, ns, "10.88.0.9") {
		t.Error("no answer before the change")
	}
	nstest.Exec(t, ns, "ip", "link", "set", "eth0", "address", strangerMAC.String())
	if out, err := nstest.TryExec(t, ns, "ping", "-n", "-c", "1", "-W", "1", "10.88.0.77"); err == nil {
		t.Errorf("an answer after the change:\n%s", out)
	}
	if g.drops()["ether_source"] == 0 {
		t.Errorf("drops %v", g.drops())
	}
}

// TestNetnsTAPMovedReportsNamespaceDeath is what makes leases come back.
func TestNetnsTAPMovedReportsNamespaceDeath(t *testing.T) {
	ns := nstest.NewNS(t)
	dev := nstest.TAP(t, ns, tapContainer())
	result := make(chan error, 1)
	go func() {
		for {
			if _, err := tunneltest.ReadFrame(dev); err != nil {
				result <- err
				return
			}
		}
	}()
	ns.Close()
	select {
	case err := <-result:
		if !errors.Is(err, tunnel.ErrGone) {
			t.Errorf("ReadFrame = %v, want ErrGone", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no word of the namespace's death within 10 s")
	}
	if err := dev.WriteFrame([][]byte{tunneltest.FrameSpec{}.Frame()}); !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("WriteFrame = %v, want ErrGone", err)
	}
}

// TestNetnsTAPAnswersWithoutAllocation is the whole path through the kernel, of
// questions and of packets.
func TestNetnsTAPAnswersWithoutAllocation(t *testing.T) {
	ns := nstest.NewNS(t)
	cfg := silent
	cfg.MAC = containerMAC
	dev := nstest.TAP(t, ns, cfg)
	peer := newPacketSocket(t, ns, "eth0")
	question := ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "10.88.0.9"))
	const runs = 50
	for range runs + 1 {
		if err := peer.send(append(make([]byte, tunnel.HeaderLen), question...)); err != nil {
			t.Fatal(err)
		}
		if err := peer.WriteFrame([][]byte{tunneltest.FrameSpec{}.Frame()}); err != nil {
			t.Fatal(err)
		}
	}
	into := [][]byte{make([]byte, 128), make([]byte, tunnel.MaxPacket)}
	timer := time.AfterFunc(10*time.Second, func() { dev.Close() })
	defer timer.Stop()
	if n := testing.AllocsPerRun(runs, func() {
		if _, err := dev.ReadFrame(into); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a question and a packet cost %v allocations", n)
	}
	b := make([]byte, 200)
	n, err := peer.file.Read(b)
	if want := "02c0ffee000502756e0000010806"; err != nil || hex.EncodeToString(b[tunnel.HeaderLen:n][:14]) != want {
		t.Errorf("the answer on the wire: % x, %v", b[:n], err)
	}
	if drops := dev.(tunnel.DropCounter).Drops(); len(drops) != 0 {
		t.Errorf("drops %v", drops)
	}
}
