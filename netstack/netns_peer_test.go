package netstack

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
)

// container is a namespace with a real TUN on a harness's switch.
type container struct {
	ns     *netns.Handle
	link   *Link
	v4, v6 netip.Addr
}

func (h *harness) container(name string, n byte, mtu int) *container {
	h.t.Helper()
	c := &container{
		ns: nstest.NewNS(h.t),
		v4: netip.AddrFrom4([4]byte{10, 88, 0, n}), v6: netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x88, 15: n}),
	}
	dev := nstest.TUN(h.t, c.ns, netns.Interface{
		Name: "eth0", MTU: mtu,
		Addrs: []netip.Prefix{netip.PrefixFrom(c.v4, 24), netip.PrefixFrom(c.v6, 64)},
		Routes: []netns.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: h.s.gateway4},
			{Dst: netip.MustParsePrefix("::/0"), Gateway: h.s.gateway6},
		},
	})
	link, err := h.s.Attach(dev, LinkConfig{Name: name, Addrs: []netip.Addr{c.v4, c.v6}, MTU: mtu})
	if err != nil {
		h.t.Fatal(err)
	}
	c.link = link
	return c
}

// transfer sends size random bytes from one container to the other by TCP and
// checks what arrives.
func transfer(t *testing.T, from, to *container, addr netip.Addr, size int) {
	t.Helper()
	ln := nstest.Listen(t, to.ns, "tcp", netip.AddrPortFrom(addr, 0).String())
	sent := make([]byte, size)
	if _, err := rand.Read(sent); err != nil {
		t.Fatal(err)
	}
	conn, err := nstest.Dial(t, from.ns, "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	writeErr := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		writeErr <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("received %d of %d bytes, equal: %v, error %v", len(got), size, bytes.Equal(got, sent), err)
	}
	if err := <-writeErr; err != nil {
		t.Error(err)
	}
}

func TestNetnsContainersReachEachOther(t *testing.T) {
	nstest.Require(t)
	h := newHarness(t, nil)
	a, b := h.container("a", 2, 1500), h.container("b", 3, 1500)
	for _, addr := range []netip.Addr{b.v4, b.v6} {
		if out := nstest.Exec(t, a.ns, "ping", "-n", "-c", "2", "-i", "0.2", addr.String()); !strings.Contains(out, " 0% packet loss") {
			t.Errorf("ping %v: %s", addr, out)
		}
		transfer(t, a, b, addr, 32<<20)
	}
	// The kernels hand over superframes, or forwarding would cost ten times
	// as much: the mean packet is far beyond the MTU.
	for _, f := range h.s.Flows() {
		if f.Proto == "tcp" && f.FromContainer.Bytes/f.FromContainer.Packets < 8*1500 {
			t.Errorf("%d bytes in %d packets: not superframes", f.FromContainer.Bytes, f.FromContainer.Packets)
		}
	}
	if d := a.link.Stats().Drops; d["spoofed_source"]+d["checksum"]+d["virtio_header"] > 0 {
		t.Errorf("drops %v", d)
	}
}

// TestNetnsPeersOfDifferentMTU proves that path MTU discovery works between
// links: the sender's kernel learns the smaller MTU from the switch.
// TestNetnsRunsOfACKsAreOne: what a receiver acknowledges faster than the switch
// passes it on reaches the sender as one acknowledgement, and nothing is missing.
func TestNetnsRunsOfACKsAreOne(t *testing.T) {
	nstest.Require(t)
	h := newHarness(t, nil)
	a, b := h.container("a", 2, 1500), h.container("b", 3, 1500)
	for range 50 {
		transfer(t, a, b, b.v6, 32<<20)
		if b.link.Stats().Drops[DropSuperseded.String()] > 0 {
			return
		}
	}
	t.Error("no acknowledgement was superseded in 50 transfers")
}

func TestNetnsPeersOfDifferentMTU(t *testing.T) {
	nstest.Require(t)
	h := newHarness(t, nil)
	big, small := h.container("big", 2, 9000), h.container("small", 3, 1300)
	for _, addr := range []netip.Addr{small.v4, small.v6} {
		transfer(t, big, small, addr, 4<<20)
		out, err := nstest.TryExec(t, big.ns, "ping", "-n", "-c", "2", "-i", "0.2", "-M", "do", "-s", "2000", addr.String())
		if err == nil {
			t.Errorf("ping of 2,000 bytes crossed an MTU of 1,300: %s", out)
		}
	}
	transfer(t, small, big, big.v4, 4<<20)
}

// TestNetnsBigPingIsFragmented sends what fits no MTU and may be fragmented.
func TestNetnsBigPingIsFragmented(t *testing.T) {
	nstest.Require(t)
	h := newHarness(t, nil)
	a, b := h.container("a", 2, 1500), h.container("b", 3, 1500)
	for _, addr := range []netip.Addr{b.v4, b.v6} {
		out := nstest.Exec(t, a.ns, "ping", "-n", "-c", "2", "-i", "0.2", "-s", "5000", addr.String())
		if !strings.Contains(out, " 0% packet loss") {
			t.Errorf("ping %v: %s", addr, out)
		}
	}
}

func TestNetnsUnknownNeighborIsUnreachable(t *testing.T) {
	nstest.Require(t)
	h := newHarness(t, nil)
	a := h.container("a", 2, 1500)
	for _, addr := range []string{"10.88.0.99", "fd00:88::99"} {
		start := time.Now()
		out, err := nstest.TryExec(t, a.ns, "ping", "-n", "-c", "1", "-W", "5", addr)
		if err == nil || !strings.Contains(strings.ToLower(out), "unreachable") {
			t.Errorf("ping %s: %v: %s", addr, err, out)
		}
		if time.Since(start) > 4*time.Second {
			t.Errorf("ping %s waited for its time-out", addr)
		}
	}
	a.link.Stats()
}

// TestNetnsContainerDeathDetachesItsLink: also while the link waits for its rate.
func TestNetnsContainerDeathDetachesItsLink(t *testing.T) {
	nstest.Require(t)
	for name, limit := range map[string]Bandwidth{
		"unlimited": {},
		"paused":    {FromContainer: Rate{BitsPerSecond: 8, BurstBits: 8}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, nil)
			ns, err := netns.New()
			if err != nil {
				t.Fatal(err)
			}
			dev := nstest.TUN(t, ns, netns.Interface{Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.88.0.2/24")}})
			link, err := h.s.Attach(dev, LinkConfig{Name: "a", Addrs: []netip.Addr{netip.MustParseAddr("10.88.0.2")}, Bandwidth: limit})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = nstest.TryExec(t, ns, "ping", "-n", "-c", "1", "-W", "1", "10.88.0.9")
			ns.Close() // the last reference: the kernel takes namespace and device down
			select {
			case <-link.Done():
				isErr(t, link.Err(), tunnel.ErrGone)
			case <-time.After(2 * time.Second):
				t.Error("link lives on two seconds after its container")
			}
		})
	}
}
