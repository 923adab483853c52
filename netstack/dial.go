package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
)

// DialContext connects to a port of a link, as net.Dialer.DialContext does:
// network is "tcp", "tcp4" or "tcp6", address "HOST:PORT", where HOST is a
// link's address, name or alias. The container sees the gateway as the caller.
// Errors are *OpError around the errno that a dial on a real network would
// yield, such as ECONNREFUSED.
func (s *Switch) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := s.dial(ctx, network, address)
	if err != nil {
		return nil, &OpError{Op: "dial " + network, Object: address, Err: err}
	}
	return c, nil
}

func (s *Switch) dial(ctx context.Context, network, address string) (net.Conn, error) {
	targets, err := s.resolve(network, address)
	if err != nil {
		return nil, err
	}
	for _, target := range targets {
		var c net.Conn
		if c, err = s.dialTarget(ctx, target); err == nil || ctx.Err() != nil {
			return c, err
		}
	}
	return nil, err
}

// resolve turns an address of the network into addresses of links, of the
// families asked for.
func (s *Switch) resolve(network, address string) ([]netip.AddrPort, error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, net.UnknownNetworkError(network)
	}
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("port %q: want 1 to 65535", portText)
	}
	addrs, err := s.lookup(host)
	if err != nil {
		return nil, err
	}
	var targets []netip.AddrPort
	for _, a := range addrs {
		if network == "tcp" || (network == "tcp4") == a.Is4() {
			targets = append(targets, netip.AddrPortFrom(a, uint16(port)))
		}
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("%w: %s has no address for %s", ErrNoLink, host, network)
	}
	return targets, nil
}

func (s *Switch) lookup(host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	name := strings.TrimSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), "."+s.cfg.DNS.Domain)
	if addrs, ok := s.names.Load().Lookup(name); ok {
		return addrs, nil
	}
	return nil, fmt.Errorf("%w as %q", ErrNoLink, host)
}

func (s *Switch) dialTarget(ctx context.Context, target netip.AddrPort) (net.Conn, error) {
	l := s.linkByAddr(target.Addr())
	if l == nil {
		return nil, ErrNoLink
	}
	source := netip.AddrPortFrom(s.gateway(target.Addr().Is4()), 0)
	if v := s.decideIngress(l, packet.ProtoTCP, source, target); v.Action != policy.Forward {
		return nil, refused(target, v.Reason)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c := newConn(l.worker, tuple{})
	in := &ingress{t: s.tcp, link: l, cancel: cancel}
	ep, err := in.dial(ctx, source, target, &c.queue)
	if err != nil {
		return nil, err
	}
	c.key = in.key
	fl := s.flows.open(flowSpec{
		link: l, direction: FlowIngress, proto: packet.ProtoTCP,
		source: c.key.far, destination: target,
	})
	c.start(ep, fl)
	c.onClose = func() {
		fl.close("")
		s.tcp.ended(l, c.key, c)
	}
	if !in.become(c) {
		c.onClose = nil
		c.cut("")
		fl.close("link detached")
		s.tcp.ended(l, in.key, in)
		return nil, ErrClosed
	}
	return c, nil
}

func isAddrInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }
