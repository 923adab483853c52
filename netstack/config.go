package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
	"github.com/usernet/usernet/tunnel"
)

// DefaultMTU is the link MTU in bytes when neither Config nor LinkConfig
// names one. TCP ends in the switch, so the MTU of the path outside is its
// affair; UDP sockets of the host fragment, or answer with an ICMP error where
// the container forbids it. A TCP segment as large as a frame spares the
// containers' kernels the segmentation and half of the acknowledgements.
const DefaultMTU = tunnel.DefaultMTU

// LimitedMTU is the largest MTU in bytes that suits a link with a Bandwidth. TCP
// cannot pace packets of 64 KiB at a few megabits a second: it got 2.7 of 5
// Mbit/s with DefaultMTU, 4.9 with this.
const LimitedMTU = 1500

// MinMTU is the smallest MTU a link may have: IPv6's minimum (RFC 8200 §5).
const MinMTU = 1280

// Config says what a Switch is. The zero value of every field but Gateways is
// sensible. A Switch copies what it needs; changing a Config after New has no
// effect.
type Config struct {
	// Name is the network's name, used in errors, flows and logs.
	// Zero: "default".
	Name string

	// Gateways holds the switch's own address in each of the network's
	// prefixes, for example 10.88.0.1/16 and fd00:88::1/64. Prefixes must not
	// overlap; where a family has several, the first one's address is the one
	// that the switch speaks from. A family without a gateway is off: its
	// packets are dropped and counted. At least one is required, save for an
	// internal network whose links have no addresses and carry nothing.
	Gateways []netip.Prefix

	// MTU is the links' default MTU in bytes. Zero: DefaultMTU.
	MTU int

	// Internal cuts the network off from everything but its own links:
	// no egress, and DNS answers local names only.
	Internal bool

	// DNS configures the resolver on the gateway addresses.
	DNS DNSConfig

	// HostServices are the only way to the host's loopback.
	HostServices []HostService

	// Refuse lists prefixes that egress must not reach, such as the prefixes
	// of other networks. SetRefuse replaces it at run time.
	Refuse []netip.Prefix

	// Allow opens prefixes that the egress baseline refuses (the host's own
	// addresses, link-local, cloud metadata). It never opens loopback.
	Allow []netip.Prefix

	// Policy says what links may reach besides the outside. SetPolicy replaces
	// it at run time.
	Policy Policy

	// Fabric joins this switch with others of the process. Nil: it is alone.
	Fabric *Fabric

	// Limits bound what one link may hold. Zero fields take defaults.
	Limits Limits

	// Host replaces how host sockets are made. Zero: the standard library.
	Host Host

	// Log receives life-cycle events, never packets. Zero: discarded.
	Log *slog.Logger

	// OnFlow, if not nil, is called once when a flow ends, from the goroutine
	// that ended it. It must not block.
	OnFlow func(Flow)
}

// DNSConfig configures the resolver that answers on the gateway addresses.
type DNSConfig struct {
	// Domain is the suffix under which link names also resolve, without
	// dots at its ends. Zero: "usernet.internal".
	Domain string

	// Upstreams are the resolvers that other names are forwarded to.
	// Zero: the host's resolv.conf, followed as it changes.
	Upstreams []netip.AddrPort

	// ResolvConf is the file to follow. Zero: /etc/resolv.conf.
	ResolvConf string

	// Hosts adds names with fixed addresses.
	Hosts map[string][]netip.Addr
}

// HostService lets containers reach one address of the host, loopback
// included: Name resolves to the gateway, and the gateway's port
// Target.Port() leads to Target, over TCP and UDP.
type HostService struct {
	Name   string
	Target netip.AddrPort
}

// Host holds the hooks that make host sockets. A nil field is the standard
// library.
type Host struct {
	// DialContext dials the host side of a TCP flow. A replacement must call
	// control on the socket before it connects, or policy is not enforced on
	// the final address.
	DialContext func(ctx context.Context, network, address string, control ControlFunc) (net.Conn, error)

	// Control, if not nil, is called on every host socket that the switch
	// makes, before bind or connect: to set a mark or bind to a device. It must
	// not block: packets wait for it.
	Control ControlFunc
}

// ControlFunc is the signature of net.Dialer.Control.
type ControlFunc = func(network, address string, c syscall.RawConn) error

// Limits bound what one link may hold at a time. A zero field takes the
// default stated; a negative one refuses the resource altogether. Over a
// limit only the link itself suffers, and a counter tells.
type Limits struct {
	Dials         int     // host-side TCP dials in flight; 128
	TCPFlows      int     // NATed TCP flows; 8192
	UDPFlows      int     // NATed UDP flows; 4096
	PingFlows     int     // NATed ICMP echo identifiers; 256
	PeerFlows     int     // recorded flows to other links; 8192
	NewFlows      float64 // new flows per second; 20,000, burst twice that
	FragmentBytes int     // bytes held for reassembly; 256 KiB
	ICMPErrors    float64 // ICMP errors sent to the container per second; 100
	DNSQueries    int     // queries in flight; 64
}

// withDefaults fills zero fields from d.
func (l Limits) withDefaults(d Limits) Limits {
	return Limits{
		Dials:         orInt(l.Dials, d.Dials),
		TCPFlows:      orInt(l.TCPFlows, d.TCPFlows),
		UDPFlows:      orInt(l.UDPFlows, d.UDPFlows),
		PingFlows:     orInt(l.PingFlows, d.PingFlows),
		PeerFlows:     orInt(l.PeerFlows, d.PeerFlows),
		NewFlows:      orFloat(l.NewFlows, d.NewFlows),
		FragmentBytes: orInt(l.FragmentBytes, d.FragmentBytes),
		ICMPErrors:    orFloat(l.ICMPErrors, d.ICMPErrors),
		DNSQueries:    orInt(l.DNSQueries, d.DNSQueries),
	}
}

// defaultLimits are the figures of Limits' comments. They are passt's and
// tailscale's orders of magnitude per client, so that one container can
// neither starve nor outgrow the process.
func defaultLimits() Limits {
	return Limits{
		Dials: 128, TCPFlows: 8192, UDPFlows: 4096, PingFlows: 256, PeerFlows: 8192,
		NewFlows: 20000, FragmentBytes: 256 << 10, ICMPErrors: 100, DNSQueries: 64,
	}
}

func orInt(v, d int) int {
	if v == 0 {
		return d
	}
	return v
}

func orFloat(v, d float64) float64 {
	if v == 0 {
		return d
	}
	return v
}

// dialTimeout bounds the host side of a TCP flow. Longer than any healthy
// handshake, far shorter than Linux's own two minutes, so that black holes do
// not hold dial slots.
const dialTimeout = 10 * time.Second

// normalize checks cfg and fills its zero fields. All faults are reported.
func (cfg Config) normalize() (Config, error) {
	var errs []error
	if cfg.Name == "" {
		cfg.Name = "default"
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if err := checkMTU(cfg.MTU); err != nil {
		errs = append(errs, err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Fabric == nil {
		cfg.Fabric = new(Fabric)
	}
	if cfg.DNS.Domain == "" {
		cfg.DNS.Domain = "usernet.internal"
	}
	if cfg.DNS.ResolvConf == "" {
		cfg.DNS.ResolvConf = "/etc/resolv.conf"
	}
	cfg.Limits = cfg.Limits.withDefaults(defaultLimits())
	if len(cfg.Gateways) == 0 && !cfg.Internal {
		errs = append(errs, errors.New("no gateway: name one address with its prefix per family, such as 10.88.0.1/16"))
	}
	errs = append(errs, checkGateways(cfg.Gateways)...)
	errs = append(errs, checkHostServices(cfg.HostServices)...)
	return cfg, errors.Join(errs...)
}

func checkMTU(mtu int) error {
	if mtu < MinMTU || mtu > 65535 {
		return fmt.Errorf("MTU %d is outside %d–65535", mtu, MinMTU)
	}
	return nil
}

func checkGateways(gateways []netip.Prefix) []error {
	var errs []error
	for i, g := range gateways {
		if !g.IsValid() || g.Addr().Is4In6() || g.Addr().Zone() != "" {
			errs = append(errs, fmt.Errorf("gateway %v is not an IPv4 or IPv6 address with a prefix length", g))
			continue
		}
		for _, other := range gateways[:i] {
			if other.IsValid() && other.Overlaps(g) {
				errs = append(errs, fmt.Errorf("the prefixes of gateways %v and %v overlap: one gateway to a prefix", other, g))
			}
		}
	}
	return errs
}

func checkHostServices(services []HostService) []error {
	var errs []error
	ports := map[uint16]HostService{}
	for _, h := range services {
		if h.Name == "" || !h.Target.IsValid() || h.Target.Port() == 0 {
			errs = append(errs, fmt.Errorf("host service %q=%v: want NAME=HOST:PORT", h.Name, h.Target))
			continue
		}
		if err := checkName(strings.ToLower(h.Name)); err != nil {
			errs = append(errs, fmt.Errorf("host service %s=%v: %w", h.Name, h.Target, err))
		}
		if a := h.Target.Addr(); a.IsUnspecified() || a.IsMulticast() {
			errs = append(errs, fmt.Errorf("host service %s=%v: %v is not one host's address; write the one that the service listens on, or 127.0.0.1", h.Name, h.Target, a))
		}
		if other, dup := ports[h.Target.Port()]; dup && other.Target != h.Target {
			errs = append(errs, fmt.Errorf("host services %s=%v and %s=%v share the gateway's port %d: use different ports on the host",
				other.Name, other.Target, h.Name, h.Target, h.Target.Port()))
		}
		if h.Target.Port() == dnsPort {
			errs = append(errs, fmt.Errorf("host service %s=%v: the gateway's port 53 is the resolver's", h.Name, h.Target))
		}
		ports[h.Target.Port()] = h
	}
	return errs
}

// dnsPort is where the resolver answers (RFC 1035 §4.2).
const dnsPort = 53

// rules is cfg as the policy package wants it.
func (cfg Config) rules(refuse []netip.Prefix) policy.Rules {
	r := policy.Rules{Internal: cfg.Internal, Refuse: refuse, Allow: cfg.Allow}
	for _, g := range cfg.Gateways {
		r.Network = append(r.Network, g.Masked())
		r.Gateways = append(r.Gateways, g.Addr())
	}
	seen := map[netip.AddrPort]bool{}
	for _, h := range cfg.HostServices {
		if seen[h.Target] {
			continue
		}
		seen[h.Target] = true
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			r.Services = append(r.Services, policy.Service{Proto: proto, Port: h.Target.Port(), Target: h.Target})
		}
	}
	return r
}
