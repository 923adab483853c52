package netstack_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/refs"

	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/netstack"
)

// pipeConn is a host side that is no socket, as a hook may return it.
type pipeConn struct {
	net.Conn
	closedWrite chan struct{}
}

func (c pipeConn) CloseWrite() error { close(c.closedWrite); return nil }

// A host side without descriptor is pumped as well, if less well.
func TestTCPHostSideWithoutSocket(t *testing.T) {
	w := newWorld(t, nil)
	near, far := net.Pipe()
	ended := make(chan struct{})
	w.hook.set(func(context.Context, string, string, netstack.ControlFunc) (net.Conn, error) {
		return pipeConn{near, ended}, nil
	})
	c := w.c.MustDial(netip.AddrPortFrom(outside4, 80))
	defer c.Close()
	mustWrite(t, c, "up")
	mustRead(t, far, "up")
	go io.WriteString(far, "down") // a pipe takes it only when it is read
	mustRead(t, c, "down")
	c.CloseWrite()
	select {
	case <-ended:
	case <-time.After(testTimeout):
		t.Error("the half-close did not reach the host side")
	}
	far.Close()
	if f := w.ended(1)[0]; f.FromContainer.Bytes != 2 || f.ToContainer.Bytes != 4 || f.Reason != "" {
		t.Errorf("flow %+v, want 2 and 4 bytes and no reason", f)
	}
}

// DNS over TCP is answered by the gateway itself.
func TestTCPResolver(t *testing.T) {
	w := newWorld(t, nil)
	for _, gw := range []netip.Addr{gateway4, gateway6} {
		c := w.c.MustDial(netip.AddrPortFrom(gw, 53))
		co := &dns.Conn{Conn: c}
		c.SetDeadline(time.Now().Add(testTimeout))
		q := new(dns.Msg).SetQuestion("web.usernet.internal.", dns.TypeA)
		for range 2 { // RFC 7766: more than one query on a connection
			if err := co.WriteMsg(q); err != nil {
				t.Fatal(err)
			}
			a, err := co.ReadMsg()
			if err != nil || len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != container4.String() {
				t.Fatalf("answer %v, %v; want %v", a, err, container4)
			}
		}
		c.Close()
	}
	for _, f := range w.ended(2) {
		if f.Direction != netstack.FlowService || f.Verdict != netstack.FlowForwarded {
			t.Errorf("flow %s %s %q, want a service's", f.Direction, f.Verdict, f.Reason)
		}
	}
}

// The established path, TUN to host socket and back, allocates next to nothing
// per frame: what is left is gVisor's own and the pools' misses.
func TestNetnsEstablishedPathAllocations(t *testing.T) {
	requireTools(t, "iperf3")
	nstest.Require(t)
	refs.SetLeakMode(refs.NoLeakChecking) // its map allocates
	defer refs.SetLeakMode(refs.LeaksPanic)
	t.Run("iperf3", func(t *testing.T) {
		w := newRealWorld(t)
		w.startIperf(t, serverAddr4)
		for _, args := range [][]string{{}, {"-R"}} {
			before, frames := measure(w)
			argv := append([]string{"iperf3", "-c", serverAddr4, "-t", "2"}, args...)
			nstest.Exec(t, w.container, argv...)
			after, framesAfter := measure(w)
			n := float64(framesAfter - frames)
			allocs, bytes := float64(after.Mallocs-before.Mallocs)/n, float64(after.TotalAlloc-before.TotalAlloc)/n
			t.Logf("iperf3 %v: %.3f allocations and %.0f bytes per frame of %.0f", args, allocs, bytes, n)
			if allocs > 1 {
				t.Errorf("iperf3 %v: %.3f allocations per frame, want fewer than 1", args, allocs)
			}
		}
	})
}

func measure(w *realWorld) (m runtime.MemStats, frames uint64) {
	runtime.ReadMemStats(&m)
	st := w.s.Stats()
	return m, st.FromContainer.Packets + st.ToContainer.Packets
}

// startIperf starts a server in the outside.
func (w *realWorld) startIperf(t *testing.T, server string) {
	t.Helper()
	srv := exec.Command("iperf3", "-s", "-B", server, "--forceflush")
	ready := &lineWaiter{want: "Server listening", seen: make(chan struct{})}
	srv.Stdout = ready
	nstest.Start(t, w.outside, srv)
	select {
	case <-ready.seen:
	case <-time.After(testTimeout):
		t.Fatal("the iperf3 server does not listen")
	}
}
