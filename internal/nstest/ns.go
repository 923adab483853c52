package nstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/tunnel"
)

// NewNS makes a network namespace with its loopback up, closed at the test's
// end. It calls Require.
func NewNS(t testing.TB) *netns.Handle {
	t.Helper()
	Require(t)
	h, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() }) // a test may have closed it: that kills the namespace
	In(t, h, netns.LoopbackUp)
	return h
}

// In runs fn in ns and fails the test on error. fn runs on another goroutine:
// it returns errors rather than call t.Fatal.
func In(t testing.TB, ns *netns.Handle, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// Path mounts ns at a path of the test's own, for programs that take a
// namespace by path, and returns it. The mount keeps the namespace alive.
func Path(t testing.TB, ns *netns.Handle) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	source := fmt.Sprintf("/proc/self/fd/%d", fd(t, ns))
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind %v to %s: %v", ns, path, err)
	}
	t.Cleanup(func() {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if err != nil && err != unix.EINVAL && err != unix.ENOENT { // a test has ended the container
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	return path
}

func fd(t testing.TB, ns *netns.Handle) int {
	t.Helper()
	conn, err := ns.File().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := -1
	if err := conn.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		t.Fatal(err)
	}
	return n
}

// names counts the interfaces that helpers have made, for unique names.
var names atomic.Uint32

func uniqueName(prefix string) string {
	return fmt.Sprintf("%s%d-%d", prefix, os.Getpid(), names.Add(1))
}

// Veth joins two namespaces by a virtual cable and returns the names of its
// ends. cidrs are the addresses of the ends in turn, a's first:
//
//	Veth(t, a, b, "10.77.0.1/24", "10.77.0.2/24", "fd77::1/64", "fd77::2/64")
//
// Both ends are up; IPv6 addresses are usable at once.
func Veth(t testing.TB, a, b *netns.Handle, cidrs ...string) (nameA, nameB string) {
	t.Helper()
	nameA, nameB = uniqueName("a"), uniqueName("b")
	In(t, a, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: nameA},
			PeerName:      nameB,
			PeerNamespace: netlink.NsFd(fd(t, b)),
		})
	})
	var addrs [2][]netip.Prefix
	for i, c := range cidrs {
		addrs[i%2] = append(addrs[i%2], netip.MustParsePrefix(c))
	}
	In(t, a, func() error { return plugIn(nameA, addrs[0]) })
	In(t, b, func() error { return plugIn(nameB, addrs[1]) })
	waitLinkLocal(t, a, nameA)
	waitLinkLocal(t, b, nameB)
	return nameA, nameB
}

// waitLinkLocal waits until the kernel has made the link-local address of an
// interface, which it does a moment after both ends are up.
func waitLinkLocal(t testing.TB, ns *netns.Handle, name string) {
	t.Helper()
	WaitFor(t, 10*time.Second, func() (ready bool) {
		In(t, ns, func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
			if errors.Is(err, netlink.ErrDumpInterrupted) {
				return nil // asked again
			}
			for _, a := range addrs {
				if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
					ready = true
				}
			}
			return err
		})
		return ready
	})
}

// plugIn configures one end of a cable. Unlike netns.Configure it leaves the
// kernel to make a link-local address, without which Ethernet has no neighbour
// discovery for what it forwards, and only spares it the search for duplicates.
func plugIn(name string, addrs []netip.Prefix) error {
	if err := netns.SetSysctl("ipv6/conf/"+name+"/accept_dad", "0"); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, p := range addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %v to %s: %w", p, name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// Route adds a route to dst ("10.0.0.0/8", "::/0") through the router via.
func Route(t testing.TB, ns *netns.Handle, dst, via string) {
	t.Helper()
	p := netip.MustParsePrefix(dst)
	route := &netlink.Route{
		Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		Gw:  netip.MustParseAddr(via).AsSlice(),
	}
	In(t, ns, func() error { return netlink.RouteAdd(route) })
}

// TUN makes a TUN in the test's own namespace, moves it into ns as cfg says and
// opens it: the switch's end of a container's interface. The device is closed at
// the test's end.
func TUN(t testing.TB, ns *netns.Handle, cfg netns.Interface) tunnel.Device {
	t.Helper()
	dev, err := tunnel.Open(TUNFile(t, ns, cfg), cfg.MTU)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

// TUNFile is TUN for tests that want the descriptor. It is closed at the test's
// end.
func TUNFile(t testing.TB, ns *netns.Handle, cfg netns.Interface) *os.File {
	t.Helper()
	return file(t, ns, cfg, tunnel.Options{MTU: cfg.MTU})
}

// TAP is [TUN] with a layer-2 device, of the address cfg.MAC or a random one.
// The device answers for every address but those of cfg.
func TAP(t testing.TB, ns *netns.Handle, cfg netns.Interface) tunnel.Device {
	t.Helper()
	var own []netip.Addr
	for _, p := range cfg.Addrs {
		own = append(own, p.Addr())
	}
	dev, err := tunnel.OpenTAP(TAPFile(t, ns, cfg), cfg.MTU, tunnel.TAPConfig{Addrs: own})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

// TAPFile is TAP for tests that want the descriptor. It is closed at the test's
// end.
func TAPFile(t testing.TB, ns *netns.Handle, cfg netns.Interface) *os.File {
	t.Helper()
	return file(t, ns, cfg, tunnel.Options{TAP: true, MAC: cfg.MAC, MTU: cfg.MTU})
}

func file(t testing.TB, ns *netns.Handle, cfg netns.Interface, o tunnel.Options) *os.File {
	t.Helper()
	f, err := tunnel.Create(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	name, err := tunnel.Name(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.MoveIn(ns, name, cfg); err != nil {
		t.Fatal(err)
	}
	return f
}

// Exec runs a command in ns and returns what it printed on both outputs. The
// test fails unless the command succeeds.
func Exec(t testing.TB, ns *netns.Handle, argv ...string) string {
	t.Helper()
	out, err := TryExec(t, ns, argv...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return out
}

// TryExec is Exec for commands that may fail.
func TryExec(t testing.TB, ns *netns.Handle, argv ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Do(cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// Start starts cmd in ns. At the test's end it is killed if it still runs, and
// waited for. cmd must have no Pdeathsig: the thread that starts it ends at once.
func Start(t testing.TB, ns *netns.Handle, cmd *exec.Cmd) {
	t.Helper()
	In(t, ns, cmd.Start)
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// Listen listens in ns, on an address without names in it. The listener is
// closed at the test's end.
func Listen(t testing.TB, ns *netns.Handle, network, address string) net.Listener {
	t.Helper()
	var l net.Listener
	In(t, ns, func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// ListenPacket opens a packet socket in ns, closed at the test's end.
func ListenPacket(t testing.TB, ns *netns.Handle, network, address string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	In(t, ns, func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// Dial connects from ns to an address without names in it, in at most ten
// seconds. The caller owns the connection.
func Dial(t testing.TB, ns *netns.Handle, network, address string) (net.Conn, error) {
	t.Helper()
	return DialContext(t.Context(), ns, network, address)
}

// DialContext is Dial with a context of the caller's.
func DialContext(ctx context.Context, ns *netns.Handle, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 10 * time.Second}
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// WaitFor waits until cond is true and fails the test when that takes longer
// than timeout.
func WaitFor(t testing.TB, timeout time.Duration, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Fatalf("condition not met within %v", timeout)
		case <-tick.C:
		}
	}
}
