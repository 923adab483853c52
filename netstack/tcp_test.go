package netstack_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/lab"
	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/netstack"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

// Addresses of the tests: the network, and an outside that the tests' dialler
// leads to the machine's loopback.
var (
	gateway4   = netip.MustParseAddr("10.99.0.1")
	gateway6   = netip.MustParseAddr("fd99::1")
	container4 = netip.MustParseAddr("10.99.0.2")
	container6 = netip.MustParseAddr("fd99::2")
	outside4   = netip.MustParseAddr("198.51.100.7")
	outside6   = netip.MustParseAddr("2001:db8::7")
)

// families runs a test over IPv4 and IPv6: what holds for one holds for the
// other.
func families(t *testing.T, f func(t *testing.T, outside netip.Addr)) {
	t.Run("ipv4", func(t *testing.T) { f(t, outside4) })
	t.Run("ipv6", func(t *testing.T) { f(t, outside6) })
}

// world is a switch, one container, and a host side on the machine's loopback.
type world struct {
	t    *testing.T
	s    *netstack.Switch
	link *netstack.Link
	c    *lab.Container
	hook hook

	mu    sync.Mutex // guards flows
	flows []netstack.Flow
}

// hook leads the switch's dials to where the test wants them. Its zero leads
// everything to the same port of the loopback address.
type hook struct {
	mu   sync.Mutex
	dial func(ctx context.Context, network, address string, control netstack.ControlFunc) (net.Conn, error)
}

func (h *hook) set(f func(ctx context.Context, network, address string, control netstack.ControlFunc) (net.Conn, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dial = f
}

func (h *hook) DialContext(ctx context.Context, network, address string, control netstack.ControlFunc) (net.Conn, error) {
	h.mu.Lock()
	f := h.dial
	h.mu.Unlock()
	if f != nil {
		return f(ctx, network, address, control)
	}
	return toLoopback(ctx, network, address, control)
}

func toLoopback(ctx context.Context, network, address string, _ netstack.ControlFunc) (net.Conn, error) {
	to := netip.MustParseAddrPort(address)
	host := "127.0.0.1"
	if to.Addr().Is6() {
		host = "::1"
	}
	var d net.Dialer
	return d.DialContext(ctx, network, net.JoinHostPort(host, fmt.Sprint(to.Port())))
}

func newWorld(t *testing.T, change func(*netstack.Config)) *world {
	t.Helper()
	checkLeaks(t)
	w := &world{t: t}
	cfg := netstack.Config{
		Name:     "world",
		Gateways: []netip.Prefix{netip.PrefixFrom(gateway4, 24), netip.PrefixFrom(gateway6, 64)},
		DNS:      netstack.DNSConfig{ResolvConf: os.DevNull},
		Host:     netstack.Host{DialContext: w.hook.DialContext},
		Limits:   netstack.Limits{NewFlows: 1e6, ICMPErrors: 1e6},
		OnFlow: func(f netstack.Flow) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.flows = append(w.flows, f)
		},
	}
	if change != nil {
		change(&cfg)
	}
	s, err := netstack.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.s = s
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the switch: %v", err)
		}
	})
	w.link, w.c = w.attach("web", container4, container6)
	return w
}

func (w *world) attach(name string, addrs ...netip.Addr) (*netstack.Link, *lab.Container) {
	w.t.Helper()
	a, b := tunneltest.Pair(netstack.DefaultMTU)
	l, err := w.s.Attach(a, netstack.LinkConfig{Name: name, Addrs: addrs})
	if err != nil {
		w.t.Fatal(err)
	}
	return l, lab.New(w.t, b, addrs...)
}

// listen opens a host server on the loopback address of outside's family and
// returns where containers reach it.
func (w *world) listen(outside netip.Addr) (*net.TCPListener, netip.AddrPort) {
	w.t.Helper()
	at := "127.0.0.1:0"
	if outside.Is6() {
		at = "[::1]:0"
	}
	ln, err := net.Listen("tcp", at)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener), netip.AddrPortFrom(outside, uint16(ln.Addr().(*net.TCPAddr).Port))
}

// connect makes a connection from the container to a host server.
func (w *world) connect(outside netip.Addr) (c *lab.Conn, host *net.TCPConn) {
	w.t.Helper()
	ln, to := w.listen(outside)
	c = w.c.MustDial(to)
	w.t.Cleanup(func() { c.Close() })
	ln.SetDeadline(time.Now().Add(testTimeout))
	host, err := ln.AcceptTCP()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { host.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	host.SetDeadline(time.Now().Add(time.Minute))
	return c, host
}

// ended waits for the n-th flow to end and returns all that have.
func (w *world) ended(n int) []netstack.Flow {
	w.t.Helper()
	var all []netstack.Flow
	eventually(w.t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		all = append([]netstack.Flow(nil), w.flows...)
		return len(all) >= n
	})
	if len(all) < n {
		w.t.FailNow()
	}
	return all
}

const testTimeout = 10 * time.Second

func eventually(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(testTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Error("condition not met in time")
			return
		case <-tick.C:
		}
	}
}

// flood writes size random bytes and half-closes; the digest of what it wrote
// comes on the channel.
func flood(t *testing.T, w io.Writer, size int64, seed byte) <-chan [32]byte {
	sum := make(chan [32]byte, 1)
	go func() {
		h := sha256.New()
		src := io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
		if _, err := io.Copy(io.MultiWriter(w, h), src); err != nil {
			t.Errorf("write: %v", err)
		}
		if err := w.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Errorf("half-close: %v", err)
		}
		sum <- [32]byte(h.Sum(nil))
	}()
	return sum
}

// drain reads to the end and returns the digest of what came.
func drain(t *testing.T, r io.Reader) <-chan [32]byte {
	sum := make(chan [32]byte, 1)
	go func() {
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			t.Errorf("read: %v", err)
		}
		sum <- [32]byte(h.Sum(nil))
	}()
	return sum
}

func TestTCPCarriesBytesBothWays(t *testing.T) {
	families(t, func(t *testing.T, outside netip.Addr) {
		w := newWorld(t, nil)
		c, host := w.connect(outside)
		size := int64(128 << 20)
		if testing.Short() {
			size = 16 << 20
		}
		up, down := flood(t, c, size, 1), flood(t, host, size, 2)
		gotUp, gotDown := drain(t, host), drain(t, c)
		if <-up != <-gotUp {
			t.Error("what the host got is not what the container sent")
		}
		if <-down != <-gotDown {
			t.Error("what the container got is not what the host sent")
		}
		f := w.ended(1)[0]
		if f.FromContainer.Bytes != uint64(size) || f.ToContainer.Bytes != uint64(size) {
			t.Errorf("flow counted %d and %d bytes, want %d each", f.FromContainer.Bytes, f.ToContainer.Bytes, size)
		}
		if f.Verdict != netstack.FlowForwarded || f.Reason != "" || f.Direction != netstack.FlowEgress {
			t.Errorf("flow ended %s %q %s, want FORWARDED, no reason, egress", f.Verdict, f.Reason, f.Direction)
		}
		if len(w.link.Stats().Drops) != 0 {
			t.Errorf("drops: %v", w.link.Stats().Drops)
		}
	})
}

func TestTCPHalfCloseCrosses(t *testing.T) {
	families(t, func(t *testing.T, outside netip.Addr) {
		w := newWorld(t, nil)
		for _, first := range []string{"container", "host"} {
			t.Run(first, func(t *testing.T) {
				c, host := w.connect(outside)
				var a, b io.ReadWriter = c, host
				if first == "host" {
					a, b = host, c
				}
				mustWrite(t, a, "question")
				a.(interface{ CloseWrite() error }).CloseWrite()
				if got, err := io.ReadAll(b); string(got) != "question" || err != nil {
					t.Fatalf("%q, %v; want the question and its end", got, err)
				}
				// The other direction lives on for as long as it likes.
				mustWrite(t, b, "answer")
				buf := make([]byte, 6)
				if _, err := io.ReadFull(a, buf); err != nil || string(buf) != "answer" {
					t.Fatalf("%q, %v; want the answer", buf, err)
				}
				b.(io.Closer).Close()
				if n, err := a.Read(buf); n != 0 || err != io.EOF {
					t.Fatalf("%d, %v; want EOF", n, err)
				}
			})
		}
	})
}

func TestTCPResetCrosses(t *testing.T) {
	families(t, func(t *testing.T, outside netip.Addr) {
		w := newWorld(t, nil)
		t.Run("from container", func(t *testing.T) {
			c, host := w.connect(outside)
			mustWrite(t, c, "x")
			mustRead(t, host, "x")
			c.Reset()
			if _, err := host.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("host reads %v, want ECONNRESET", err)
			}
			if f := w.ended(1)[0]; f.Reason != "reset by container" {
				t.Errorf("flow ended by %q", f.Reason)
			}
		})
		t.Run("from host", func(t *testing.T) {
			c, host := w.connect(outside)
			mustWrite(t, c, "x")
			mustRead(t, host, "x")
			host.SetLinger(0)
			host.Close()
			if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("container reads %v, want a reset", err)
			}
			if f := w.ended(2)[1]; f.Reason != "reset by host" {
				t.Errorf("flow ended by %q", f.Reason)
			}
		})
	})
}

// A reader that does not read stops its writer, and nobody else; what was
// written arrives whole when it reads on.
func TestTCPSlowReader(t *testing.T) {
	families(t, func(t *testing.T, outside netip.Addr) {
		w := newWorld(t, nil)
		for _, slow := range []string{"container", "host"} {
			t.Run(slow, func(t *testing.T) {
				c, host := w.connect(outside)
				var from, to net.Conn = c, host
				if slow == "container" {
					from, to = host, c
				}
				const size = 32 << 20
				sum := flood(t, from, size, 3)
				other, otherHost := w.connect(outside)
				mustWrite(t, other, "alive")
				mustRead(t, otherHost, "alive")
				select {
				case <-sum:
					t.Fatal("32 MiB fitted into a connection that nobody reads")
				case <-time.After(50 * time.Millisecond):
				}
				if got := drain(t, to); <-got != <-sum {
					t.Error("bytes changed on the way")
				}
			})
		}
	})
}

func TestTCPRefusedAndUnreachable(t *testing.T) {
	families(t, func(t *testing.T, outside netip.Addr) {
		w := newWorld(t, nil)
		to := netip.AddrPortFrom(outside, 81)
		for _, tt := range []struct {
			err     error
			icmp    [2]uint8 // IPv4 type and code
			icmp6   [2]uint8
			refused bool
		}{
			{err: syscall.ECONNREFUSED, refused: true},
			{err: syscall.ECONNRESET, refused: true},
			{err: syscall.EHOSTUNREACH, icmp: [2]uint8{3, 1}, icmp6: [2]uint8{1, 3}},
			{err: syscall.ENETUNREACH, icmp: [2]uint8{3, 0}, icmp6: [2]uint8{1, 0}},
			{err: syscall.EPERM, icmp: [2]uint8{3, 13}, icmp6: [2]uint8{1, 1}},
		} {
			t.Run(tt.err.Error(), func(t *testing.T) {
				w.hook.set(func(context.Context, string, string, netstack.ControlFunc) (net.Conn, error) {
					return nil, os.NewSyscallError("connect", tt.err)
				})
				got := make(chan [2]uint8, 16)
				w.c.Tap(func(pkt []byte) {
					var h packet.Header
					if h.Parse(pkt, len(pkt)) == packet.FaultNone && h.IsICMPError() {
						got <- [2]uint8{h.ICMPType, h.ICMPCode}
					}
				})
				defer w.c.Tap(nil)
				if tt.refused {
					if _, err := w.c.Dial(to); !lab.Refused(err) {
						t.Errorf("container's dial: %v, want refused", err)
					}
					return
				}
				// Not every stack acts upon every code; that it is sent counts.
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go w.c.DialContext(ctx, netip.AddrPort{}, to)
				want := tt.icmp
				if outside.Is6() {
					want = tt.icmp6
				}
				select {
				case have := <-got:
					if have != want {
						t.Errorf("ICMP type and code %v, want %v", have, want)
					}
				case <-time.After(testTimeout):
					t.Error("no ICMP error came")
				}
			})
		}
		if f := w.ended(5)[0]; f.Verdict != netstack.FlowError || f.Destination != to {
			t.Errorf("flow %+v, want an error to %v", f, to)
		}
	})
}

// What policy learns only at the socket is prohibited, not dialled.
func TestTCPFinalAddressIsChecked(t *testing.T) {
	w := newWorld(t, nil)
	ln, to := w.listen(outside4)
	w.hook.set(func(ctx context.Context, network, address string, control netstack.ControlFunc) (net.Conn, error) {
		d := net.Dialer{Control: control}
		return d.DialContext(ctx, network, ln.Addr().String()) // loopback
	})
	if _, err := w.c.Dial(to); err == nil {
		t.Fatal("a dial that ends at the host's loopback went through")
	}
	drops := w.link.Stats().Drops
	if drops["policy_loopback"] != 1 || len(drops) != 1 {
		t.Errorf("drops %v, want one of policy_loopback", drops)
	}
	if f := w.ended(1)[0]; f.Verdict != netstack.FlowError || f.Reason != "policy: loopback" {
		t.Errorf("flow %s %q, want ERROR for policy: loopback", f.Verdict, f.Reason)
	}
}

func TestTCPHostService(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	target := ln.Addr().(*net.TCPAddr).AddrPort()
	// The standard dialler: services may lead to loopback, and nothing else may.
	w := newWorld(t, func(cfg *netstack.Config) {
		cfg.Host = netstack.Host{}
		cfg.HostServices = []netstack.HostService{{Name: "db", Target: target}}
	})
	for _, gw := range []netip.Addr{gateway4, gateway6} {
		c := w.c.MustDial(netip.AddrPortFrom(gw, target.Port()))
		host, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, c, "select")
		mustRead(t, host, "select")
		c.Close()
		host.Close()
	}
	f := w.ended(1)[0]
	if f.Direction != netstack.FlowService || f.Target == nil || *f.Target != target {
		t.Errorf("flow %s to %v, want service to %v", f.Direction, f.Target, target)
	}
	if _, err := w.c.Dial(netip.AddrPortFrom(gateway4, target.Port()+1)); !lab.Refused(err) {
		t.Errorf("dial to a gateway port without service: %v, want refused", err)
	}
}

func mustWrite(t *testing.T, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatalf("write %q: %v", s, err)
	}
}

func mustRead(t *testing.T, r io.Reader, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(r, buf); err != nil || string(buf) != want {
		t.Fatalf("read %q, %v; want %q", buf, err, want)
	}
}
