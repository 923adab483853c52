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

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/portowner"
)

// families says which address families a container has.
type families struct{ v4, v6 bool }

func (f *families) add(a netip.Addr) {
	f.v4 = f.v4 || a.Is4()
	f.v6 = f.v6 || a.Is6()
}

func (f families) has(a netip.Addr) bool { return a.Is4() && f.v4 || a.Is6() && f.v6 }

// String names the families for an error.
func (f families) String() string {
	switch {
	case f.v4 && f.v6:
		return "IPv4 and IPv6"
	case f.v4:
		return "IPv4"
	case f.v6:
		return "IPv6"
	}
	return "no family"
}

// hostIPs returns the host addresses that a mapping is published at: the one
// that it names, or every address of each family that the container has. A
// mapping whose address is of a family that the container lacks cannot work,
// and is an error rather than a port that nobody answers.
func (m *portMapping) hostIPs(have families) ([]netip.Addr, error) {
	if m.HostIP != "" {
		a, err := netip.ParseAddr(m.HostIP)
		if err != nil {
			return nil, badValue("runtimeConfig.portMappings", m, "hostIP must be an IPv4 or IPv6 address")
		}
		if a = a.Unmap(); !have.has(a) {
			return nil, badValue("runtimeConfig.portMappings", m, fmt.Sprintf(
				"hostIP is of a family that the container does not have; it has %v", have))
		}
		return []netip.Addr{a}, nil
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

// openMappings opens the host side of all port mappings in the current
// namespace. The caller owns the sockets; on error none stays open.
func (i *invocation) openMappings(ctx context.Context, have families) (specs []control.PublicationSpec, files []*os.File, err error) {
	for n := range i.conf.Runtime.PortMappings {
		s, f, err := i.conf.Runtime.PortMappings[n].listen(ctx, have)
		if err != nil {
			closeAll(files)
			return nil, nil, err
		}
		specs, files = append(specs, s...), append(files, f...)
	}
	return specs, files, nil
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

// listen opens the sockets of one mapping in the current namespace, in the
// order of the publications that go with them. On error nothing stays open.
func (m *portMapping) listen(ctx context.Context, have families) (specs []control.PublicationSpec, files []*os.File, err error) {
	hosts, err := m.hostIPs(have)
	if err != nil {
		return nil, nil, err
	}
	for _, host := range hosts {
		at := netip.AddrPortFrom(host, uint16(m.HostPort))
		f, err := openSocket(ctx, m.Protocol, at)
		if errors.Is(err, unix.EAFNOSUPPORT) && m.HostIP == "" && len(hosts) > 1 {
			continue // a kernel without IPv6 has no IPv6 address to publish at
		}
		if err != nil {
			closeAll(files)
			return nil, nil, m.refused(at, err)
		}
		files = append(files, f)
		specs = append(specs, control.PublicationSpec{
			Proto: m.Protocol, HostIP: host, HostPort: uint16(m.HostPort), Port: uint16(m.ContainerPort), FD: true,
		})
	}
	return specs, files, nil
}

// openSocket opens a listening TCP or a bound UDP socket of one family and
// returns a descriptor of it that the caller owns.
func openSocket(ctx context.Context, proto string, at netip.AddrPort) (*os.File, error) {
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
	const key = "runtimeConfig.portMappings"
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		owner := "by a process that cannot be seen from here"
		switch holder, ok := portowner.Of(m.Protocol, at); {
		case ok && holder.PID == os.Getpid():
			owner = "by another entry of the same portMappings"
		case ok:
			owner = "by " + holder.String()
		}
		return fail(ErrPortInUse, "%s %s: host port %s/%s is in use %s; stop that or choose another host port",
			key, compact(m), at, m.Protocol, owner)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return badValue(key, m, fmt.Sprintf("hostIP %s is not an address of this host", at.Addr()))
	case errors.Is(err, fs.ErrPermission):
		return fail(types.ErrIOFailure, "%s %s: host port %s/%s: %v; lower net.ipv4.ip_unprivileged_port_start or choose a port from 1024",
			key, compact(m), at, m.Protocol, err)
	}
	return fail(types.ErrIOFailure, "%s %s: host port %s/%s: %v", key, compact(m), at, m.Protocol, err)
}

// closeAll closes descriptors that were handed over or are not wanted any more.
func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// checkPublished holds the daemon's link against the port mappings.
func (i *invocation) checkPublished(l *control.Link, have families) error {
	var specs []control.PublicationSpec
	for n := range i.conf.Runtime.PortMappings {
		m := &i.conf.Runtime.PortMappings[n]
		hosts, err := m.hostIPs(have)
		if err != nil {
			return err
		}
		for _, host := range hosts {
			specs = append(specs, control.PublicationSpec{Proto: m.Protocol, HostIP: host, HostPort: uint16(m.HostPort), Port: uint16(m.ContainerPort)})
		}
	}
	if missing := missingPublications(specs, l.Publications); len(missing) > 0 {
		return fail(ErrAttachment, "the daemon's link %s does not publish %v", i.key(), missing)
	}
	return nil
}

// missingPublications reports which of the wanted publications are not there.
func missingPublications(want []control.PublicationSpec, have []control.Publication) []string {
	var missing []string
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h control.Publication) bool {
			return h.Proto == w.Proto && h.HostIP == w.HostIP && h.HostPort == w.HostPort && h.Port == w.Port
		}) {
			missing = append(missing, fmt.Sprintf("%s/%s to port %d", netip.AddrPortFrom(w.HostIP, w.HostPort), w.Proto, w.Port))
		}
	}
	return missing
}
