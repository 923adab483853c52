package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/portowner"
)

// mappingsKey is where port mappings come from.
const mappingsKey = "runtimeConfig.portMappings"

// families says which address families a container has.
type families struct{ v4, v6 bool }

func (f *families) add(a netip.Addr) {
	f.v4 = f.v4 || a.Is4()
	f.v6 = f.v6 || a.Is6()
}

// hostIPs returns the host addresses that a mapping is published at: the one
// that it names; else the configuration's default; else every address of each
// family that the container has. An address of the other family may be named:
// the switch relays from one to the other, and podman's default network has
// IPv4 alone, where localhost has both.
func (p *publishConf) hostIPs(m *portMapping, have families) ([]netip.Addr, error) {
	if m.HostIP != "" {
		a, err := netip.ParseAddr(m.HostIP)
		if err != nil {
			return nil, badValue(mappingsKey, m, "hostIP must be an IPv4 or IPv6 address")
		}
		return []netip.Addr{a.Unmap()}, nil
	}
	if p.DefaultHostIP.IsValid() {
		return []netip.Addr{p.DefaultHostIP}, nil
	}
	var all []netip.Addr
	if have.v4 {
		all = append(all, netip.IPv4Unspecified())
	}
	if have.v6 {
		all = append(all, netip.IPv6Unspecified())
	}
	return all, nil
}

// spec describes the publications of a mapping, whatever their host addresses
// are when it names none.
func (m *portMapping) spec() (control.PublicationSpec, error) {
	if err := m.check(); err != nil {
		return control.PublicationSpec{}, err
	}
	spec := control.PublicationSpec{Proto: m.Protocol, HostPort: uint16(m.HostPort), Port: uint16(m.ContainerPort)}
	if m.HostIP != "" {
		spec.HostIP = netip.MustParseAddr(m.HostIP).Unmap() // check has parsed it
	}
	return spec, nil
}

// How long a port may stay taken by nobody that can be seen, and how often it is
// tried meanwhile: a process that was killed closes its sockets a moment after
// it has gone from sight, and a socket that was on its way to a daemon is closed
// when that reads what the dead plugin had sent.
const (
	vacancyPatience = 300 * time.Millisecond
	vacancyWait     = 30 * time.Millisecond
)

// openSocket opens a listening TCP or a bound UDP socket of one family and
// returns a descriptor of it that the caller owns.
func openSocket(ctx context.Context, proto string, at netip.AddrPort) (*os.File, error) {
	deadline := time.Now().Add(vacancyPatience)
	for {
		f, err := tryOpenSocket(ctx, proto, at)
		if !errors.Is(err, unix.EADDRINUSE) || time.Now().After(deadline) {
			return f, err
		}
		if _, seen := portowner.Of(proto, at); seen {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(vacancyWait):
		}
	}
}

func tryOpenSocket(ctx context.Context, proto string, at netip.AddrPort) (*os.File, error) {
	network := proto + "6" // with IPV6_V6ONLY: the IPv4 side has a socket of its own
	if at.Addr().Is4() {
		network = proto + "4"
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // the daemon accepts plain TCP
	if proto == "udp" {
		c, err := lc.ListenPacket(ctx, network, at.String())
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.(*net.UDPConn).File()
	}
	l, err := lc.Listen(ctx, network, at.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

// refused explains why a host port could not be had.
func (m *portMapping) refused(at netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		owner := "by a process that cannot be seen from here"
		switch holder, ok := portowner.Of(m.Protocol, at); {
		case ok && holder.PID == os.Getpid():
			owner = "by another entry of the same portMappings"
		case ok:
			owner = "by " + holder.String()
		}
		return m.inUse(at, owner)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return badValue(mappingsKey, m, fmt.Sprintf("hostIP %s is not an address of this host", at.Addr()))
	case errors.Is(err, fs.ErrPermission):
		return fail(types.ErrIOFailure, "%s %s: host port %s/%s: %v; lower net.ipv4.ip_unprivileged_port_start or choose a port from 1024",
			mappingsKey, compact(m), at, m.Protocol, err)
	}
	return fail(types.ErrIOFailure, "%s %s: host port %s/%s: %v", mappingsKey, compact(m), at, m.Protocol, err)
}

// inUse says whose a host port is.
func (m *portMapping) inUse(at netip.AddrPort, owner string) error {
	return fail(ErrPortInUse, "%s %s: host port %s/%s is in use %s; stop that or choose another host port",
		mappingsKey, compact(m), at, m.Protocol, owner)
}

// closeAll closes descriptors that were handed over or are not wanted any more.
func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// published finds the publication that was wanted.
func published(want control.PublicationSpec, have []control.Publication) (control.Publication, bool) {
	n := slices.IndexFunc(have, func(h control.Publication) bool {
		return h.Proto == want.Proto && h.HostIP == want.HostIP && h.HostPort == want.HostPort && h.Port == want.Port
	})
	if n < 0 {
		return control.Publication{}, false
	}
	return have[n], true
}
