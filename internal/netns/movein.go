package netns

import (
	"context"
	"errors"
	"net/netip"
)

// MoveIn moves the interface called from out of the current namespace into
// target, renames it to cfg.Name and configures it as Configure does. On error
// the interface is back in the current namespace under its old name.
func MoveIn(target *Handle, from string, cfg Interface) error { return errors.ErrUnsupported }

// Configure gives the interface cfg.Name, which is in the current namespace,
// its addresses, routes and settings, and brings it up. On error the interface
// is as it was.
func Configure(cfg Interface) error { return errors.ErrUnsupported }

// LoopbackUp brings lo up in the current namespace, with 127.0.0.1 and ::1.
func LoopbackUp() error { return errors.ErrUnsupported }

// DeleteLink deletes an interface of the current namespace. One that is not
// there is no error.
func DeleteLink(name string) error { return errors.ErrUnsupported }

// Verify reports how the interface cfg.Name of the current namespace differs
// from cfg; nil when it has all that cfg asks for. For the CNI verb CHECK.
func Verify(cfg Interface) error { return errors.ErrUnsupported }

// SetPingGroupRange lets the groups lowest..highest of the current namespace
// open ICMP echo sockets without privileges.
func SetPingGroupRange(lowest, highest uint32) error { return errors.ErrUnsupported }

// SetSysctl writes a value below /proc/sys/net of the current namespace; key is
// the path from there, such as "ipv6/conf/all/disable_ipv6".
func SetSysctl(key, value string) error { return errors.ErrUnsupported }

// HostAddrs returns all addresses of the current namespace's interfaces, and
// their IPv4 broadcast addresses.
func HostAddrs() (addrs, broadcasts []netip.Addr, err error) {
	return nil, nil, errors.ErrUnsupported
}

// Watch calls fn with what HostAddrs returns, once at the start and again after
// every change, until ctx ends; it then returns ctx's error. Calls do not
// overlap.
func Watch(ctx context.Context, fn func(addrs, broadcasts []netip.Addr)) error {
	return errors.ErrUnsupported
}
