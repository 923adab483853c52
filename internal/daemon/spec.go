package daemon

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/ipam"
	"github.com/usernet/usernet/netstack"
)

// newRecord makes the record of a network that is asked for by name, or says
// what is wrong with the request. taken are prefixes that a choice of subnets
// must avoid.
func newRecord(req *control.CreateNetworkRequest, source control.NetworkSource, taken []netip.Prefix) (*networkRecord, error) {
	if err := control.ValidateName("network name", req.Name); err != nil {
		return nil, err
	}
	if err := checkMTU(req.MTU); err != nil {
		return nil, fmt.Errorf("network %s: %w", req.Name, err)
	}
	sets := req.Sets
	switch {
	case len(sets) > 0 && len(req.Subnets) > 0:
		return nil, control.Errorf(control.CodeInvalid, "network %s: sets and subnets exclude each other", req.Name)
	case len(req.Subnets) > 0:
		for _, s := range req.Subnets {
			sets = append(sets, []control.Range{{Subnet: s}})
		}
	case len(sets) == 0:
		chosen, err := chooseSubnets(taken)
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", req.Name, err)
		}
		for _, s := range chosen {
			sets = append(sets, []control.Range{{Subnet: s}})
		}
	}
	wanted, err := networkPolicy{}.with(&req.PolicyWishes)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", req.Name, err)
	}
	normal, gateways, err := normalizeSets(sets)
	if err != nil {
		return nil, control.Errorf(control.CodeInvalid, "network %s: %v", req.Name, err)
	}
	r := &networkRecord{
		Name: req.Name, Source: source, Sets: normal, Gateways: gateways, MTU: req.MTU, Internal: req.Internal,
		HostServices: req.HostServices, Allow: req.Allow, Created: time.Now().UTC(), networkPolicy: wanted,
	}
	if r.MTU == 0 {
		r.MTU = netstack.DefaultMTU
	}
	return r, nil
}

// checkMTU checks a wanted MTU; 0 means a default.
func checkMTU(mtu int) error {
	if mtu != 0 && (mtu < netstack.MinMTU || mtu > 65535) {
		return control.Errorf(control.CodeInvalid, "mtu %d is outside %d–65535 (1280 is IPv6's minimum, RFC 8200 §5)", mtu, netstack.MinMTU)
	}
	return nil
}

// normalizeSets fills in what the ranges leave out and returns the network's
// gateways, one per subnet.
func normalizeSets(sets [][]control.Range) ([][]ipam.Range, []netip.Prefix, error) {
	cfg, err := ipam.Config{Sets: ipamSets(sets)}.Normalize()
	if err != nil {
		return nil, nil, err
	}
	var gateways []netip.Prefix
	for _, r := range slices.Concat(cfg.Sets...) {
		g := netip.PrefixFrom(r.Gateway, r.Subnet.Bits())
		i := slices.IndexFunc(gateways, func(o netip.Prefix) bool { return o.Masked() == g.Masked() })
		switch {
		case i < 0:
			gateways = append(gateways, g)
		case gateways[i] != g:
			return nil, nil, fmt.Errorf("gateways %v and %v are of one subnet: give all ranges of it the same gateway", gateways[i], g)
		}
	}
	return cfg.Sets, gateways, nil
}

// recordOfAttach makes the record of the network that an attach implies: by
// its ranges, or by the addresses that were leased elsewhere. Nil without
// error: the request implies nothing, the network must exist.
func recordOfAttach(req *control.AttachRequest) (*networkRecord, error) {
	switch {
	case req.Unaddressed:
		return &networkRecord{
			Name: req.Network, Source: control.SourceAttach, MTU: netstack.DefaultMTU, Internal: true, Created: time.Now().UTC(),
		}, nil
	case len(req.Sets) > 0:
		return newRecord(&control.CreateNetworkRequest{
			Name: req.Network, Sets: req.Sets, Internal: req.Internal, PolicyWishes: req.PolicyWishes,
		}, control.SourceAttach, nil)
	case len(req.Addrs) > 0:
		gateways, err := delegatedGateways(req)
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", req.Network, err)
		}
		wanted, err := networkPolicy{}.with(&req.PolicyWishes)
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", req.Network, err)
		}
		return &networkRecord{
			Name: req.Network, Source: control.SourceAttach, Gateways: gateways, MTU: netstack.DefaultMTU,
			Internal: req.Internal, Created: time.Now().UTC(), networkPolicy: wanted,
		}, nil
	}
	return nil, nil
}

// delegatedGateways is the gateway of each family of a network whose addresses
// another IPAM leases. Without one in the request it is the subnet's first
// address, as host-local computes it.
func delegatedGateways(req *control.AttachRequest) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, p := range req.Addrs {
		if slices.ContainsFunc(out, func(g netip.Prefix) bool { return g.Addr().Is4() == p.Addr().Is4() }) {
			continue
		}
		gw := p.Masked().Addr().Next()
		for _, g := range req.Gateways {
			if g.IsValid() && g.Is4() == p.Addr().Is4() {
				gw = g
			}
		}
		if !p.Contains(gw) || slices.ContainsFunc(req.Addrs, func(a netip.Prefix) bool { return a.Addr() == gw }) {
			return nil, control.Errorf(control.CodeInvalid, "address %v: no gateway beside it in its subnet (got %v); let the ipam plugin return one, and addresses with their subnet's length", p, gw)
		}
		out = append(out, netip.PrefixFrom(gw, p.Bits()))
	}
	return out, nil
}

// agrees reports how a network differs from what an attach wants it to be;
// nil when it does not.
func (r *networkRecord) agrees(want *networkRecord) error {
	switch {
	case want == nil:
		return nil
	case len(r.Sets) == 0 && len(want.Sets) > 0:
		return conflictf("network %s takes addresses that another ipam leases (%v), the request has ranges", r.Name, r.prefixes())
	case len(r.Sets) > 0 && len(want.Sets) == 0:
		return conflictf("network %s leases its own addresses (%s), the request brings some leased elsewhere", r.Name, setsText(r.Sets))
	case r.agreesWithSets(want.Sets) != nil:
		return r.agreesWithSets(want.Sets)
	case len(r.Sets) == 0 && !slices.Equal(r.Gateways, want.Gateways):
		return conflictf("network %s has gateways %v, the request's addresses have %v", r.Name, r.Gateways, want.Gateways)
	case r.Internal != want.Internal:
		return conflictf("network %s has internal %v, the request wants %v", r.Name, r.Internal, want.Internal)
	}
	return nil
}

// agreesWithSets is agrees as far as ranges go.
func (r *networkRecord) agreesWithSets(sets [][]ipam.Range) error {
	if reflect.DeepEqual(r.Sets, sets) {
		return nil
	}
	return conflictf("network %s has ranges %s, the request %s; remove the network's links to redefine it, or use another name", r.Name, setsText(r.Sets), setsText(sets))
}

func conflictf(format string, args ...any) error {
	return control.Errorf(control.CodeConflict, format, args...)
}

func (r *networkRecord) prefixes() []netip.Prefix {
	var all []netip.Prefix
	for _, g := range r.Gateways {
		all = append(all, g.Masked())
	}
	return all
}

// sameDefinition compares what a definition says, not when it was made.
func (r *networkRecord) sameDefinition(o *networkRecord) bool {
	a, b := *r, *o
	a.Created, b.Created = time.Time{}, time.Time{}
	return reflect.DeepEqual(a, b)
}

func setsText(sets [][]ipam.Range) string {
	var parts []string
	for _, set := range sets {
		var ranges []string
		for _, r := range set {
			ranges = append(ranges, fmt.Sprintf("%v (%v–%v, gateway %v)", r.Subnet, r.Start, r.End, r.Gateway))
		}
		parts = append(parts, strings.Join(ranges, " or "))
	}
	return strings.Join(parts, ", ")
}

// ipamSets is sets in package ipam's words.
func ipamSets(sets [][]control.Range) [][]ipam.Range {
	var out [][]ipam.Range
	for _, set := range sets {
		var rs []ipam.Range
		for _, r := range set {
			rs = append(rs, ipam.Range{Subnet: r.Subnet, Start: r.RangeStart, End: r.RangeEnd, Gateway: r.Gateway})
		}
		out = append(out, rs)
	}
	return out
}

// controlSets is the inverse of ipamSets.
func controlSets(sets [][]ipam.Range) [][]control.Range {
	out := [][]control.Range{}
	for _, set := range sets {
		var rs []control.Range
		for _, r := range set {
			rs = append(rs, control.Range{Subnet: r.Subnet, RangeStart: r.Start, RangeEnd: r.End, Gateway: r.Gateway})
		}
		out = append(out, rs)
	}
	return out
}

// choicePool is where subnets come from when nobody names one: a part of
// 10/8 that neither docker, podman, kubernetes nor libvirt use by default.
var choicePool = netip.MustParsePrefix("10.191.0.0/16")

// chooseSubnets picks a free IPv4 /24 and an IPv6 /64 with a random global id
// (RFC 4193 §3.2).
func chooseSubnets(taken []netip.Prefix) ([]netip.Prefix, error) {
	free := func(p netip.Prefix) bool {
		return !slices.ContainsFunc(taken, p.Overlaps)
	}
	base := choicePool.Addr().As4()
	var v4 netip.Prefix
	for i := range 256 {
		base[2] = byte(i)
		if p := netip.PrefixFrom(netip.AddrFrom4(base), 24); free(p) {
			v4 = p
			break
		}
	}
	if !v4.IsValid() {
		return nil, control.Errorf(control.CodeExhausted, "no free subnet is left in %v; name one", choicePool)
	}
	for {
		var a [16]byte
		if _, err := rand.Read(a[1:6]); err != nil {
			return nil, fmt.Errorf("choose an IPv6 subnet: %w", err)
		}
		a[0] = 0xfd
		if p := netip.PrefixFrom(netip.AddrFrom16(a), 64); free(p) {
			return []netip.Prefix{v4, p}, nil
		}
	}
}
