package netstack_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/usernet/usernet/internal/lab"
	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/netstack"
)

// A link that goes takes its connections with it, on both sides and at once.
func TestDetachResetsFlows(t *testing.T) {
	families(t, func(t *testing.T, outside netip.Addr) {
		w := newWorld(t, nil)
		_, host := w.connect(outside)
		start := time.Now()
		if err := w.link.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := host.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("host reads %v, want ECONNRESET", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v", took)
		}
		if f := w.ended(1)[0]; f.Reason != "link detached" {
			t.Errorf("flow ended by %q", f.Reason)
		}
	})
}

// A reset from the container frees the pump that waits for a host that does not
// read.
func TestResetFreesBlockedPump(t *testing.T) {
	families(t, func(t *testing.T, outside netip.Addr) {
		w := newWorld(t, nil)
		c, host := w.connect(outside)
		blocked := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, 64<<20))
			blocked <- err
		}()
		var last uint64
		still := 0
		eventually(t, func() bool { // until nothing moves any more
			now := w.link.Stats().FromContainer.Bytes
			if still++; now != last || now < 1<<20 {
				last, still = now, 0
			}
			return still > 100
		})
		c.Reset()
		if f := w.ended(1)[0]; f.Reason != "reset by container" {
			t.Errorf("flow ended by %q", f.Reason)
		}
		<-blocked
		host.Close()
	})
}

// A link that goes while transfers are at full speed: no pump may be left writing from
// memory that the stack has given away.
func TestDetachUnderLoad(t *testing.T) {
	w := newWorld(t, nil)
	for range 4 {
		c, host := w.connect(outside4)
		go io.Copy(io.Discard, c)
		go io.Copy(io.Discard, host)
		go c.Write(make([]byte, 256<<20))
		go host.Write(make([]byte, 256<<20))
	}
	eventually(t, func() bool { return w.link.Stats().FromContainer.Bytes > 4<<20 })
	if err := w.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, f := range w.ended(4) {
		if f.Reason != "link detached" {
			t.Errorf("flow ended by %q", f.Reason)
		}
	}
}

// A dial under way ends with the container's reset, and with the link.
func TestDialIsCancelled(t *testing.T) {
	for name, end := range map[string]func(w *world, from, to netip.AddrPort){
		"reset": func(w *world, from, to netip.AddrPort) { w.c.Send(rst(from, to)) },
		"link":  func(w *world, _, _ netip.AddrPort) { w.link.Detach(w.t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			from, to := netip.AddrPortFrom(container4, 7777), netip.AddrPortFrom(outside4, 80)
			dialling, cancelled := make(chan struct{}, 1), make(chan error, 1)
			w.hook.set(func(ctx context.Context, _, _ string, _ netstack.ControlFunc) (net.Conn, error) {
				dialling <- struct{}{}
				<-ctx.Done()
				cancelled <- ctx.Err()
				return nil, ctx.Err()
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go w.c.DialContext(ctx, from, to)
			<-dialling
			end(w, from, to)
			select {
			case err := <-cancelled:
				if err != context.Canceled {
					t.Errorf("dial ended by %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("dial goes on")
			}
		})
	}
}

// rst builds a RST segment without anything else in it.
func rst(from, to netip.AddrPort) []byte {
	const size = 20
	b := packet.AppendIP(nil, packet.ProtoTCP, from.Addr(), to.Addr(), 64, 0, size, 1, true)
	seg := make([]byte, size)
	seg[0], seg[1] = byte(from.Port()>>8), byte(from.Port())
	seg[2], seg[3] = byte(to.Port()>>8), byte(to.Port())
	seg[12], seg[13] = 5<<4, packet.FlagRST
	sum := packet.PseudoHeaderSum(packet.ProtoTCP, from.Addr(), to.Addr(), size)
	sum = ^packet.Checksum(seg, sum)
	seg[16], seg[17] = byte(sum>>8), byte(sum)
	return append(b, seg...)
}

func TestDialLimits(t *testing.T) {
	w := newWorld(t, func(cfg *netstack.Config) { cfg.Limits.Dials = 2; cfg.Limits.TCPFlows = 3 })
	release := make(chan struct{})
	dialling := make(chan struct{}, 10)
	w.hook.set(func(ctx context.Context, network, address string, control netstack.ControlFunc) (net.Conn, error) {
		dialling <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return toLoopback(ctx, network, address, control)
	})
	ln, to := w.listen(outside4)
	go func() {
		for {
			if _, err := ln.Accept(); err != nil {
				return
			}
		}
	}()
	results := make(chan error, 2)
	dial := func() {
		ctx, cancel := context.WithTimeout(t.Context(), lab.DialTimeout)
		defer cancel()
		_, err := w.c.DialContext(ctx, netip.AddrPort{}, to)
		results <- err
	}
	go dial()
	go dial()
	<-dialling
	<-dialling
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := w.c.DialContext(ctx, netip.AddrPort{}, to); err != context.DeadlineExceeded {
		t.Errorf("third dial in flight: %v, want silence", err)
	}
	if d := w.link.Stats().Drops; d["dial_limit"] != 1 {
		t.Errorf("drops %v, want one dial_limit", d)
	}
	close(release)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	w.c.MustDial(to) // the third flow
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := w.c.DialContext(ctx, netip.AddrPort{}, to); err != context.DeadlineExceeded {
		t.Errorf("fourth flow: %v, want silence", err)
	}
	if d := w.link.Stats().Drops; d["flow_limit"] != 1 {
		t.Errorf("drops %v, want one flow_limit", d)
	}
}

// A container that never acknowledges does not keep its request.
func TestHandshakeIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ln, to := w.listen(outside4)
	w.c.Tap(func([]byte) { w.c.Mute(true) }) // before the stack sees the SYN-ACK
	go w.c.DialContext(t.Context(), netip.AddrPort{}, to)
	host, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	host.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("host reads %v, want ECONNRESET", err)
	}
}

// A closed port of the outside, dialled again and again from one port: what
// waits out its time must not stand in the way.
func TestPortIsUsedAgain(t *testing.T) {
	w := newWorld(t, nil)
	ln, to := w.listen(outside4)
	from := netip.AddrPortFrom(container4, 40000)
	for i := range 5 {
		var c *lab.Conn
		eventually(t, func() (done bool) { // the container has to let go of its port as well
			var err error
			start := time.Now()
			c, err = w.c.DialContext(t.Context(), from, to)
			if took := time.Since(start); took > 900*time.Millisecond {
				t.Errorf("dial %d took %v: its first SYN was not answered", i, took)
			}
			return err == nil || !strings.Contains(err.Error(), "port is in use")
		})
		if c == nil {
			t.Fatalf("dial %d failed", i)
		}
		host, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		host.Close() // first, so that the switch's end is the one that waits
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("read %v, want EOF", err)
		}
		c.Close()
		w.ended(i + 1)
	}
}

func TestDialIntoTheNetwork(t *testing.T) {
	w := newWorld(t, nil)
	w.c.Listen(netip.AddrPortFrom(container4, 80))
	for _, address := range []string{"web:80", "WEB.usernet.internal.:80", "10.99.0.2:80"} {
		c, err := w.s.DialContext(t.Context(), "tcp4", address)
		if err != nil {
			t.Errorf("dial %s: %v", address, err)
			continue
		}
		if c.RemoteAddr().String() != "10.99.0.2:80" {
			t.Errorf("remote address %v", c.RemoteAddr())
		}
		c.Close()
	}
	for address, want := range map[string]error{
		"web:81":       syscall.ECONNREFUSED,
		"nobody:80":    netstack.ErrNoLink,
		"10.99.0.9:80": netstack.ErrNoLink,
	} {
		if _, err := w.s.DialContext(t.Context(), "tcp", address); !errors.Is(err, want) {
			t.Errorf("dial %s: %v, want %v", address, err, want)
		}
	}
	if _, err := w.s.DialContext(t.Context(), "udp", "web:80"); err == nil {
		t.Error("dial udp: no error")
	}
}

// What DialContext returns is a net.Conn in every respect that package net's
// own tests know.
func TestDialedConnIsAConn(t *testing.T) {
	w := newWorld(t, nil)
	ln := w.c.Listen(netip.AddrPortFrom(container4, 80))
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		accepted := make(chan net.Conn, 1)
		go func() {
			if c, err := ln.Accept(); err == nil {
				accepted <- c
			}
		}()
		c1, err = w.s.DialContext(t.Context(), "tcp", "10.99.0.2:80")
		if err != nil {
			return nil, nil, nil, err
		}
		c2 = <-accepted
		return c1, c2, func() { c1.Close(); c2.Close() }, nil
	})
}

// What an idle connection costs the process, host socket aside.
func TestIdleConnectionMemory(t *testing.T) {
	w := newWorld(t, nil)
	ln, to := w.listen(outside4)
	const n = 200
	measure := func() (heap, stack int64, goroutines int) {
		for range 3 { // pools give up what they hold after two
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc), int64(m.StackInuse), runtime.NumGoroutine()
	}
	heap0, stack0, go0 := measure()
	keep := make([]net.Conn, 0, 2*n)
	for range n {
		c := w.c.MustDial(to)
		host, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, c, "x")
		mustRead(t, host, "x")
		keep = append(keep, c, host)
	}
	heap1, stack1, go1 := measure()
	// Both ends of the test are in this process: the container's endpoint is
	// a second one of gVisor's, and the server has a socket of its own.
	perConn := (heap1 - heap0) / n
	t.Logf("per connection, test's own two ends included: %d bytes of heap, %d of stacks, %.1f goroutines",
		perConn, (stack1-stack0)/n, float64(go1-go0)/n)
	if perConn > 32<<10 {
		t.Errorf("%d bytes of heap per idle connection, want at most 32 KiB with both ends", perConn)
	}
	if float64(go1-go0)/n > 2.2 {
		t.Errorf("%d goroutines for %d connections, want two each", go1-go0, n)
	}
	for _, c := range keep {
		c.Close()
	}
}
