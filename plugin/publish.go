package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/portowner"
	"github.com/usernet/usernet/internal/redirect"
)

// publishMode says how port mappings become reachable; see the package comment.
type publishMode string

const (
	publishAuto     publishMode = "auto"     // listen; redirect where the calling runtime keeps the port itself
	publishListen   publishMode = "listen"   // a socket on the host port
	publishRedirect publishMode = "redirect" // a socket on another port, and a rule of nf_tables that leads there
	publishNone     publishMode = "none"     // not at all
)

// publishConf is the key "publish".
type publishConf struct {
	// Mode is one of the modes; empty: publishAuto.
	Mode publishMode
	// DefaultHostIP is where mappings without hostIP are published. Invalid:
	// at every address of the host, as the reference plugin portmap does and
	// as runtimes promise their users.
	DefaultHostIP netip.Addr
}

func decodePublish(c *config, raw json.RawMessage) error {
	var p struct {
		Mode          publishMode `json:"mode"`
		DefaultHostIP string      `json:"defaultHostIP"`
	}
	if err := decodeStrict(raw, &p); err != nil {
		return err
	}
	switch p.Mode {
	case "", publishAuto, publishListen, publishRedirect, publishNone:
	default:
		return unsupported("publish.mode", p.Mode, `want "auto", "listen", "redirect" or "none"`)
	}
	c.Publish.Mode = p.Mode
	if p.DefaultHostIP == "" {
		return nil
	}
	a, err := netip.ParseAddr(p.DefaultHostIP)
	if err != nil || a.IsMulticast() {
		return badValue("publish.defaultHostIP", p.DefaultHostIP, "want an IPv4 or IPv6 address of this host")
	}
	c.Publish.DefaultHostIP = a.Unmap()
	return nil
}

// publisher opens the host side of port mappings in the network namespace of
// the plugin.
type publisher struct {
	conf      publishConf
	owner     control.LinkKey
	caller    caller
	tables    []redirect.Table // that were there before
	rules     []redirect.Rule  // to be made
	reserving bool             // the runtime is going to listen on the ports itself
}

// openMappings opens the host side of all port mappings in the current
// namespace: the publications to ask the daemon for, and the descriptors that go
// with them, which the caller owns. On error nothing stays open.
func (i *invocation) openMappings(ctx context.Context, have families) ([]control.PublicationSpec, []*os.File, error) {
	p := &publisher{conf: i.conf.Publish, owner: i.key(), caller: i.caller()}
	o, err := p.open(ctx, i.conf.Runtime.PortMappings, have)
	if err != nil {
		return nil, nil, err
	}
	return o.specs, o.files, nil
}

// opened is the host side of port mappings.
type opened struct {
	specs []control.PublicationSpec
	files []*os.File // the sockets of specs in their order, and the owner of the redirects if there are any
}

// open opens the host side of mappings to a container that has some families.
// On error nothing stays open. In mode none there is nothing to open.
func (p *publisher) open(ctx context.Context, mappings []portMapping, have families) (_ *opened, err error) {
	o := &opened{}
	if p.conf.Mode == publishNone || len(mappings) == 0 {
		return o, nil
	}
	defer func() {
		if err != nil {
			closeAll(o.files)
		}
	}()
	// Of two ADDs at once, neither sees the other's redirects yet.
	own, err := netns.Current()
	if err != nil {
		return nil, fmt.Errorf("open the plugin's own network namespace: %w", err)
	}
	defer own.Close() // and with it the lock
	if err := lockNetns(ctx, own); err != nil {
		return nil, err
	}
	if p.tables, err = redirect.List(); err != nil && !errors.Is(err, redirect.ErrUnavailable) {
		return nil, err
	}
	p.reserving = p.conf.auto() && p.caller.reserves()
	for n := range mappings {
		if err := p.openMapping(ctx, &mappings[n], have, o); err != nil {
			return nil, err
		}
	}
	if len(p.rules) == 0 {
		return o, nil
	}
	owner, err := redirect.Open(p.owner.String(), p.rules)
	if err != nil {
		return nil, p.noRedirect(err)
	}
	o.files = append(o.files, owner)
	return o, nil
}

// auto reports whether each port is judged for itself.
func (p *publishConf) auto() bool { return p.Mode == "" || p.Mode == publishAuto }

// openMapping opens the sockets of one mapping.
func (p *publisher) openMapping(ctx context.Context, m *portMapping, have families, o *opened) error {
	hosts, err := p.conf.hostIPs(m, have)
	if err != nil {
		return err
	}
	for _, host := range hosts {
		at := netip.AddrPortFrom(host, uint16(m.HostPort))
		f, redirected, err := p.openPort(ctx, m, at)
		if errors.Is(err, unix.EAFNOSUPPORT) && m.HostIP == "" && len(hosts) > 1 {
			continue // a kernel without IPv6 has no IPv6 address to publish at
		}
		if err != nil {
			return err
		}
		o.files = append(o.files, f)
		o.specs = append(o.specs, control.PublicationSpec{
			Proto: m.Protocol, HostIP: host, HostPort: at.Port(), Port: uint16(m.ContainerPort), FD: true, Redirect: redirected,
		})
	}
	return nil
}

// openPort opens the socket that one host port leads to.
func (p *publisher) openPort(ctx context.Context, m *portMapping, at netip.AddrPort) (f *os.File, redirected bool, err error) {
	if owner := p.redirectedFor(m.Protocol, at); owner != "" {
		return nil, false, m.inUse(at, owner)
	}
	f, err = openSocket(ctx, m.Protocol, at)
	busy := errors.Is(err, unix.EADDRINUSE)
	switch {
	case errors.Is(err, unix.EAFNOSUPPORT):
		return nil, false, err
	case err != nil && !(busy && p.mayPass(m.Protocol, at)):
		return nil, false, m.refused(at, err)
	case err == nil && p.conf.Mode != publishRedirect && !p.reserving:
		return f, false, nil
	case err == nil:
		f.Close() // that it could be had was to be known
	}
	if f, err = p.openBehind(ctx, m, at); err != nil {
		return nil, false, err
	}
	return f, true, nil
}

// openBehind opens a socket on a port of the kernel's choice at the same address
// and notes the redirect that leads there.
func (p *publisher) openBehind(ctx context.Context, m *portMapping, at netip.AddrPort) (*os.File, error) {
	f, err := openSocket(ctx, m.Protocol, netip.AddrPortFrom(at.Addr(), 0))
	if err != nil {
		return nil, m.refused(at, err)
	}
	port, err := portOf(f)
	if err != nil {
		f.Close()
		return nil, m.refused(at, err)
	}
	p.rules = append(p.rules, redirect.Rule{Proto: m.Protocol, Host: at, Port: port})
	return f, nil
}

// portOf returns the port that a socket is bound to.
func portOf(f *os.File) (uint16, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var sa unix.Sockaddr
	cerr := raw.Control(func(fd uintptr) { sa, err = unix.Getsockname(int(fd)) })
	if err := errors.Join(cerr, err); err != nil {
		return 0, fmt.Errorf("port of the socket: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return uint16(sa.Port), nil
	}
	return 0, fmt.Errorf("port of the socket: it is no socket of IP (%T)", sa)
}

// redirectedFor says for whom a host port is redirected, "" for nobody.
func (p *publisher) redirectedFor(proto string, at netip.AddrPort) string {
	wanted := redirect.Rule{Proto: proto, Host: at}
	if slices.ContainsFunc(p.rules, wanted.Overlaps) {
		return "by another entry of the same portMappings"
	}
	for _, t := range p.tables {
		if slices.ContainsFunc(t.Rules, wanted.Overlaps) && !t.Of(p.owner.String()) {
			return "by the container of the link " + t.Owner
		}
	}
	return ""
}

// mayPass reports whether clients of a port that somebody holds may be led past
// the holder. In mode auto only past the calling runtime, which holds it for the
// container; where the configuration asks for redirects past everybody but
// other containers of usernet.
func (p *publisher) mayPass(proto string, at netip.AddrPort) bool {
	sockets := portowner.All(proto, at)
	switch {
	case p.conf.auto():
		return len(sockets) > 0 && !slices.ContainsFunc(sockets, func(holders []portowner.Process) bool {
			return !slices.ContainsFunc(holders, p.caller.owns)
		})
	case p.conf.Mode == publishRedirect:
		return !slices.ContainsFunc(sockets, func(holders []portowner.Process) bool {
			return slices.ContainsFunc(holders, isUsernet)
		})
	}
	return false
}

// isUsernet reports whether a process is a switch, or this very plugin.
func isUsernet(h portowner.Process) bool { return h.Name == "usernet" || h.PID == os.Getpid() }

// noRedirect says what to do where there can be no redirect.
func (p *publisher) noRedirect(err error) error {
	remedy := `set "publish": {"mode": "listen"}, and see that nobody else listens on the host port`
	if p.reserving {
		remedy = `podman keeps published ports itself; write enable_port_reservation = false below [engine] of /etc/containers/containers.conf`
	}
	return fail(ErrCapability, "%s: host port %s/%s: %v; or %s", mappingsKey, p.rules[0].Host, p.rules[0].Proto, err, remedy)
}
