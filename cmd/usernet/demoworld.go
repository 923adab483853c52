package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/usernet/usernet/internal/netns"
)

// The demo's addresses, all from prefixes for documentation (RFC 5737, RFC 3849).
var (
	machine4 = netip.MustParseAddr("203.0.113.1")
	machine6 = netip.MustParseAddr("2001:db8:113::1")
	outside4 = netip.MustParseAddr("203.0.113.2")
	outside6 = netip.MustParseAddr("2001:db8:113::2")
)

// outsideName is what the demo's outside server is called.
const outsideName = "outside.example"

// demoWorld is everything around the sandboxes: a namespace that stands for the
// outside world with a web server and a resolver, a cable to it, and two services
// on the machine's loopback.
type demoWorld struct {
	outside          *netns.Handle
	closed, database netip.AddrPort // on the machine's loopback
}

// makeDemoWorld prepares the current namespace as the machine. What it starts
// ends with the process.
func makeDemoWorld() (*demoWorld, error) {
	if err := netns.LoopbackUp(); err != nil {
		return nil, err
	}
	machine, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer machine.Close()
	w := &demoWorld{}
	if w.outside, err = netns.New(); err != nil {
		return nil, err
	}
	if err := netns.AddVeth(machine, w.outside, "cable0", "cable0"); err != nil {
		return nil, err
	}
	if err := netns.Configure(cableEnd(machine4, machine6)); err != nil {
		return nil, err
	}
	err = w.outside.Do(func() error {
		return errors.Join(netns.LoopbackUp(), netns.Configure(cableEnd(outside4, outside6)))
	})
	if err != nil {
		return nil, err
	}
	return w, w.serve()
}

func cableEnd(v4, v6 netip.Addr) netns.Interface {
	return netns.Interface{Name: "cable0", Addrs: []netip.Prefix{netip.PrefixFrom(v4, 24), netip.PrefixFrom(v6, 64)}}
}

// serve starts the servers.
func (w *demoWorld) serve() error {
	var web net.Listener
	var dns net.PacketConn
	err := w.outside.Do(func() (err error) {
		if web, err = net.Listen("tcp", ":80"); err != nil {
			return err
		}
		dns, err = net.ListenPacket("udp", netip.AddrPortFrom(outside4, 53).String())
		return err
	})
	if err != nil {
		return fmt.Errorf("start the outside world's servers: %w", err)
	}
	go serveHTTP(web, "the outside world")
	go answerDNS(dns)
	for name, at := range map[string]*netip.AddrPort{"a private service": &w.closed, "the database": &w.database} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("start %s on the loopback: %w", name, err)
		}
		*at = netip.MustParseAddrPort(l.Addr().String())
		go serveHTTP(l, name)
	}
	return nil
}

// serveHTTP answers until the process ends, which is the end of the demo.
func serveHTTP(l net.Listener, name string) {
	_ = http.Serve(l, whoAsks(name)) // it ends with the listener
}

// get fetches a URL from the outside world.
func (w *demoWorld) get(ctx context.Context, family, url string) (body string, err error) {
	// Sockets belong to the namespace of the thread that makes them, and an
	// HTTP client dials on another thread than its caller's.
	return httpGet(ctx, url, func(ctx context.Context, addr string) (c net.Conn, err error) {
		err = w.outside.Do(func() (err error) {
			c, err = (&net.Dialer{}).DialContext(ctx, family, addr)
			return err
		})
		return c, err
	})
}

// answerDNS is a resolver that knows one name.
func answerDNS(c net.PacketConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		if reply, err := demoReply(buf[:n]); err == nil {
			_, _ = c.WriteTo(reply, from) // a lost answer is asked for again
		}
	}
}

func demoReply(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	m.Header.Response, m.Header.RecursionAvailable = true, true
	m.Additionals = nil
	if len(m.Questions) != 1 || m.Questions[0].Name.String() != outsideName+"." {
		m.Header.RCode = dnsmessage.RCodeNameError
		return m.Pack()
	}
	q := m.Questions[0]
	header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
	switch q.Type {
	case dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: outside4.As4()}}}
	case dnsmessage.TypeAAAA:
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: outside6.As16()}}}
	}
	return m.Pack()
}
