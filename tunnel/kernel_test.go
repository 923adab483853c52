package tunnel_test

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

// These tests hold what the design believes of the kernel.

// TestNetnsTunMovedReportsNamespaceDeath: a TUN made outside and moved in ends
// with the namespace, and its holder learns of it at once.
func TestNetnsTunMovedReportsNamespaceDeath(t *testing.T) {
	ns := nstest.NewNS(t)
	dev := nstest.TUN(t, ns, silent)
	result := make(chan error, 1)
	go func() {
		_, err := tunneltest.ReadFrame(dev)
		result <- err
	}()
	ns.Close() // nothing else holds the namespace
	select {
	case err := <-result:
		if !errors.Is(err, tunnel.ErrGone) {
			t.Errorf("ReadFrame = %v, want ErrGone", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no word of the namespace's death within 10 s")
	}
	if _, err := tunneltest.ReadFrame(dev); !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("next ReadFrame = %v, want ErrGone", err)
	}
	if err := dev.WriteFrame([][]byte{tunneltest.FrameSpec{}.Frame()}); !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("WriteFrame = %v, want ErrGone", err)
	}
	if err := dev.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
}

// TestNetnsTunOpenedInsidePinsNamespace: a TUN made inside keeps a namespace
// alive that everybody else has left, without a sign. It is why Create is called
// outside.
func TestNetnsTunOpenedInsidePinsNamespace(t *testing.T) {
	ns, other := nstest.NewNS(t), nstest.NewNS(t)
	_, pinned := nstest.Veth(t, ns, other) // its end in other goes when ns dies
	f := createIn(t, ns, tunnel.Options{Name: "eth0"})
	ns.Close()
	// The kernel clears namespaces away in the order of their deaths: when one
	// that died later is gone, the first would be.
	later := nstest.NewNS(t)
	_, control := nstest.Veth(t, later, other)
	later.Close()
	nstest.WaitFor(t, 10*time.Second, func() bool {
		_, there := interfaces(t, other)[control]
		return !there
	})
	if _, there := interfaces(t, other)[pinned]; !there {
		t.Fatal("the namespace died although a TUN made inside is open")
	}
	if err := tunnel.Validate(f); err != nil {
		t.Errorf("TUN made inside: %v", err)
	}
	f.Close()
	nstest.WaitFor(t, 10*time.Second, func() bool { return len(interfaces(t, other)) == 0 })
}

// TestNetnsTunMovedDoesNotPinNamespace is the same with a TUN moved in.
func TestNetnsTunMovedDoesNotPinNamespace(t *testing.T) {
	ns := nstest.NewNS(t)
	other := nstest.NewNS(t)
	nstest.Veth(t, ns, other)
	f := nstest.TUNFile(t, ns, silent)
	ns.Close()
	nstest.WaitFor(t, 10*time.Second, func() bool { return len(interfaces(t, other)) == 0 })
	var descriptor *tunnel.DescriptorError
	if err := tunnel.Validate(f); !errors.As(err, &descriptor) {
		t.Errorf("Validate = %v, want a DescriptorError: the interface is gone", err)
	}
	if _, err := tunnel.NetnsInode(f); !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("NetnsInode = %v, want ErrGone", err)
	}
}

func TestNetnsDeletedInterfaceIsGone(t *testing.T) {
	ns := nstest.NewNS(t)
	dev := nstest.TUN(t, ns, silent)
	nstest.In(t, ns, func() error { return netns.DeleteLink("eth0") })
	if _, err := tunneltest.ReadFrame(dev); !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("ReadFrame = %v, want ErrGone", err)
	}
}

// TestNetnsDownInterfaceIsNotGone: a container may take its interface down and
// up again.
func TestNetnsDownInterfaceIsNotGone(t *testing.T) {
	ns := nstest.NewNS(t)
	dev := nstest.TUN(t, ns, silent)
	frame := tunneltest.FrameSpec{}.Frame()
	nstest.Exec(t, ns, "ip", "link", "set", "eth0", "down")
	if err := dev.WriteFrame([][]byte{frame}); !errors.Is(err, tunnel.ErrDown) {
		t.Errorf("WriteFrame to a downed interface = %v, want ErrDown", err)
	}
	nstest.Exec(t, ns, "ip", "link", "set", "eth0", "up")
	if err := dev.WriteFrame([][]byte{frame}); err != nil {
		t.Errorf("WriteFrame when it is up again = %v", err)
	}
	peer := newPacketSocket(t, ns, "eth0")
	if err := peer.WriteFrame([][]byte{frame}); err != nil {
		t.Fatal(err)
	}
	readWithin(t, dev, 10*time.Second)
}

func TestNetnsKernelRefusesMalformedFrames(t *testing.T) {
	ns := nstest.NewNS(t)
	dev := nstest.TUN(t, ns, silent)
	notIP := tunneltest.FrameSpec{}.Frame()
	notIP[tunnel.HeaderLen] = 0x35
	badCsum := tunneltest.FrameSpec{TCP: true, Partial: true}.Frame()
	badCsum[6], badCsum[7] = 0xff, 0xff
	for name, frame := range map[string][]byte{"not IP": notIP, "csum_start outside": badCsum} {
		if err := dev.WriteFrame([][]byte{frame}); !errors.Is(err, tunnel.ErrFrame) {
			t.Errorf("WriteFrame of a frame with %s = %v, want ErrFrame", name, err)
		}
	}
}

// TestNetnsTunInodeFollowsTheInterface: and SIOCGSKNS does not, which is why
// NetnsInode does not use it.
func TestNetnsTunInodeFollowsTheInterface(t *testing.T) {
	made, moved := nstest.NewNS(t), nstest.NewNS(t)
	f := createIn(t, made, tunnel.Options{})
	name, err := tunnel.Name(f)
	if err != nil {
		t.Fatal(err)
	}
	check := func(want *netns.Handle) {
		t.Helper()
		if inode, err := tunnel.NetnsInode(f); err != nil || inode != want.Inode() {
			t.Errorf("NetnsInode = %d, %v, want %d", inode, err, want.Inode())
		}
	}
	check(made)
	nstest.In(t, made, func() error { return netns.MoveIn(moved, name, silent) })
	check(moved)
	var st unix.Stat_t
	ioctl(t, f, func(fd int) error {
		ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
		if err != nil {
			return err
		}
		defer unix.Close(ns)
		return unix.Fstat(ns, &st)
	})
	if st.Ino != made.Inode() {
		t.Errorf("SIOCGSKNS names %d, want %d where the device was made", st.Ino, made.Inode())
	}
}

// devices are the kinds of interface that a container may have.
var devices = map[string]func(testing.TB, *netns.Handle, netns.Interface) tunnel.Device{
	"TUN": nstest.TUN, "TAP": nstest.TAP,
}

// TestNetnsSuperframesArriveFromARealTCPSender lets the container's own TCP send
// and takes its segments as they come.
func TestNetnsSuperframesArriveFromARealTCPSender(t *testing.T) {
	for name, family := range map[string]struct {
		network, addr, peer, route string
		gso                        uint8
	}{
		"IPv4": {"tcp4", "10.88.0.2/24", "10.88.0.9:80", "10.88.0.0/24", tunnel.GSOTCPv4},
		"IPv6": {"tcp6", "fd88::2/64", "[fd88::9]:80", "fd88::/64", tunnel.GSOTCPv6},
	} {
		for kind, open := range devices {
			t.Run(name+"/"+kind, func(t *testing.T) {
				// Two containers, each behind a device, and this test in
				// between copying frames verbatim: the shortest path from real
				// TCP to real TCP.
				sender, receiver := nstest.NewNS(t), nstest.NewNS(t)
				devS := open(t, sender, netns.Interface{Name: "eth0", MTU: 1500, Addrs: []netip.Prefix{netip.MustParsePrefix(family.addr)}})
				at := netip.MustParseAddrPort(family.peer)
				bits := netip.MustParsePrefix(family.route).Bits()
				devR := open(t, receiver, netns.Interface{Name: "eth0", MTU: 1500, Addrs: []netip.Prefix{netip.PrefixFrom(at.Addr(), bits)}})
				counts := make(chan frameCounts, 2)
				go copyFrames(devS, devR, family.gso, counts)
				go copyFrames(devR, devS, family.gso, make(chan frameCounts, 1))

				transfer(t, sender, receiver, family.network, family.peer, 16<<20)
				devS.Close()
				devR.Close()
				checkCounts(t, <-counts)
			})
		}
	}
}

// checkCounts holds what came of 16 MiB of TCP against the 11,586 frames of
// packets of 1448 bytes that it would be without superframes.
func checkCounts(t *testing.T, got frameCounts) {
	t.Helper()
	t.Logf("%+v", got)
	if got.super == 0 || got.largest < 30_000 || got.frames > 4000 {
		t.Errorf("%+v: want mostly superframes of tens of kilobytes", got)
	}
	if got.malformed != 0 {
		t.Errorf("%d frames of a real TCP did not pass Header.Check", got.malformed)
	}
}

// transfer sends total bytes by TCP from one namespace to an address of the
// other.
func transfer(t *testing.T, sender, receiver *netns.Handle, network, addr string, total int64) {
	t.Helper()
	l := nstest.Listen(t, receiver, network, addr)
	received := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			received <- -1
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		received <- n
	}()
	c, err := nstest.Dial(t, sender, network, addr)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Write(make([]byte, total))
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	select {
	case n := <-received:
		if n != total {
			t.Errorf("received %d bytes, want %d", n, total)
		}
	case <-time.After(30 * time.Second):
		t.Error("transfer not over within 30 s")
	}
}

// frameCounts is what copyFrames saw.
type frameCounts struct {
	frames, super, malformed, largest int
}

// copyFrames copies from one device to another until either ends.
func copyFrames(from, to tunnel.Device, gso uint8, result chan<- frameCounts) {
	var c frameCounts
	defer func() { result <- c }()
	b := make([]byte, tunnel.MaxFrame)
	for {
		n, err := from.ReadFrame([][]byte{b})
		if err != nil {
			return
		}
		var hdr tunnel.Header
		hdr.Decode(b)
		var p packet.Header
		if p.Parse(b[tunnel.HeaderLen:n], n-tunnel.HeaderLen) != packet.FaultNone || hdr.Check(&p) != nil {
			c.malformed++
		}
		c.frames++
		c.largest = max(c.largest, n)
		if hdr.GSOType == gso {
			c.super++
		}
		if err := to.WriteFrame([][]byte{b[:n]}); err != nil && !errors.Is(err, tunnel.ErrFull) {
			return
		}
	}
}

// TestNetnsUDPSuperframesArrive: UDP_SEGMENT reaches the TUN unsplit where the
// kernel has USO (Linux 6.2).
func TestNetnsUDPSuperframesArrive(t *testing.T) {
	for kind, open := range devices {
		t.Run(kind, func(t *testing.T) { testUDPSuperframes(t, open) })
	}
}

func testUDPSuperframes(t *testing.T, open func(testing.TB, *netns.Handle, netns.Interface) tunnel.Device) {
	ns := nstest.NewNS(t)
	dev := open(t, ns, netns.Interface{
		Name: "eth0", MTU: 1500,
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.88.0.2/24"), netip.MustParsePrefix("fd88::2/64")},
	})
	for network, to := range map[string]string{"udp4": "10.88.0.9:53", "udp6": "[fd88::9]:53"} {
		c, err := nstest.Dial(t, ns, network, to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var result error
		raw.Control(func(fd uintptr) {
			result = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000)
		})
		if result != nil {
			t.Fatal(os.NewSyscallError("setsockopt UDP_SEGMENT", result))
		}
		if _, err := c.Write(tunneltest.Payload(10_500, 1)); err != nil {
			t.Fatal(err)
		}
		var frame []byte
		var hdr tunnel.Header
		// A TAP's kernel says more than it is asked for: its groups.
		for frame == nil || frame[tunnel.HeaderLen]>>4 == 6 && frame[tunnel.HeaderLen+6] != packet.ProtoUDP {
			frame = readWithin(t, dev, 10*time.Second)
		}
		hdr.Decode(frame)
		if hdr.GSOType != tunnel.GSOUDPL4 || hdr.GSOSize != 1000 || hdr.Flags != tunnel.FlagNeedsCsum {
			t.Errorf("%s: header %+v, want a UDP superframe of 1000-byte segments", network, hdr)
		}
		if packets, err := tunneltest.Packets(frame); err != nil || len(packets) != 11 {
			t.Errorf("%s: %d packets, %v, want 11", network, len(packets), err)
		}
	}
}
