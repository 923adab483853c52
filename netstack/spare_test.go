package netstack_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/lab"
	"github.com/usernet/usernet/netstack"
)

// hostServers are servers of this machine that a container reaches as services of
// its gateway.
func hostServers(t *testing.T, n int, at string, control netstack.ControlFunc) (*world, []*net.TCPListener) {
	t.Helper()
	var services []netstack.HostService
	var all []*net.TCPListener
	for range n {
		ln, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ln.(*net.TCPListener))
		services = append(services, netstack.HostService{Name: "server" + string(rune('a'+len(all))), Target: listenerAddr(ln)})
	}
	w := newWorld(t, func(cfg *netstack.Config) {
		cfg.Host = netstack.Host{Control: control}
		cfg.HostServices = services
	})
	for _, ln := range all {
		t.Cleanup(func() { ln.Close() })
	}
	return w, all
}

func listenerAddr(ln net.Listener) netip.AddrPort { return ln.Addr().(*net.TCPAddr).AddrPort() }

// visit makes a connection to a server and has it carry a few bytes. It returns
// both ends and the inode of the host socket between them.
func (w *world) visit(ln *net.TCPListener) (c *lab.Conn, host *net.TCPConn, inode uint64) {
	w.t.Helper()
	to := netip.AddrPortFrom(gateway4, listenerAddr(ln).Port())
	if listenerAddr(ln).Addr().Is6() {
		to = netip.AddrPortFrom(gateway6, to.Port())
	}
	c = w.c.MustDial(to)
	host, err := ln.AcceptTCP()
	if err != nil {
		w.t.Fatal(err)
	}
	mustWrite(w.t, c, "question")
	mustRead(w.t, host, "question")
	mustWrite(w.t, host, "answer")
	mustRead(w.t, c, "answer")
	var stat unix.Stat_t
	if err := unix.Fstat(socketTo(w.t, host.LocalAddr()), &stat); err != nil {
		w.t.Fatal(err)
	}
	return c, host, stat.Ino
}

// leave ends a connection, the container's end first.
func leave(t *testing.T, c *lab.Conn, host *net.TCPConn) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	mustEnd(t, host)
	host.Close()
	mustEnd(t, c)
	c.Close()
}

func mustEnd(t *testing.T, r io.Reader) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v; want the end", n, err)
	}
}

// The next connection to the same server has the host socket of one that was short
// and ended well, and of no other.
func TestShortConnectionsPassTheirSocketOn(t *testing.T) {
	much := strings.Repeat("x", 70_000)
	for name, test := range map[string]struct {
		at   string
		end  func(t *testing.T, c *lab.Conn, host *net.TCPConn)
		want bool
	}{
		"IPv4": {"127.0.0.1:0", leave, true},
		"IPv6": {"[::1]:0", leave, true},
		"server first": {"127.0.0.1:0", func(t *testing.T, c *lab.Conn, host *net.TCPConn) {
			_ = host.CloseWrite()
			mustEnd(t, c)
			c.Close()
			mustEnd(t, host)
			host.Close()
		}, true},
		"long": {"127.0.0.1:0", func(t *testing.T, c *lab.Conn, host *net.TCPConn) {
			go func() { _, _ = io.WriteString(host, much) }()
			mustRead(t, c, much)
			leave(t, c, host)
		}, false},
		"reset by container": {"127.0.0.1:0", func(t *testing.T, c *lab.Conn, host *net.TCPConn) {
			c.Reset()
			_, _ = host.Read(make([]byte, 1))
			host.Close()
		}, false},
		"reset by server": {"127.0.0.1:0", func(t *testing.T, c *lab.Conn, host *net.TCPConn) {
			_ = host.SetLinger(0)
			host.Close()
			_, _ = c.Read(make([]byte, 1))
			c.Close()
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w, servers := hostServers(t, 1, test.at, nil)
			c, host, first := w.visit(servers[0])
			test.end(t, c, host)
			w.ended(1)
			c, host, second := w.visit(servers[0])
			leave(t, c, host)
			if passed := first == second; passed != test.want {
				t.Errorf("passed on: %v, want %v", passed, test.want)
			}
		})
	}
}

// Sequence numbers go on with a socket: they are for the one server alone.
func TestSocketsAreNotPassedOnToAnotherServer(t *testing.T) {
	w, servers := hostServers(t, 2, "127.0.0.1:0", nil)
	c, host, first := w.visit(servers[0])
	leave(t, c, host)
	w.ended(1)
	c, host, second := w.visit(servers[1])
	leave(t, c, host)
	if first == second {
		t.Error("a socket was in connections to two servers")
	}
}

// What an embedding program sets on a socket is for one connection.
func TestSocketsThatAProgramPreparesAreNotPassedOn(t *testing.T) {
	calls := 0
	w, servers := hostServers(t, 1, "127.0.0.1:0", func(string, string, syscall.RawConn) error { calls++; return nil })
	c, host, first := w.visit(servers[0])
	leave(t, c, host)
	w.ended(1)
	c, host, second := w.visit(servers[0])
	leave(t, c, host)
	if first == second || calls != 2 {
		t.Errorf("passed on: %v, prepared %d times", first == second, calls)
	}
}

// Two hundred connections, several at a time, of which each carries its own bytes.
func TestPassedOnSocketsCarryTheirOwnBytes(t *testing.T) {
	w, servers := hostServers(t, 1, "127.0.0.1:0", nil)
	go echoAll(servers[0])
	to := netip.AddrPortFrom(gateway4, listenerAddr(servers[0]).Port())
	failed := make(chan error)
	const clients, times = 8, 25
	for i := range clients {
		go func() {
			var err error
			for j := 0; j < times && err == nil; j++ {
				err = echoed(w.c, to, strings.Repeat(string(rune('a'+i)), 1+j*100))
			}
			failed <- err
		}()
	}
	for range clients {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	w.ended(clients * times)
}

// echoAll answers each connection with what comes, once that has ended.
func echoAll(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			all, _ := io.ReadAll(c)
			_, _ = c.Write(all)
		}()
	}
}

// echoed sends bytes and the end, and compares what comes back.
func echoed(c *lab.Container, to netip.AddrPort, text string) error {
	conn, err := c.Dial(to)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	back, err := io.ReadAll(conn)
	if err == nil && string(back) != text {
		err = fmt.Errorf("sent %d bytes of %c, %d came back: %.20q", len(text), text[0], len(back), back)
	}
	return err
}

// A server that is gone refuses the next connection, with or without a socket of
// the last one, and one that has come back takes it.
func TestPassedOnSocketsAreRefused(t *testing.T) {
	w, servers := hostServers(t, 1, "127.0.0.1:0", nil)
	at := servers[0].Addr().String()
	to := netip.AddrPortFrom(gateway4, listenerAddr(servers[0]).Port())
	c, host, _ := w.visit(servers[0])
	leave(t, c, host)
	w.ended(1)
	servers[0].Close()
	for range 3 {
		if c, err := w.c.Dial(to); err == nil {
			c.Close()
			t.Fatal("connected to a server that is gone")
		}
	}
	again, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for range 2 {
		c, host, _ := w.visit(again.(*net.TCPListener))
		leave(t, c, host)
	}
}
