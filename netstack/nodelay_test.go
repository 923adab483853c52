package netstack_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/lab"
	"github.com/usernet/usernet/netstack"
)

// What the container or a client sent small leaves the switch at once: Nagle's
// algorithm was theirs to use.
func TestHostSocketsDoNotDelay(t *testing.T) {
	listen := func(t *testing.T) *net.TCPListener { return loopbackListener(t).(*net.TCPListener) }
	for name, connect := range map[string]func(t *testing.T) (far net.Conn){
		"dialled": func(t *testing.T) net.Conn {
			ln := listen(t)
			target := ln.Addr().(*net.TCPAddr).AddrPort()
			w := newWorld(t, func(cfg *netstack.Config) {
				cfg.Host = netstack.Host{}
				cfg.HostServices = []netstack.HostService{{Name: "db", Target: target}}
			})
			return greet(t, w.c.MustDial(netip.AddrPortFrom(gateway4, target.Port())), ln)
		},
		"dialled by the program": func(t *testing.T) net.Conn {
			w := newWorld(t, nil)
			w.hook.set(func(ctx context.Context, network, address string, _ netstack.ControlFunc) (net.Conn, error) {
				c, err := toLoopback(ctx, network, address, nil)
				if err == nil {
					err = c.(*net.TCPConn).SetNoDelay(false)
				}
				return c, err
			})
			ln, to := w.listen(netip.MustParseAddr("203.0.113.1"))
			return greet(t, w.c.MustDial(to), ln)
		},
		"published": func(t *testing.T) net.Conn {
			w := newWorld(t, nil)
			go acceptOne(w.c.Listen(netip.AddrPortFrom(container4, 80)), make(chan net.Addr, 1))
			p := w.publish(netstack.PublishConfig{Link: "web", Proto: "tcp", Port: 80, Listener: slow{loopbackListener(t)}})
			c, err := net.Dial("tcp", p.Host().String())
			if err != nil {
				t.Fatal(err)
			}
			mustWrite(t, c, "hello")
			mustRead(t, c, "hello")
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			far := connect(t)
			defer far.Close()
			fd := socketTo(t, far.LocalAddr())
			if on, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY); err != nil || on == 0 {
				t.Errorf("TCP_NODELAY is %d, %v", on, err)
			}
		})
	}
}

// slow is a program's listener whose connections gather what is small.
type slow struct{ net.Listener }

func (l slow) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		err = c.(*net.TCPConn).SetNoDelay(false)
	}
	return c, err
}

// greet has the container's connection carry bytes to a host server, and
// returns the server's end.
func greet(t *testing.T, c *lab.Conn, ln *net.TCPListener) net.Conn {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	host, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, c, "hello")
	mustRead(t, host, "hello")
	return host
}

// socketTo finds this process's socket that is connected to an address.
func socketTo(t *testing.T, to net.Addr) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	want := to.(*net.TCPAddr).AddrPort()
	for _, entry := range fds {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		peer, err := unix.Getpeername(fd)
		if err != nil {
			continue
		}
		switch peer := peer.(type) {
		case *unix.SockaddrInet4:
			if netip.AddrPortFrom(netip.AddrFrom4(peer.Addr), uint16(peer.Port)) == want {
				return fd
			}
		case *unix.SockaddrInet6:
			if netip.AddrPortFrom(netip.AddrFrom16(peer.Addr), uint16(peer.Port)) == want {
				return fd
			}
		}
	}
	t.Fatalf("no socket is connected to %v", to)
	return -1
}
