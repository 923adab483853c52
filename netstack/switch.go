package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"
	"golang.org/x/time/rate"

	"github.com/usernet/usernet/internal/policy"
	"github.com/usernet/usernet/tunnel"
)

// Switch is one network: it forwards between its links and connects them with
// the outside. Its methods are safe for concurrent use.
type Switch struct {
	cfg                Config
	log                *slog.Logger
	gateway4, gateway6 netip.Addr
	flows              *flowTable
	pins               pinTable
	tcp                *tcpNAT
	udp                *udpNAT
	icmp               *icmpNAT
	resolver           *resolver
	workers            workers

	// Read for every packet, replaced whole: immutable values.
	fib       atomic.Pointer[bart.Table[*Link]]
	rules     atomic.Pointer[policy.Table]
	hostAddrs atomic.Pointer[policy.HostAddrs]
	names     atomic.Pointer[names]
	isLink    func(netip.Addr) bool // linkByAddr(a) != nil, bound once

	mu      sync.Mutex // guards what follows; serialises changes of the tables above
	links   map[string]*Link
	hosts   map[string]*Link // the host's own
	policy  Policy
	refused []netip.Prefix // see Config.Refuse
	closed  bool
	past    linkCounters // of links that have left
	// pastDevices are the drops that the devices of those counted themselves.
	pastDevices map[string]uint64
}

// New makes a switch. It has no links yet, and refuses egress to the addresses
// that the host has at this moment; SetHostAddrs follows changes.
func New(cfg Config) (*Switch, error) {
	cfg, err := cfg.normalize()
	if err != nil {
		return nil, &OpError{Op: "new network", Object: cfg.Name, Err: err}
	}
	s := &Switch{
		cfg: cfg, log: cfg.Log.With("network", cfg.Name), policy: cfg.Policy, refused: slices.Clone(cfg.Refuse),
		links: map[string]*Link{}, hosts: map[string]*Link{}, pastDevices: map[string]uint64{},
	}
	if err := s.compileLocked(); err != nil {
		return nil, &OpError{Op: "new network", Object: cfg.Name, Err: err}
	}
	for _, g := range slices.Backward(cfg.Gateways) { // the first of a family counts
		if g.Addr().Is4() {
			s.gateway4 = g.Addr()
		} else {
			s.gateway6 = g.Addr()
		}
	}
	s.flows = newFlowTable(cfg.Name, cfg.OnFlow)
	s.fib.Store(new(bart.Table[*Link]))
	s.isLink = func(a netip.Addr) bool { return s.linkByAddr(a) != nil }
	s.SetHostAddrs(interfaceAddrs())
	s.rebuildNamesLocked()
	if err := s.cfg.Fabric.join(s); err != nil {
		return nil, &OpError{Op: "new network", Object: cfg.Name, Err: err}
	}
	if s.workers, err = startWorkers(); err != nil {
		s.cfg.Fabric.leave(s)
		return nil, &OpError{Op: "new network", Object: cfg.Name, Err: err}
	}
	if err := s.startNAT(); err != nil {
		s.workers.close()
		s.cfg.Fabric.leave(s)
		return nil, &OpError{Op: "new network", Object: cfg.Name, Err: err}
	}
	return s, nil
}

// startNAT starts what connects the switch with the outside, in an order that
// close undoes.
func (s *Switch) startNAT() (err error) {
	if s.resolver, err = newResolver(s); err != nil {
		return err
	}
	if s.udp, err = newUDPNAT(s); err != nil {
		s.resolver.close()
		return err
	}
	if s.icmp, err = newICMPNAT(s); err != nil {
		s.udp.close()
		s.resolver.close()
		return err
	}
	if s.tcp, err = newTCPNAT(s); err != nil {
		s.icmp.close()
		s.udp.close()
		s.resolver.close()
	}
	return err
}

// Attach joins a container's device to the network. The switch owns dev when
// it succeeds; when it fails, the caller still does.
func (s *Switch) Attach(dev tunnel.Device, cfg LinkConfig) (*Link, error) {
	l, err := s.newLink(dev, cfg)
	if err == nil {
		err = s.place(l)
	}
	if err != nil {
		return nil, &OpError{Op: "attach", Object: cfg.Name, Err: err}
	}
	if err := s.enter(l, cfg.Bandwidth); err != nil {
		l.stopReader()
		return nil, &OpError{Op: "attach", Object: cfg.Name, Err: err}
	}
	s.log.Debug("link attached", "link", l.name, "addrs", l.addrs)
	return l, nil
}

// enter puts a link that has its place into the tables, and has it read.
func (s *Switch) enter(l *Link, b Bandwidth) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkFreeLocked(l); err != nil {
		return err
	}
	s.links[l.name] = l
	fib := s.fib.Load()
	for _, a := range l.addrs {
		fib = fib.InsertPersist(netip.PrefixFrom(a, a.BitLen()), l)
	}
	s.fib.Store(fib)
	s.rebuildNamesLocked()
	l.setBandwidthLocked(b)
	l.startReader()
	return nil
}

// newLink checks cfg and makes the link, without telling anyone of it.
func (s *Switch) newLink(dev tunnel.Device, cfg LinkConfig) (*Link, error) {
	cfg.Name = strings.ToLower(cfg.Name)
	aliases, err := normalAliases(cfg.Name, cfg.Aliases)
	errs := []error{checkName(cfg.Name), err}
	hostname, err := normalHostname(cfg.Hostname, cfg.Name, aliases)
	errs = append(errs, err)
	mtu := orInt(cfg.MTU, s.cfg.MTU)
	errs = append(errs, checkMTU(mtu), cfg.DHCP.check())
	if len(cfg.Addrs) == 0 && len(s.cfg.Gateways) > 0 {
		errs = append(errs, errors.New("no address: a link needs at least one of the network's prefixes"))
	}
	for _, a := range cfg.Addrs {
		errs = append(errs, s.checkLinkAddr(a))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	limits := s.cfg.Limits
	if cfg.Limits != nil {
		limits = cfg.Limits.withDefaults(limits)
	}
	l := &Link{
		s: s, name: cfg.Name, aliases: aliases, hostname: hostname, addrs: slices.Clone(cfg.Addrs), mtu: mtu, limits: limits, dev: dev, noOwnPorts: cfg.NoOwnPorts,
		newFlows:   rate.NewLimiter(rate.Limit(limits.NewFlows), int(2*limits.NewFlows)),
		icmpErrors: rate.NewLimiter(rate.Limit(limits.ICMPErrors), int(limits.ICMPErrors)),
		stop:       make(chan struct{}),
		gone:       make(chan struct{}),
	}
	l.dhcp = newDHCPServer(l, cfg.DHCP)
	return l, nil
}

func (s *Switch) checkLinkAddr(a netip.Addr) error {
	for _, g := range s.cfg.Gateways {
		if g.Addr() == a {
			return fmt.Errorf("address %v is the gateway's", a)
		}
		if g.Contains(a) {
			return nil
		}
	}
	return fmt.Errorf("address %v is outside the network's prefixes %v", a, s.cfg.Gateways)
}

func (s *Switch) checkFreeLocked(l *Link) error {
	if s.closed {
		return ErrClosed
	}
	if s.links[l.name] != nil {
		return ErrNameInUse
	}
	for _, a := range l.addrs {
		if other := s.linkByAddr(a); other != nil {
			return fmt.Errorf("%w: %v is link %s's", ErrAddressInUse, a, other.name)
		}
	}
	return nil
}

// removeLink takes a link out of the tables, so that nothing new reaches it.
func (s *Switch) removeLink(l *Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.host {
		delete(s.hosts, l.name)
		return
	}
	fib := s.fib.Load()
	for _, a := range l.addrs {
		fib = fib.DeletePersist(netip.PrefixFrom(a, a.BitLen()))
	}
	s.fib.Store(fib)
	delete(s.links, l.name)
	s.rebuildNamesLocked()
}

// forgetLink keeps the counters of a link that has left whole.
func (s *Switch) forgetLink(l *Link) {
	for d := range s.past.packets {
		if l.host {
			break // a host link's traffic counts at the containers' links
		}
		s.past.packets[d].Add(l.counters.packets[d].Load())
		s.past.bytes[d].Add(l.counters.bytes[d].Load())
	}
	s.past.drops.merge(&l.counters.drops)
	drops := map[string]uint64{}
	addDeviceDrops(l.dev, drops)
	s.mu.Lock()
	for reason, n := range drops {
		s.pastDevices[reason] += n
	}
	s.mu.Unlock()
	s.log.Debug("link detached", "link", l.name)
}

// Link returns the link of that name, or nil.
func (s *Switch) Link(name string) *Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.links[strings.ToLower(name)]
}

// Links returns the links, by name.
func (s *Switch) Links() []*Link {
	return s.sorted(s.links)
}

// sorted lists links, or host links, by name.
func (s *Switch) sorted(links map[string]*Link) []*Link {
	s.mu.Lock()
	all := slices.Collect(maps.Values(links))
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b *Link) int { return strings.Compare(a.name, b.name) })
	return all
}

// linkByAddr finds the link that holds an address.
func (s *Switch) linkByAddr(a netip.Addr) *Link {
	l, _ := s.fib.Load().Lookup(a)
	return l
}

// isGateway reports whether an address is the switch's own.
func (s *Switch) isGateway(a netip.Addr) bool {
	for _, g := range s.cfg.Gateways {
		if g.Addr() == a {
			return true
		}
	}
	return false
}

// gateway is the switch's own address of a family, the first where it has
// several, invalid if the family is off.
func (s *Switch) gateway(v4 bool) netip.Addr {
	if v4 {
		return s.gateway4
	}
	return s.gateway6
}

func (s *Switch) gatewayAddrs() []netip.Addr {
	var all []netip.Addr
	for _, g := range s.cfg.Gateways {
		all = append(all, g.Addr())
	}
	return all
}

// SetHostAddrs says which addresses the host has: egress to them is refused.
func (s *Switch) SetHostAddrs(addrs, broadcasts []netip.Addr) {
	s.hostAddrs.Store(policy.NewHostAddrs(addrs, broadcasts))
}

// SetRefuse replaces the prefixes that egress must not reach.
func (s *Switch) SetRefuse(refuse []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.refused
	s.refused = slices.Clone(refuse)
	if err := s.compileLocked(); err != nil {
		s.refused = was
		return &OpError{Op: "refuse", Object: fmt.Sprint(refuse), Err: err}
	}
	return nil
}

// checkDial is the last word on a host-side address, on the very sockaddr
// that is about to be used.
func (s *Switch) checkDial(final netip.AddrPort) error {
	if r := s.rules.Load().CheckDial(final.Addr(), s.hostAddrs.Load()); r != policy.ReasonNone {
		return refused(final, r)
	}
	return nil
}

// openFlow opens a flow within the link's rate of new flows, or counts the
// drop and returns nil.
func (s *Switch) openFlow(spec flowSpec) *flow {
	if !spec.link.newFlows.Allow() {
		spec.link.drop(DropFlowRate)
		return nil
	}
	return s.flows.open(spec)
}

// Flows returns the live flows and the last ended ones, oldest first.
func (s *Switch) Flows() []Flow { return s.flows.list() }

// Shutdown detaches every link, closes publications and listeners, and waits
// for what remains until ctx ends. Every other method returns ErrClosed, or
// nothing, afterwards.
func (s *Switch) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return nil
	}
	s.cfg.Fabric.leave(s)
	var errs []error
	s.tcp.closePublications()
	for _, l := range slices.Concat(s.Links(), s.HostLinks()) {
		errs = append(errs, l.Detach(ctx))
	}
	errs = append(errs, s.tcp.close(ctx))
	s.icmp.close()
	s.udp.close()
	s.resolver.close()
	s.flows.stop()
	s.workers.close()
	return errors.Join(errs...)
}

// Close is Shutdown without patience: what is under way is cut.
func (s *Switch) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	return s.Shutdown(ctx)
}
