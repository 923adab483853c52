package netstack

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
)

// IngressPolicy says from where, besides the outside by way of publications,
// flows may come to the links of a network.
type IngressPolicy string

// The ingress policies. Two networks of one [Fabric] reach each other, by
// address and in both directions, only if both are open and neither is
// internal.
const (
	IngressSameBridge IngressPolicy = "same-bridge" // from links of the same network
	IngressOpen       IngressPolicy = "open"        // and from those of other networks that are open
	IngressIsolated   IngressPolicy = "isolated"    // from no link
)

// Policy says what links may reach besides the outside. It may be changed while
// there are flows; those that it no longer allows are cut.
type Policy struct {
	// Ingress says who reaches the network's links. Zero: IngressSameBridge.
	Ingress IngressPolicy

	// PortIsolation keeps the network's links apart from each other. They
	// reach the gateway, the outside and published ports.
	PortIsolation bool

	// NoHairpin closes published ports, at the host's addresses, to the
	// network's own containers.
	NoHairpin bool
}

// Fabric joins the switches of one process. Those of one Fabric have different
// prefixes, forward to each other where their policies let them, and reach each
// other's publications. The zero value is ready; a switch without one is alone.
type Fabric struct {
	routes atomic.Pointer[bart.Table[*Switch]] // by prefix; replaced whole under mu

	mu       sync.RWMutex // guards what follows
	switches []*Switch
	pubs     map[pubKey][]*Publication
}

// pubKey is what a client asks for to come to a publication.
type pubKey struct {
	proto uint8
	host  netip.AddrPort // address zero of a family: all of the host's
}

func (p *Publication) key() pubKey {
	proto := packet.ProtoTCP
	if p.proto == "udp" {
		proto = packet.ProtoUDP
	}
	return pubKey{proto, p.host}
}

// publish makes a publication known to all switches.
func (f *Fabric) publish(p *Publication) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pubs == nil {
		f.pubs = map[pubKey][]*Publication{}
	}
	f.pubs[p.key()] = append(f.pubs[p.key()], p)
}

// unpublish is publish's inverse.
func (f *Fabric) unpublish(p *Publication) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := p.key()
	if f.pubs[k] == nil {
		return
	}
	f.pubs[k] = slices.DeleteFunc(f.pubs[k], func(o *Publication) bool { return o == p })
	if len(f.pubs[k]) == 0 {
		delete(f.pubs, k)
	}
}

// publication finds what a client gets who asks for a port of the host's. Of
// several in namespaces of their own it is the first.
func (f *Fabric) publication(proto uint8, host netip.AddrPort) *Publication {
	all := netip.IPv6Unspecified()
	if host.Addr().Is4() {
		all = netip.IPv4Unspecified()
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, k := range []pubKey{{proto, host}, {proto, netip.AddrPortFrom(all, host.Port())}} {
		if ps := f.pubs[k]; len(ps) > 0 {
			return ps[0]
		}
	}
	return nil
}

// join adds a switch, unless its prefixes are another one's already.
func (f *Fabric) join(s *Switch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	routes := f.routes.Load()
	if routes == nil {
		routes = new(bart.Table[*Switch])
	}
	for _, g := range s.cfg.Gateways {
		for _, other := range f.switches {
			for _, o := range other.cfg.Gateways {
				if o.Masked().Overlaps(g.Masked()) {
					return fmt.Errorf("prefix %v overlaps %v of network %s: networks of one fabric need different ones", g.Masked(), o.Masked(), other.cfg.Name)
				}
			}
		}
		routes = routes.InsertPersist(g.Masked(), s)
	}
	f.routes.Store(routes)
	f.switches = append(f.switches, s)
	return nil
}

// leave takes a switch out; twice is no error.
func (f *Fabric) leave(s *Switch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.switches, s)
	if i < 0 {
		return
	}
	f.switches = slices.Delete(f.switches, i, i+1)
	routes := f.routes.Load()
	for _, g := range s.cfg.Gateways {
		routes = routes.DeletePersist(g.Masked())
	}
	f.routes.Store(routes)
}

// list returns the switches.
func (f *Fabric) list() []*Switch {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.switches)
}

// network finds the switch whose network an address lies in, or nil.
func (f *Fabric) network(a netip.Addr) *Switch {
	routes := f.routes.Load()
	if routes == nil {
		return nil
	}
	s, _ := routes.Lookup(a)
	return s
}

// joined returns the other switch that an address lies in, if policy joins the
// two; nil otherwise. A network that is not open pays one load for it.
func (s *Switch) joined(a netip.Addr) *Switch {
	rules := s.rules.Load()
	if !rules.Open() {
		return nil
	}
	other := s.cfg.Fabric.network(a)
	if other == nil || other == s || !other.rules.Load().Open() {
		return nil
	}
	return other
}

// foreignLink finds the link of a joined network that holds an address.
func (s *Switch) foreignLink(a netip.Addr) *Link {
	if other := s.joined(a); other != nil {
		return other.linkByAddr(a)
	}
	return nil
}

// dropPeers ends the flows between links for which cause names one, on this
// switch and on those that flows may have come from.
func (s *Switch) dropPeers(cause func(*flow) string) {
	s.flows.dropPeers(cause)
	for _, other := range s.cfg.Fabric.list() {
		if other != s {
			other.flows.dropPeers(cause)
		}
	}
}

// SetPolicy replaces the network's policy. Flows between links that it no
// longer allows end at once.
func (s *Switch) SetPolicy(p Policy) error {
	s.mu.Lock()
	was := s.policy
	s.policy = p
	err := s.compileLocked()
	if err != nil {
		s.policy = was
	}
	s.mu.Unlock()
	if err != nil {
		return &OpError{Op: "set policy", Object: s.cfg.Name, Err: err}
	}
	s.dropPeers(func(f *flow) string {
		switch pin := f.spec.pin; {
		case f.spec.direction != FlowPeer: // a host's
			return ""
		case pin != nil && pin.from.s.Policy().NoHairpin:
			return "policy: " + policy.ReasonHairpin.String()
		case pin != nil:
			return ""
		}
		if v := f.spec.link.decidePeer(f.spec.peer); v.Action != policy.Forward {
			return "policy: " + v.Reason.String()
		}
		return ""
	})
	return nil
}

// Policy is the network's policy as it is now.
func (s *Switch) Policy() Policy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy
}

// compileLocked makes the rules of the policy and of the refused prefixes, with
// s.mu held.
func (s *Switch) compileLocked() error {
	rules := s.cfg.rules(s.refused)
	var err error
	if rules.Ingress, err = policy.ParseIngress(string(s.policy.Ingress)); err != nil {
		return err
	}
	rules.PortIsolation, rules.NoHairpin = s.policy.PortIsolation, s.policy.NoHairpin
	table, err := policy.Compile(rules)
	if err != nil {
		return err
	}
	s.rules.Store(table)
	return nil
}

// decidePeer asks policy about packets from a link to another one.
func (l *Link) decidePeer(to *Link) policy.Verdict {
	return l.s.rules.Load().DecidePeer(to.s.rules.Load(), l.s == to.s)
}
