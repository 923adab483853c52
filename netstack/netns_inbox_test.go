package netstack

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/usernet/usernet/internal/nstest"
)

// serve returns a container's connection with a service of the host, and the
// service's end of it.
func serve(t *testing.T, c *container, ln net.Listener, gateway netip.Addr) (client, server *net.TCPConn) {
	t.Helper()
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	conn, err := nstest.Dial(t, c.ns, "tcp", netip.AddrPortFrom(gateway, port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	host, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	for _, end := range []net.Conn{conn, host} {
		if err := end.SetDeadline(time.Now().Add(testTimeout)); err != nil {
			t.Fatal(err)
		}
	}
	return conn.(*net.TCPConn), host.(*net.TCPConn)
}

func hostService(t *testing.T) (*harness, *container, net.Listener) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, func(cfg *Config) {
		cfg.HostServices = []HostService{{Name: "x", Target: ln.Addr().(*net.TCPAddr).AddrPort()}}
	})
	return h, h.container("a", 2, testMTU), ln
}

// pass sends what from writes through the switch.
func pass(t *testing.T, from io.Writer, to io.Reader, what string) {
	t.Helper()
	if _, err := io.WriteString(from, what); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(what))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != what {
		t.Fatalf("%q arrived, %v; want %q", got, err, what)
	}
}

// A connection needs no goroutine of gVisor's from its first segment to its last.
func TestNetnsWorkersNeedNoProcessor(t *testing.T) {
	h, c, ln := hostService(t)
	h.s.tcp.stack.Pause()
	defer h.s.tcp.stack.Resume()
	for version, gateway := range map[string]netip.Addr{"IPv4": h.s.gateway4, "IPv6": h.s.gateway6} {
		t.Run(version, func(t *testing.T) {
			client, server := serve(t, c, ln, gateway)
			for range 3 {
				pass(t, client, server, "question")
				pass(t, server, client, "answer")
			}
			for _, ends := range [][2]*net.TCPConn{{client, server}, {server, client}} {
				if err := ends[0].CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if rest, err := io.ReadAll(ends[1]); err != nil || len(rest) != 0 {
					t.Fatalf("after FIN: %q, %v", rest, err)
				}
			}
			eventually(t, func() bool {
				h.s.tcp.mu.Lock()
				defer h.s.tcp.mu.Unlock()
				return len(h.s.tcp.flows) == 0
			})
		})
	}
}

// A segment that comes while something else holds its endpoint is worked on once
// it does no more; the container need not repeat it.
func TestNetnsSegmentOfHeldEndpoint(t *testing.T) {
	h, c, ln := hostService(t)
	client, server := serve(t, c, ln, h.s.gateway4)
	pass(t, client, server, "first")
	pass(t, server, client, "settled")
	var ep *tcp.Endpoint
	h.s.tcp.mu.Lock()
	for _, f := range h.s.tcp.flows {
		ep = f.(*relay).ep.(*tcp.Endpoint)
	}
	h.s.tcp.mu.Unlock()
	came := func() uint64 { return c.link.Stats().FromContainer.Packets }
	<-time.After(300 * time.Millisecond) // no timer of either end is left that would look after the endpoint
	ep.StopWork()
	before := came()
	if _, err := io.WriteString(client, "second"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return came() > before })
	_ = c.link.worker.loop.Do(func() {}) // the turn of the worker is over
	ep.ResumeWork()
	got := make([]byte, len("second"))
	if _, err := io.ReadFull(server, got); err != nil || string(got) != "second" {
		t.Fatalf("%q arrived, %v", got, err)
	}
	if n := came() - before; n != 1 {
		t.Errorf("%d packets of the container instead of 1", n)
	}
}
