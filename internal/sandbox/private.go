package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/undo"
	"github.com/usernet/usernet/ipam"
	"github.com/usernet/usernet/netstack"
	"github.com/usernet/usernet/tunnel"
)

// PrivateConfig describes a network that lives in this process. The zero value
// is a network with IPv4 and IPv6 and a way out.
type PrivateConfig struct {
	// Name of the network. Zero: "default".
	Name string
	// Subnets, at most one per family. Zero for a family: one that does not
	// overlap the host's own, see [DefaultSubnets].
	Subnets []netip.Prefix
	// NoIPv6 leaves IPv6 out.
	NoIPv6 bool
	// MTU in bytes. Zero: netstack.DefaultMTU.
	MTU int
	// Internal cuts the network off from everything but its own sandboxes.
	Internal bool
	// DNS are the resolvers to forward to. Zero: those of the host's
	// resolv.conf, followed as they change.
	DNS []netip.AddrPort
	// Hosts are further names that the network's resolver answers.
	Hosts []HostEntry
	// HostServices open single ports of the host, its loopback included.
	HostServices []netstack.HostService
	// Log receives life-cycle events. Zero: discarded.
	Log *slog.Logger
	// OnFlow is called when a flow ends; see netstack.Config.
	OnFlow func(netstack.Flow)
}

// Private is a network that lives in this process: a switch, and the addresses
// of its links. Its methods are safe for concurrent use.
type Private struct {
	sw       *netstack.Switch
	pool     *ipam.Pool
	gateways []netip.Addr
	mtu      int
	search   []string
	options  []string

	owners   atomic.Uint64 // numbers the leases' owners
	stop     context.CancelFunc
	watching sync.WaitGroup
}

// NewPrivate makes a network. The caller closes it, after the sandboxes on it
// have ended.
func NewPrivate(cfg PrivateConfig) (*Private, error) {
	subnets, err := chooseSubnets(cfg.Subnets, cfg.NoIPv6)
	if err != nil {
		return nil, err
	}
	var sets [][]ipam.Range
	for _, s := range subnets {
		sets = append(sets, []ipam.Range{{Subnet: s}})
	}
	plan, err := ipam.Config{Sets: sets}.Normalize() // for the gateways that it chooses
	if err != nil {
		return nil, err
	}
	n := &Private{mtu: cfg.MTU}
	var gateways []netip.Prefix
	for _, set := range plan.Sets {
		n.gateways = append(n.gateways, set[0].Gateway)
		gateways = append(gateways, netip.PrefixFrom(set[0].Gateway, set[0].Subnet.Bits()))
	}
	if n.pool, err = ipam.Open(context.Background(), ipam.Config{Sets: sets}, ipam.NewMemStore()); err != nil {
		return nil, err
	}
	if n.sw, err = netstack.New(switchConfig(cfg, gateways)); err != nil {
		return nil, err
	}
	if n.mtu == 0 {
		n.mtu = netstack.DefaultMTU
	}
	if conf, err := os.ReadFile(resolvConfPath); err == nil {
		n.search, n.options = hostSearch(conf)
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.watching.Add(1)
	go n.followHost(ctx, cfg.Log)
	return n, nil
}

func switchConfig(cfg PrivateConfig, gateways []netip.Prefix) netstack.Config {
	dns := netstack.DNSConfig{Upstreams: cfg.DNS, Hosts: map[string][]netip.Addr{}}
	for _, h := range cfg.Hosts {
		dns.Hosts[h.Name] = append(dns.Hosts[h.Name], h.Addr)
	}
	return netstack.Config{
		Name: cfg.Name, Gateways: gateways, MTU: cfg.MTU, Internal: cfg.Internal, DNS: dns,
		HostServices: cfg.HostServices, Log: cfg.Log, OnFlow: cfg.OnFlow,
	}
}

// followHost tells the switch of the host's addresses, which egress must not
// reach, as they come and go. NewPrivate starts it; Close ends it.
func (n *Private) followHost(ctx context.Context, log *slog.Logger) {
	defer n.watching.Done()
	err := netns.Watch(ctx, n.sw.SetHostAddrs)
	if ctx.Err() == nil && log != nil {
		log.Warn("changes of the host's addresses are no longer followed", "err", err)
	}
}

// Switch is the network's switch, for flows, captures and counters.
func (n *Private) Switch() *netstack.Switch { return n.sw }

// Gateways are the network's own addresses, one per family.
func (n *Private) Gateways() []netip.Addr { return slices.Clone(n.gateways) }

// Close ends the network and cuts what is still attached.
func (n *Private) Close() error {
	n.stop()
	n.watching.Wait()
	return n.sw.Close()
}

// Attach implements Network.
func (n *Private) Attach(ctx context.Context, tun *os.File, spec LinkSpec) (_ Attachment, err error) {
	var undo undo.List
	defer undo.Run()
	owner := ipam.Owner(spec.Name + "/" + strconv.FormatUint(n.owners.Add(1), 10))
	lease, err := n.pool.Acquire(ctx, ipam.Request{Owner: owner})
	if err != nil {
		return nil, err
	}
	a := &privateLink{network: n, owner: owner, settings: Settings{
		Addrs: lease.Addrs, Gateways: n.gateways, MTU: n.mtu,
		Nameservers: n.gateways, Search: n.search, Options: n.options,
	}}
	undo.Add(func() { _ = n.pool.Release(context.WithoutCancel(ctx), owner) }) // of a store in memory: it cannot fail
	dev, err := tunnel.Open(tun, n.mtu)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, p := range lease.Addrs {
		addrs = append(addrs, p.Addr())
	}
	if a.link, err = n.sw.Attach(dev, netstack.LinkConfig{Name: spec.Name, Addrs: addrs, MTU: n.mtu}); err != nil {
		dev.Close()
		return nil, err
	}
	undo.Add(func() { _ = a.link.Detach(context.WithoutCancel(ctx)) }) // fails by its context only
	for _, p := range spec.Publish {
		pub, err := n.sw.Publish(netstack.PublishConfig{Link: a.link.Name(), Proto: p.Proto, Host: p.Host, Port: p.Port})
		if err != nil {
			return nil, err
		}
		a.settings.Published = append(a.settings.Published, Publish{Proto: p.Proto, Host: pub.Host(), Port: p.Port})
	}
	undo.Keep() // detaching closes the publications too
	return a, nil
}

// privateLink is a link of a Private network.
type privateLink struct {
	network  *Private
	owner    ipam.Owner
	link     *netstack.Link
	settings Settings
}

// Settings implements Attachment.
func (a *privateLink) Settings() Settings { return a.settings }

// Commit implements Attachment: the link lives in this process, as long as it.
func (a *privateLink) Commit(context.Context) error { return nil }

// Detach implements Attachment.
func (a *privateLink) Detach(ctx context.Context) error {
	return errors.Join(a.link.Detach(ctx), a.network.pool.Release(ctx, a.owner))
}

// Default subnets: out of the way of docker's (172.17/16), podman's (10.88/16),
// libvirt's (192.168.122/24) and Kubernetes' (10.96/12, 10.244/16) own. The ULA's
// global identifier is fixed: these addresses never leave the process, so that
// they need not be unique.
var (
	defaultSubnet4 = netip.MustParsePrefix("10.83.0.0/24")
	defaultSubnet6 = netip.MustParsePrefix("fd83:7573:6572::/64")
)

// DefaultSubnets returns the subnets of a network that names none: 10.83.0.0/24,
// or the next such subnet that does not overlap one of taken, and
// fd83:7573:6572::/64.
func DefaultSubnets(taken []netip.Prefix) (v4, v6 netip.Prefix, err error) {
	v4, v6 = defaultSubnet4, defaultSubnet6
	for third := 0; overlapsAny(v4, taken); third++ {
		if third > 255 {
			return v4, v6, errors.New("every default subnet of 10.83.0.0/16 overlaps a network of this host; choose one with --subnet")
		}
		v4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 83, byte(third), 0}), 24)
	}
	return v4, v6, nil
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	return slices.ContainsFunc(others, p.Overlaps)
}

// chooseSubnets checks the wanted subnets and adds a default one for each family
// that has none, IPv4 first.
func chooseSubnets(want []netip.Prefix, noIPv6 bool) ([]netip.Prefix, error) {
	var v4, v6 netip.Prefix
	for _, p := range want {
		if err := checkSubnet(p); err != nil {
			return nil, err
		}
		family := &v4
		if p.Addr().Is6() {
			family = &v6
		}
		if family.IsValid() {
			return nil, fmt.Errorf("subnets %s and %s are of one family: give at most one of each", *family, p)
		}
		*family = p
	}
	if noIPv6 && v6.IsValid() {
		return nil, fmt.Errorf("subnet %s is of IPv6, and the network is to have no IPv6", v6)
	}
	free4, free6, err := DefaultSubnets(append(hostPrefixes(), want...))
	switch {
	case v4.IsValid():
	case err != nil:
		return nil, err
	default:
		v4 = free4
	}
	if noIPv6 {
		return []netip.Prefix{v4}, nil
	}
	if !v6.IsValid() {
		v6 = free6
	}
	return []netip.Prefix{v4, v6}, nil
}

func checkSubnet(p netip.Prefix) error {
	switch {
	case !p.IsValid() || p.Addr().Is4In6():
		return fmt.Errorf("subnet %v is not an IPv4 or IPv6 subnet; write it as 10.9.0.0/24 or fd00:9::/64", p)
	case p.Masked() != p:
		return fmt.Errorf("subnet %s has bits of an address behind its length; write %s", p, p.Masked())
	case p.Addr().BitLen()-p.Bits() < 2:
		return fmt.Errorf("subnet %s is too small: it needs room for the gateway and a sandbox, a /30 or /126 at least", p)
	case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Bits() == 0:
		return fmt.Errorf("subnet %s is not one that a network can have; choose a private one such as 10.9.0.0/24 or fd00:9::/64", p)
	}
	return nil
}

// Shadows returns the host's networks that overlap subnets: what is in them
// cannot be reached from a network with these.
func Shadows(subnets []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(hostPrefixes(), func(p netip.Prefix) bool { return !overlapsAny(p, subnets) })
}

// hostPrefixes returns the networks that the host's interfaces are in. An
// unreadable list is an empty one: it only improves a choice.
func hostPrefixes() []netip.Prefix {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var list []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			list = append(list, p.Masked())
		}
	}
	return list
}
