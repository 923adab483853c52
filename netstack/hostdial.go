package netstack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/usernet/usernet/internal/policy"
)

// dialHost dials the host side of a request. ctx bounds it.
func (s *Switch) dialHost(ctx context.Context, v policy.Verdict) (net.Conn, error) {
	control := s.dialControl(v.Target != policy.TargetHostService)
	network := "tcp4"
	if v.Addr.Addr().Is6() {
		network = "tcp6"
	}
	if dial := s.cfg.Host.DialContext; dial != nil {
		return dial(ctx, network, v.Addr.String(), control)
	}
	d := net.Dialer{
		Control:         control,
		KeepAliveConfig: hostKeepalive,
	}
	// Plain TCP: MPTCP costs an extra option on every connection, many middle
	// boxes refuse it, and neither Landlock nor SO_LINGER treat it as TCP.
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, network, v.Addr.String())
}

// hostKeepalive makes the kernel notice a host-side peer that is gone.
var hostKeepalive = net.KeepAliveConfig{
	Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount,
}

// dialControl is what happens on a socket just before connect(2): the hook of
// the embedding program, and policy's last word on the very address that the
// kernel is going to see.
func (s *Switch) dialControl(check bool) ControlFunc {
	return func(network, address string, c syscall.RawConn) error {
		if check {
			final, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("dial to %q: %w", address, err)
			}
			if err := s.checkDial(final); err != nil {
				return err
			}
		}
		if hook := s.cfg.Host.Control; hook != nil {
			return hook(network, address, c)
		}
		return nil
	}
}
