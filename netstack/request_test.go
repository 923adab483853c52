package netstack

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/packet"
)

// deafListener is a socket that listens on loopback and whose backlog is full, so
// that the kernel answers no SYN.
func deafListener(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	fd, err := duplicateSocket(ln.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	target := ln.Addr().(*net.TCPAddr).AddrPort()
	for range 16 {
		c, err := net.DialTimeout("tcp4", target.String(), 100*time.Millisecond)
		if err != nil {
			return target
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the backlog of 0 takes 16 connections")
	return target
}

// A SYN whose host side does not answer is given up, and so is one whose answer the
// container does not take.
func TestRequestTimesOut(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, c := range map[string]struct {
		target   netip.AddrPort
		patience func(*worker) *patience
		answers  []uint8 // flags of what the container gets
		reason   string
		drops    map[string]uint64
	}{
		"the host side does not answer": {
			deafListener(t), func(w *worker) *patience { return &w.dials },
			nil, "dial timed out", map[string]uint64{DropDialTimeout.String(): 1},
		},
		"the container does not answer": {
			ln.Addr().(*net.TCPAddr).AddrPort(), func(w *worker) *patience { return &w.shakes },
			[]uint8{packet.FlagSYN | packet.FlagACK}, "handshake: timed out", map[string]uint64{},
		},
	} {
		for version, v4 := range map[string]bool{"IPv4": true, "IPv6": false} {
			t.Run(name+"/"+version, func(t *testing.T) {
				h := newHarness(t, func(cfg *Config) { cfg.HostServices = []HostService{{Name: "x", Target: c.target}} })
				a := h.attach("a", 2, nil)
				const short = 300 * time.Millisecond
				if err := a.link.worker.loop.Do(func() { c.patience(a.link.worker).time = short }); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				a.send(tcpPacket(ap(a.addr(v4), 5000), ap(h.s.gateway(v4), c.target.Port()), packet.FlagSYN))
				for _, want := range c.answers {
					_, pkt := a.receive()
					var got packet.Header
					if got.Parse(pkt, len(pkt)); got.TCPFlags != want {
						t.Fatalf("flags %#x, want %#x", got.TCPFlags, want)
					}
				}
				eventually(t, func() bool { f := h.s.Flows(); return len(f) == 1 && f[0].End != nil })
				if took := time.Since(began); took < short {
					t.Errorf("given up after %v of %v", took, short)
				}
				if f := h.s.Flows()[0]; f.Verdict != FlowError || f.Reason != c.reason {
					t.Errorf("flow %s %q, want ERROR for %q", f.Verdict, f.Reason, c.reason)
				}
				a.wantDrops(c.drops)
				eventually(t, func() bool { // then nothing is left
					h.s.tcp.mu.Lock()
					defer h.s.tcp.mu.Unlock()
					return len(h.s.tcp.flows) == 0 && h.s.tcp.dialling == 0
				})
			})
		}
	}
}
