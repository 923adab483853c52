package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/time/rate"

	"github.com/usernet/usernet/tunnel"
)

// HostLinkConfig describes a host's own attachment to a network.
type HostLinkConfig struct {
	// Name tells the host links of a network apart, in errors and logs; as a
	// link's. It is not resolved. Required.
	Name string

	// MTU of the host's device in bytes. Zero: the network's.
	MTU int

	// Forward lets in what the host forwards for others, from any source that
	// is no address of the network: hostPort rules of a runtime rewrite the
	// destination and leave the client's address. It opens the containers to
	// whoever the host forwards for. Zero: the gateway and the host's own
	// addresses alone, see SetHostAddrs.
	Forward bool
}

// hostPeerFlows bounds the flows that a host has open through one host link, at
// about 400 bytes each. The host is trusted not to mean harm; the bound is
// against accidents.
const hostPeerFlows = 65536

// AttachHost joins a device of the host's own to the network: what the host's
// kernel sends to a container's address goes there, and what the container
// answers comes back. The host has the gateway's addresses on its side of the
// device, and routes for the network's prefixes.
//
// Containers gain nothing: a packet of theirs reaches the host only if it
// belongs to a flow that the host has opened, or is an ICMP error about one.
// Everything else is judged as if there were no host link. To containers the
// host is the gateway, one hop away: no hop limit is decremented.
//
// A network may have several host links, one per namespace of the host's. The
// switch owns dev when it succeeds; when it fails, the caller still does. The
// link's Addrs are the gateway's, and it is none of [Switch.Links].
func (s *Switch) AttachHost(dev tunnel.Device, cfg HostLinkConfig) (*Link, error) {
	name := strings.ToLower(cfg.Name)
	mtu := orInt(cfg.MTU, s.cfg.MTU)
	if err := errors.Join(checkName(name), checkMTU(mtu)); err != nil {
		return nil, &OpError{Op: "attach host", Object: cfg.Name, Err: err}
	}
	errorRate := s.cfg.Limits.ICMPErrors
	l := &Link{
		s: s, name: name, addrs: s.gatewayAddrs(), mtu: mtu, limits: s.cfg.Limits, dev: dev,
		host: true, forward: cfg.Forward,
		newFlows:   rate.NewLimiter(rate.Inf, 0),
		icmpErrors: rate.NewLimiter(rate.Limit(errorRate), int(errorRate)),
		stop:       make(chan struct{}),
		gone:       make(chan struct{}),
	}
	l.limits.PeerFlows = hostPeerFlows
	if err := s.place(l); err != nil {
		return nil, &OpError{Op: "attach host", Object: name, Err: err}
	}
	if err := s.enterHost(l); err != nil {
		l.stopReader()
		return nil, &OpError{Op: "attach host", Object: name, Err: err}
	}
	s.log.Debug("host link attached", "link", name)
	return l, nil
}

// enterHost is enter for a host link.
func (s *Switch) enterHost(l *Link) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case s.hosts[l.name] != nil:
		return fmt.Errorf("%w by another host link", ErrNameInUse)
	}
	s.hosts[l.name] = l
	l.startReader()
	return nil
}

// HostLinks returns the host's own links, by name.
func (s *Switch) HostLinks() []*Link {
	return s.sorted(s.hosts)
}

// maySend reports whether a host link may send from an address: the gateway's,
// one of the host's own, or, on a link that forwards, any but the network's.
func (l *Link) maySend(src netip.Addr) bool {
	if l.s.isGateway(src) {
		return true
	}
	return (l.forward || l.s.hostAddrs.Load().Contains(src)) && l.s.spoofable(src)
}
