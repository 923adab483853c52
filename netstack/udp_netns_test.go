package netstack

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// outsideWorld is a host with a way out, all of it namespaces of the test:
//
//	container eth0 -TUN- this process, 10.77.0.1 - 10.77.0.2 router 10.78.0.1 - 10.78.0.2 server
//
// and the same with fd77:: and fd78::. The process is in a namespace of its own
// because its sockets are where it is.
type outsideWorld struct {
	*harness
	router, server *netns.Handle
	cable          [2]string // the interfaces of router and server toward each other
	c              *container
}

// ownNamespace runs the calling test again, in a process of its own in a network
// namespace of its own; true in that process.
func ownNamespace(t *testing.T) bool {
	t.Helper()
	nstest.Require(t)
	const inside = "USERNET_TEST_NETNS"
	if os.Getenv(inside) == t.Name() {
		if err := netns.LoopbackUp(); err != nil {
			t.Fatal(err)
		}
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("in a namespace of its own: %v\n%s", err, out)
	} else if testing.Verbose() {
		t.Logf("in a namespace of its own:\n%s", out)
	}
	return false
}

func sysctl(t *testing.T, ns *netns.Handle, name, value string) {
	t.Helper()
	nstest.In(t, ns, func() error {
		return os.WriteFile(filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/")), []byte(value), 0)
	})
}

func newOutsideWorld(t *testing.T, change func(*Config)) *outsideWorld {
	t.Helper()
	host, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	w := &outsideWorld{router: nstest.NewNS(t), server: nstest.NewNS(t)}
	nstest.Veth(t, host, w.router, "10.77.0.1/24", "10.77.0.2/24", "fd77::1/64", "fd77::2/64")
	w.cable[0], w.cable[1] = nstest.Veth(t, w.router, w.server, "10.78.0.1/24", "10.78.0.2/24", "fd78::1/64", "fd78::2/64")
	sysctl(t, w.router, "net.ipv4.ip_forward", "1")
	sysctl(t, w.router, "net.ipv6.conf.all.forwarding", "1")
	sysctl(t, w.router, "net.ipv4.icmp_ratelimit", "0")
	sysctl(t, w.router, "net.ipv6.icmp.ratelimit", "0")
	sysctl(t, w.server, "net.ipv4.icmp_ratelimit", "0")
	sysctl(t, w.server, "net.ipv6.icmp.ratelimit", "0")
	for _, r := range []struct {
		ns       *netns.Handle
		dst, via string
	}{
		{host, "10.78.0.0/24", "10.77.0.2"}, {host, "fd78::/64", "fd77::2"},
		{w.server, "10.77.0.0/24", "10.78.0.1"}, {w.server, "fd77::/64", "fd78::1"},
	} {
		nstest.Route(t, r.ns, r.dst, r.via)
	}
	sysctl(t, host, "net.ipv4.ping_group_range", "0 2147483647")
	w.harness = newHarness(t, change)
	w.c = w.container("c", 2, testMTU)
	// The kernel begins to use a new interface for IPv6 on a work queue of its
	// own, which on a busy machine takes its time.
	for _, v4 := range []bool{true, false} {
		waitForPing(t, host, serverAddr(v4))
		waitForPing(t, w.c.ns, w.s.gateway(v4))
	}
	return w
}

func waitForPing(t *testing.T, from *netns.Handle, to netip.Addr) {
	t.Helper()
	nstest.WaitFor(t, 10*time.Second, func() bool {
		_, err := nstest.TryExec(t, from, "ping", "-n", "-c", "1", "-W", "1", to.String())
		return err == nil
	})
}

// serverAddr is the server as containers address it.
func serverAddr(v4 bool) netip.Addr {
	if v4 {
		return netip.MustParseAddr("10.78.0.2")
	}
	return netip.MustParseAddr("fd78::2")
}

// echoIn answers UDP on a port of a namespace.
func echoIn(t *testing.T, ns *netns.Handle, addr netip.Addr) netip.AddrPort {
	t.Helper()
	pc := nstest.ListenPacket(t, ns, "udp", ap(addr, 0).String())
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

// dialFrom opens a connected UDP socket in a container.
func (c *container) dialUDP(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	conn, err := nstest.Dial(t, c.ns, "udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UDPConn)
}

func TestNetnsUDPOut(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	families(t, func(t *testing.T, v4 bool) {
		server := echoIn(t, w.server, serverAddr(v4))
		conn := w.c.dialUDP(t, server)
		for _, size := range []int{1, 1400, 1472, 9000, 60000} { // the last three in fragments, or nearly
			sent := bytes.Repeat([]byte{byte(size)}, size)
			if _, err := conn.Write(sent); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			buf := make([]byte, 65536)
			n, err := conn.Read(buf)
			if err != nil || !bytes.Equal(buf[:n], sent) {
				t.Fatalf("%d bytes came back as %d, %v; drops %v", size, n, err, w.c.link.Stats().Drops)
			}
		}
	})
	if d := w.c.link.Stats().Drops; d["host_send"]+d["unsolicited"]+d["checksum"]+d["too_big"] != 0 {
		t.Errorf("drops %v", d)
	}
}

// Datagrams that a program hands over many at a time cross as superframes and
// arrive as they were.
func TestNetnsUDPSegments(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	families(t, func(t *testing.T, v4 bool) {
		server := echoIn(t, w.server, serverAddr(v4))
		conn := w.c.dialUDP(t, server)
		const segment, count = 1200, 30
		sent := make([]byte, segment*count)
		for i := range sent {
			sent[i] = byte(i / segment)
		}
		oob := make([]byte, unix.CmsgSpace(2))
		var control controlSpace
		control.put(0, unix.SOL_UDP, unix.UDP_SEGMENT, segment, 2)
		for i := range oob {
			oob[i] = byte(control[i/8] >> (8 * (i % 8)))
		}
		before := w.c.link.Stats().FromContainer.Packets
		if _, _, err := conn.WriteMsgUDP(sent, oob, nil); err != nil {
			t.Fatal(err)
		}
		seen := map[byte]bool{}
		for range count {
			buf := make([]byte, 65536)
			n, err := conn.Read(buf)
			if err != nil || n != segment || seen[buf[0]] {
				t.Fatalf("datagram of %d bytes, %v, after %d; drops %v", n, err, len(seen), w.c.link.Stats().Drops)
			}
			seen[buf[0]] = true
		}
		if n := w.c.link.Stats().FromContainer.Packets - before; n > count/2 {
			t.Errorf("%d frames for %d datagrams: they did not cross as superframes", n, count)
		}
	})
}

// The traffic class, ECN with it, survives both ways: QUIC relies on it.
func TestNetnsUDPTrafficClass(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	families(t, func(t *testing.T, v4 bool) {
		server := nstest.ListenPacket(t, w.server, "udp", ap(serverAddr(v4), 0).String()).(*net.UDPConn)
		conn := w.c.dialUDP(t, server.LocalAddr().(*net.UDPAddr).AddrPort())
		set := func(c *net.UDPConn, class int) {
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) {
				setOptions(fd, udpOptions(v4))
				setOptions(fd, []option{{unix.SOL_IP, unix.IP_TOS, class}, {unix.SOL_IPV6, unix.IPV6_TCLASS, class}})
			}); err != nil {
				t.Fatal(err)
			}
		}
		got := func(c *net.UDPConn) (class int, from *net.UDPAddr) {
			_ = c.SetReadDeadline(time.Now().Add(testTimeout))
			oob := make([]byte, 256)
			_, n, _, from, err := c.ReadMsgUDP(make([]byte, 100), oob)
			if err != nil {
				t.Fatal(err)
			}
			messages, err := unix.ParseSocketControlMessage(oob[:n])
			if err != nil {
				t.Fatal(err)
			}
			var in natInput
			for _, m := range messages {
				in.meta(m.Header.Level, m.Header.Type, m.Data)
			}
			return int(in.tos), from
		}
		set(conn, 0xb9) // EF, ECT(1)
		set(server, 0x2a)
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		class, from := got(server)
		if class != 0xb9 {
			t.Errorf("server sees class %#x, want 0xb9", class)
		}
		if _, err := server.WriteTo([]byte("y"), from); err != nil {
			t.Fatal(err)
		}
		if class, _ := got(conn); class != 0x2a {
			t.Errorf("container sees class %#x, want 0x2a", class)
		}
	})
}

func TestNetnsUDPRefusedAndUnreachable(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	families(t, func(t *testing.T, v4 bool) {
		for target, want := range map[netip.AddrPort]error{
			ap(serverAddr(v4), 9):               syscall.ECONNREFUSED,
			ap(serverAddr(v4).Next().Next(), 9): syscall.EHOSTUNREACH, // nobody answers the router's neighbour request
			ap(outside(v4), 9):                  syscall.ENETUNREACH,  // the host has no route
		} {
			conn := w.c.dialUDP(t, target)
			// Without these a socket hears of closed ports only.
			raw, err := conn.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) { setOptions(fd, udpOptions(v4)) }); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte("anybody?")); err != nil {
				t.Fatal(err)
			}
			_, err = conn.Read(make([]byte, 1))
			isErr(t, err, want)
		}
	})
}

// The container learns the MTU of a path that narrows behind the first router.
func TestNetnsUDPPathMTU(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	nstest.Exec(t, w.router, "ip", "link", "set", w.cable[0], "mtu", "1300")
	nstest.Exec(t, w.server, "ip", "link", "set", w.cable[1], "mtu", "1300")
	families(t, func(t *testing.T, v4 bool) {
		server := echoIn(t, w.server, serverAddr(v4))
		conn := w.c.dialUDP(t, server)
		payload := make([]byte, 1400)
		buf := make([]byte, 2000)
		for try := 0; ; try++ {
			_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
			_, werr := conn.Write(payload)
			n, err := conn.Read(buf)
			if werr == nil && err == nil && n == len(payload) {
				break // the container's kernel fragments now
			}
			if try > 10 {
				t.Fatalf("no datagram of 1400 bytes got through: %v, %v; drops %v", werr, err, w.c.link.Stats().Drops)
			}
		}
		route := nstest.Exec(t, w.c.ns, "ip", "route", "get", server.Addr().String())
		if !strings.Contains(route, "mtu 1300") {
			t.Errorf("the container's kernel did not learn the path's MTU: %s", route)
		}
	})
}

// A peer that answers from another port is heard, one from another address is
// not.
func TestNetnsUDPFiltering(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	families(t, func(t *testing.T, v4 bool) {
		server := nstest.ListenPacket(t, w.server, "udp", ap(serverAddr(v4), 0).String())
		other := nstest.ListenPacket(t, w.server, "udp", ap(serverAddr(v4), 0).String())
		router := netip.MustParseAddr("10.77.0.2")
		if !v4 {
			router = netip.MustParseAddr("fd77::2")
		}
		stranger := nstest.ListenPacket(t, w.router, "udp", ap(router, 0).String())
		conn := nstest.ListenPacket(t, w.c.ns, "udp", ap(map[bool]netip.Addr{true: w.c.v4, false: w.c.v6}[v4], 0).String())
		if _, err := conn.WriteTo([]byte("hello"), server.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		_, nat, err := server.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		before := w.c.link.Stats().Drops["unsolicited"]
		if _, err := stranger.WriteTo([]byte("let me in"), nat); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { return w.c.link.Stats().Drops["unsolicited"] == before+1 })
		if _, err := other.WriteTo([]byte("other port"), nat); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(testTimeout))
		n, from, err := conn.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "other port" || from.String() != other.LocalAddr().String() {
			t.Errorf("container got %q from %v, %v", buf[:n], from, err)
		}
	})
}

// A container's service sees its clients' own addresses, and they get their
// answers from the address that they asked.
func TestNetnsUDPPublish(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	for _, host := range []string{"0.0.0.0:0", "[::]:0"} {
		v4 := strings.HasPrefix(host, "0")
		p, err := w.s.Publish(PublishConfig{Link: "c", Proto: "udp", Host: netip.MustParseAddrPort(host), Port: 7000})
		if err != nil {
			t.Fatal(err)
		}
		own := map[bool]netip.Addr{true: w.c.v4, false: w.c.v6}[v4]
		service := nstest.ListenPacket(t, w.c.ns, "udp", ap(own, 7000).String())
		public := map[bool]string{true: "10.77.0.1", false: "fd77::1"}[v4]
		client, err := nstest.Dial(t, w.server, "udp", ap(netip.MustParseAddr(public), p.Host().Port()).String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		_ = client.SetDeadline(time.Now().Add(testTimeout))
		_ = service.SetDeadline(time.Now().Add(testTimeout))
		if _, err := client.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, from, err := service.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "ping" || from.String() != client.LocalAddr().String() {
			t.Fatalf("%s: service got %q from %v, %v; want it from %v; drops %v", host, buf[:n], from, err, client.LocalAddr(), w.c.link.Stats().Drops)
		}
		if _, err := service.WriteTo([]byte("pong"), from); err != nil {
			t.Fatal(err)
		}
		if n, err = client.Read(buf); err != nil || string(buf[:n]) != "pong" {
			t.Errorf("%s: client got %q, %v", host, buf[:n], err)
		}
	}
}

func TestNetnsDig(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, func(c *Config) { c.DNS.Upstreams = []netip.AddrPort{upstreamDNS(t, everyName)} })
	w.container("web", 3, testMTU)
	for _, gateway := range []string{"10.88.0.1", "fd00:88::1"} {
		for _, tt := range []struct{ args, want string }{
			{"web.usernet.internal A", "10.88.0.3"},
			{"web AAAA", "fd00:88::3"},
			{"+tcp web A", "10.88.0.3"},
			{"-x 10.88.0.3", "web.usernet.internal."},
			{"example.org A", "192.0.2.99"},
			{"+tcp +bufsize=4096 example.org A", "192.0.2.99"},
		} {
			argv := append([]string{"dig", "+short", "+time=3", "+tries=1", "@" + gateway}, strings.Fields(tt.args)...)
			if got := strings.TrimSpace(nstest.Exec(t, w.c.ns, argv...)); got != tt.want {
				t.Errorf("%s: %q, want %q", strings.Join(argv, " "), got, tt.want)
			}
		}
	}
	if d := w.c.link.Stats().Drops; d["dns_malformed"]+d["dns_limit"] != 0 {
		t.Errorf("drops %v", d)
	}
}

// iperf3 over UDP: a test of endurance rather than of speed, which the benchmarks
// measure.
func TestNetnsUDPIperf(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	for i, args := range []string{"-b 500M", "-b 500M -R", "-b 500M -l 8000"} {
		port := fmt.Sprint(5300 + i)
		server := exec.Command("iperf3", "-s", "-1", "-p", port)
		nstest.Start(t, w.server, server)
		nstest.WaitFor(t, testTimeout, func() bool {
			conn, err := nstest.Dial(t, w.server, "udp", "10.78.0.2:9")
			if err == nil {
				conn.Close()
			}
			out, _ := nstest.TryExec(t, w.server, "ss", "-Hltn", "sport", "=", ":"+port)
			return strings.Contains(out, port)
		})
		argv := append([]string{"iperf3", "-c", "10.78.0.2", "-p", port, "-u", "-t", "1"}, strings.Fields(args)...)
		out := nstest.Exec(t, w.c.ns, argv...)
		t.Logf("%s\n%s\ndrops %v", args, out, w.c.link.Stats().Drops)
		if !strings.Contains(out, "receiver") {
			t.Errorf("%s: no summary", args)
		}
	}
}
