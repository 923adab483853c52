package netstack_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usernet/usernet/netstack"
)

// realClient is a listener whose connections come from wherever the test says:
// the loopback interface cannot tell one remote client from another.
type realClient struct {
	net.Listener
	from net.Addr
}

type clientConn struct {
	*net.TCPConn
	from net.Addr
}

func (c clientConn) RemoteAddr() net.Addr { return c.from }

func (l realClient) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return clientConn{c.(*net.TCPConn), l.from}, nil
}

func (w *world) publish(cfg netstack.PublishConfig) *netstack.Publication {
	w.t.Helper()
	p, err := w.s.Publish(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func loopbackListener(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// The container sees the client's own address, unless that is impossible.
func TestPublishShowsTheClient(t *testing.T) {
	for _, tt := range []struct {
		client string
		sees   string // without port if the stack picks one
		addrs  []netip.Addr
	}{
		{"203.0.113.9:4444", "203.0.113.9:4444", nil},
		{"[2001:db8::9]:4444", "[2001:db8::9]:4444", nil},
		{"127.0.0.1:4444", "10.99.0.1", nil},
		{"[::1]:4444", "fd99::1", nil},
		{"[fe80::5%lo]:4444", "fd99::1", nil},
		{"10.99.0.77:4444", "10.99.0.1", nil},
		{"[2001:db8::9]:4444", "10.99.0.1", []netip.Addr{netip.MustParseAddr("10.99.0.4")}},
		{"203.0.113.9:4444", "fd99::1", []netip.Addr{netip.MustParseAddr("fd99::4")}},
		{"[::ffff:203.0.113.9]:4444", "203.0.113.9:4444", nil},
	} {
		t.Run(fmt.Sprintf("%s of %v", tt.client, tt.addrs), func(t *testing.T) {
			w := newWorld(t, nil)
			name, c := "web", w.c
			if tt.addrs != nil {
				_, c = w.attach("half", tt.addrs...)
				name = "half"
			}
			addrs := tt.addrs
			if addrs == nil {
				addrs = []netip.Addr{container4, container6}
			}
			seen := make(chan net.Addr, 1)
			for _, a := range addrs {
				go acceptOne(c.Listen(netip.AddrPortFrom(a, 80)), seen)
			}
			from := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tt.client))
			p := w.publish(netstack.PublishConfig{
				Link: name, Proto: "tcp", Port: 80, Listener: realClient{loopbackListener(t), from},
			})
			conn, err := net.Dial("tcp", p.Host().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(testTimeout))
			mustWrite(t, conn, "hello")
			if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
				t.Errorf("echo %q, %v", got, err)
			}
			got := (<-seen).String()
			if host, _, _ := net.SplitHostPort(got); got != tt.sees && host != tt.sees {
				t.Errorf("container sees %s, want %s", got, tt.sees)
			}
			conn.Close()
			f := w.ended(1)[0]
			want := netip.AddrPortFrom(from.AddrPort().Addr().Unmap(), from.AddrPort().Port())
			if f.Direction != netstack.FlowIngress || f.Source != want || f.Destination != p.Host() {
				t.Errorf("flow %s %v to %v, want ingress %v to %v", f.Direction, f.Source, f.Destination, want, p.Host())
			}
		})
	}
}

// acceptOne echoes five bytes to one client.
func acceptOne(ln net.Listener, seen chan<- net.Addr) {
	c, err := ln.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	seen <- c.RemoteAddr()
	io.CopyN(c, c, 5)
}

// One client port may lead to two publications at a time, as it may to two
// servers.
func TestPublishSameClientPortTwice(t *testing.T) {
	w := newWorld(t, nil)
	from := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.9:5555"))
	for port := uint16(80); port < 83; port++ {
		seen := make(chan net.Addr, 1)
		ln := w.c.Listen(netip.AddrPortFrom(container4, port))
		go func() {
			c, err := ln.Accept()
			if err == nil {
				seen <- c.RemoteAddr()
			}
		}()
		p := w.publish(netstack.PublishConfig{Link: "web", Proto: "tcp", Port: port, Listener: realClient{loopbackListener(t), from}})
		conn, err := net.Dial("tcp", p.Host().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(testTimeout))
		if got := (<-seen).String(); got != from.String() {
			t.Errorf("port %d sees %s, want %v", port, got, from)
		}
	}
}

func TestPublishRefusedResetsTheClient(t *testing.T) {
	w := newWorld(t, nil)
	p := w.publish(netstack.PublishConfig{Link: "web", Proto: "tcp", Port: 81})
	conn, err := net.Dial("tcp", p.Host().String())
	if err == nil { // else the reset was faster than connect
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(testTimeout))
		_, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client reads %v, want ECONNRESET", err)
	}
	if f := w.ended(1)[0]; f.Verdict != netstack.FlowError || !strings.Contains(f.Reason, "refused") {
		t.Errorf("flow %s %q, want an error: refused", f.Verdict, f.Reason)
	}
}

func TestPublishFaults(t *testing.T) {
	w := newWorld(t, nil)
	taken := loopbackListener(t)
	defer taken.Close()
	at := taken.Addr().(*net.TCPAddr).AddrPort()
	_, err := w.s.Publish(netstack.PublishConfig{Link: "web", Proto: "tcp", Host: at, Port: 80})
	if !errors.Is(err, netstack.ErrPortInUse) {
		t.Errorf("taken port: %v, want ErrPortInUse", err)
	}
	me := fmt.Sprintf("(pid %d)", os.Getpid())
	want := fmt.Sprintf("publish %v->web:80/tcp: host port in use by ", at)
	if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), me) {
		t.Errorf("error %q, want %q… %q", err, want, me)
	}
	if _, err := w.s.Publish(netstack.PublishConfig{Link: "nobody", Proto: "tcp", Port: 80}); !errors.Is(err, netstack.ErrNoLink) {
		t.Errorf("unknown link: %v, want ErrNoLink", err)
	}
	_, err = w.s.Publish(netstack.PublishConfig{Link: "web", Proto: "sctp"})
	for _, part := range []string{`"sctp"`, "port 0"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v does not say %s", err, part)
		}
	}
	if n := len(w.s.Publications()); n != 0 {
		t.Errorf("%d publications after nothing but faults", n)
	}
}

func TestPublicationListAndEnd(t *testing.T) {
	w := newWorld(t, nil)
	first := w.publish(netstack.PublishConfig{Link: "web", Proto: "tcp", Port: 80})
	second := w.publish(netstack.PublishConfig{Link: "web", Proto: "TCP", Port: 81})
	if got := w.s.Publications(); len(got) != 2 || got[0] != first || got[1] != second {
		t.Fatalf("publications %v, want [%v %v]", got, first, second)
	}
	if !first.Host().Addr().IsLoopback() {
		t.Errorf("default host address %v, want loopback", first.Host())
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := first.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := net.Dial("tcp", first.Host().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after Close: %v, want ECONNREFUSED", err)
	}
	if err := w.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.s.Publications(); len(got) != 0 {
		t.Errorf("publications %v after the link's end", got)
	}
	if _, err := net.Dial("tcp", second.Host().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after the link's end: %v, want ECONNREFUSED", err)
	}
}
