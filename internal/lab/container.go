package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/usernet/usernet/tunnel"
)

const nicID tcpip.NICID = 1

// DialTimeout bounds Dial: longer than anything in a test should take.
const DialTimeout = 20 * time.Second

// Container is a container's network: one interface, its addresses, a default
// route. Its methods are safe for concurrent use.
type Container struct {
	t     testing.TB
	stack *stack.Stack
	dev   tunnel.Device
	nic   *endpoint
	once  sync.Once
}

// New makes a container of dev, which it owns: Close, and the test's end, close
// it.
func New(t testing.TB, dev tunnel.Device, addrs ...netip.Addr) *Container {
	t.Helper()
	c := &Container{t: t, dev: dev}
	c.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	c.nic = newEndpoint(dev)
	c.must(c.stack.CreateNIC(nicID, c.nic), "create NIC")
	for _, a := range addrs {
		c.must(c.stack.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
			Protocol:          protocol(a),
			AddressWithPrefix: address(a).WithPrefix(),
		}, stack.AddressProperties{}), "add address "+a.String())
	}
	c.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	c.nic.wg.Go(c.nic.readLoop)
	t.Cleanup(c.Close)
	return c
}

func (c *Container) must(err tcpip.Error, what string) {
	c.t.Helper()
	if err != nil {
		c.t.Fatalf("lab: %s: %v", what, err)
	}
}

// Close ends the container as the death of its namespace would: without a word
// to anybody.
func (c *Container) Close() {
	c.once.Do(func() {
		c.dev.Close()
		c.nic.wg.Wait()
		c.stack.Destroy()
	})
}

// Mute makes the container lose, from now on, what it would send (true), or
// send again (false).
func (c *Container) Mute(on bool) { c.nic.mute.Store(on) }

// Stack is the container's stack, for what has no method here.
func (c *Container) Stack() *stack.Stack { return c.stack }

// Conn is a TCP connection of the container.
type Conn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// Reset ends the connection with a RST.
func (c *Conn) Reset() {
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	c.Close()
}

// SetReceiveBuffer bounds what the connection takes without being read, in
// bytes, so that a window fills early.
func (c *Conn) SetReceiveBuffer(n int64) { c.ep.SocketOptions().SetReceiveBufferSize(n, true) }

// Endpoint is the connection's endpoint.
func (c *Conn) Endpoint() tcpip.Endpoint { return c.ep }

// Dial connects to an address over TCP.
func (c *Container) Dial(to netip.AddrPort) (*Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), DialTimeout)
	defer cancel()
	return c.DialContext(ctx, netip.AddrPort{}, to)
}

// MustDial connects or fails the test.
func (c *Container) MustDial(to netip.AddrPort) *Conn {
	c.t.Helper()
	conn, err := c.Dial(to)
	if err != nil {
		c.t.Fatalf("lab: dial %v: %v", to, err)
	}
	return conn
}

// DialContext connects from a local address, which may be invalid for any, and
// gives up when ctx ends. Its errors are tcpip.Error's texts, and match the
// *Error of this package.
func (c *Container) DialContext(ctx context.Context, from, to netip.AddrPort) (*Conn, error) {
	var queue waiter.Queue
	ep, terr := c.stack.NewEndpoint(tcp.ProtocolNumber, protocol(to.Addr()), &queue)
	if terr != nil {
		return nil, &Error{terr}
	}
	if from.IsValid() {
		if terr := ep.Bind(full(from)); terr != nil {
			ep.Close()
			return nil, &Error{terr}
		}
	}
	entry, answered := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	terr = ep.Connect(full(to))
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-answered:
			terr = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			return nil, ctx.Err()
		}
	}
	if terr != nil {
		ep.Close()
		return nil, &Error{terr}
	}
	return &Conn{TCPConn: gonet.NewTCPConn(&queue, ep), ep: ep}, nil
}

// Error is an error of the container's stack.
type Error struct{ TCPIP tcpip.Error }

func (e *Error) Error() string { return e.TCPIP.String() }

// Refused reports whether a dial met a RST.
func Refused(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	_, ok := e.TCPIP.(*tcpip.ErrConnectionRefused)
	return ok
}

// Listen accepts TCP connections to a port of one of the container's addresses.
func (c *Container) Listen(at netip.AddrPort) net.Listener {
	c.t.Helper()
	ln, err := gonet.ListenTCP(c.stack, full(at), protocol(at.Addr()))
	if err != nil {
		c.t.Fatalf("lab: listen on %v: %v", at, err)
	}
	c.t.Cleanup(func() { ln.Close() })
	return ln
}

// DialUDP returns a connected UDP socket.
func (c *Container) DialUDP(to netip.AddrPort) net.Conn {
	c.t.Helper()
	remote := full(to)
	conn, err := gonet.DialUDP(c.stack, nil, &remote, protocol(to.Addr()))
	if err != nil {
		c.t.Fatalf("lab: UDP to %v: %v", to, err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// ListenUDP returns a UDP socket bound to an address and port.
func (c *Container) ListenUDP(at netip.AddrPort) net.PacketConn {
	c.t.Helper()
	local := full(at)
	conn, err := gonet.DialUDP(c.stack, &local, nil, protocol(at.Addr()))
	if err != nil {
		c.t.Fatalf("lab: UDP on %v: %v", at, err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// Send writes a raw IP packet, with all its checksums, as the container's root
// could.
func (c *Container) Send(pkt []byte) {
	c.t.Helper()
	var head [tunnel.HeaderLen]byte
	if err := c.dev.WriteFrame([][]byte{head[:], pkt}); err != nil {
		c.t.Fatalf("lab: send: %v", err)
	}
}

// Tap calls f with every IP packet that reaches the container, before its stack
// has it. f must not keep the packet. nil ends it.
func (c *Container) Tap(f func(pkt []byte)) {
	if f == nil {
		c.nic.tap.Store(nil)
		return
	}
	c.nic.tap.Store(&f)
}

func protocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

func address(a netip.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: address(a.Addr()), Port: a.Port()}
}
