package conform

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// addResult is a result of ADD, of any version (section 5, "ADD Success"; for
// 0.1.0 and 0.2.0 the specification of that version, "Result").
type addResult struct {
	CNIVersion string         `json:"cniVersion"`
	Interfaces []*ifResult    `json:"interfaces"`
	IPs        []*ipResult    `json:"ips"`
	IP4        *oldIP         `json:"ip4"`
	IP6        *oldIP         `json:"ip6"`
	Routes     []*routeResult `json:"routes"`
	DNS        struct {
		Nameservers []string `json:"nameservers"`
	} `json:"dns"`

	keys map[string]json.RawMessage // as they are spelled
}

type ifResult struct {
	Name    string `json:"name"`
	MAC     string `json:"mac"`
	MTU     int    `json:"mtu"`
	Sandbox string `json:"sandbox"`
}

type ipResult struct {
	Version   *string `json:"version"`
	Interface *int    `json:"interface"`
	Address   string  `json:"address"`
	Gateway   string  `json:"gateway"`
}

type oldIP struct {
	IP      string         `json:"ip"`
	Gateway string         `json:"gateway"`
	Routes  []*routeResult `json:"routes"`
}

type routeResult struct {
	Dst string `json:"dst"`
	GW  string `json:"gw"`
}

// parseResult decodes what an ADD printed.
func parseResult(text string) (*addResult, error) {
	var r addResult
	if err := single(text, &r); err != nil {
		return nil, fmt.Errorf("the result of ADD on standard output: %w", err)
	}
	if err := json.Unmarshal([]byte(text), &r.keys); err != nil {
		return nil, fmt.Errorf("the result of ADD: %w", err)
	}
	return &r, nil
}

// old reports whether results of the version have ip4 and ip6, before
// interfaces and chains of plugins came.
func old(version string) bool { return !atLeast(version, "0.3.0") }

// addresses returns those that the result gives to interfaces in the sandbox,
// or to no interface at all.
func (r *addResult) addresses(sandbox string) ([]netip.Prefix, error) {
	var texts []string
	for _, ip := range []*oldIP{r.IP4, r.IP6} {
		if ip != nil {
			texts = append(texts, ip.IP)
		}
	}
	for _, ip := range r.IPs {
		if n := ip.Interface; n == nil || *n >= 0 && *n < len(r.Interfaces) && r.Interfaces[*n].Sandbox == sandbox {
			texts = append(texts, ip.Address)
		}
	}
	var all []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("address %q of the result is not in CIDR notation: %w", text, err)
		}
		all = append(all, p)
	}
	return all, nil
}

// hasVersion is nil when the result is of that version.
func (r *addResult) hasVersion(version string) error {
	if r.CNIVersion == version {
		return nil
	}
	// The first two versions left it open.
	if r.CNIVersion == "" && old(version) {
		return nil
	}
	return fmt.Errorf("the result's cniVersion is %q, the configuration's was %q", r.CNIVersion, version)
}

// hasShape is nil when the result has the keys of its version, and none of
// another's.
func (r *addResult) hasShape(version string) error {
	var faults []error
	wrong := []string{"ip4", "ip6"}
	if old(version) {
		wrong = []string{"ips", "interfaces"}
	}
	for _, key := range wrong {
		if _, there := r.keys[key]; there {
			faults = append(faults, fmt.Errorf("results of version %s have no key %q", version, key))
		}
	}
	if old(version) {
		if r.IP4 == nil && r.IP6 == nil {
			faults = append(faults, fmt.Errorf("the result has neither ip4 nor ip6: %s", compact(r.keys)))
		}
		return errors.Join(faults...)
	}
	if len(r.Interfaces) == 0 {
		faults = append(faults, fmt.Errorf("the result has no interfaces: %s", compact(r.keys)))
	}
	for n, ip := range r.IPs {
		faults = append(faults, ip.hasFamily(n, version))
	}
	return errors.Join(faults...)
}

// hasFamily judges ips[n].version, which was removed in 1.0.0.
func (ip *ipResult) hasFamily(n int, version string) error {
	if atLeast(version, "1.0.0") {
		if ip.Version != nil {
			return fmt.Errorf("ips[%d].version: the key was removed in 1.0.0", n)
		}
		return nil
	}
	p, err := netip.ParsePrefix(ip.Address)
	if err != nil {
		return fmt.Errorf("ips[%d].address: %w", n, err)
	}
	want := "6"
	if p.Addr().Is4() {
		want = "4"
	}
	if ip.Version == nil || *ip.Version != want {
		return fmt.Errorf("ips[%d].version is %s, want %q for %s", n, compact(ip.Version), want, ip.Address)
	}
	return nil
}

// inSandbox returns the interface of that name in the container.
func (r *addResult) inSandbox(ifName, sandbox string) (*ifResult, error) {
	n := slices.IndexFunc(r.Interfaces, func(i *ifResult) bool { return i.Name == ifName && i.Sandbox == sandbox })
	if n < 0 {
		return nil, fmt.Errorf("the result has no interface of the name %q (CNI_IFNAME) and the sandbox %q (CNI_NETNS): %s",
			ifName, sandbox, compact(r.Interfaces))
	}
	return r.Interfaces[n], nil
}

// hasIndices is nil when each address says which interface it is on.
func (r *addResult) hasIndices() error {
	var faults []error
	for n, ip := range r.IPs {
		switch {
		case ip.Interface == nil:
			faults = append(faults, fmt.Errorf("ips[%d] (%s) names no interface", n, ip.Address))
		case *ip.Interface < 0 || *ip.Interface >= len(r.Interfaces):
			faults = append(faults, fmt.Errorf("ips[%d].interface is %d, but there are %d interfaces", n, *ip.Interface, len(r.Interfaces)))
		}
	}
	return errors.Join(faults...)
}

// parses is nil when addresses, gateways, routes and name servers are what they
// are said to be.
func (r *addResult) parses() error {
	var faults []error
	prefix := func(what, text string) {
		if _, err := netip.ParsePrefix(text); err != nil {
			faults = append(faults, fmt.Errorf("%s is %q, want CIDR notation", what, text))
		}
	}
	addr := func(what, text string) {
		if _, err := netip.ParseAddr(text); text != "" && err != nil {
			faults = append(faults, fmt.Errorf("%s is %q, want an address", what, text))
		}
	}
	for n, ip := range r.IPs {
		prefix(fmt.Sprintf("ips[%d].address", n), ip.Address)
		addr(fmt.Sprintf("ips[%d].gateway", n), ip.Gateway)
	}
	for _, ip := range []*oldIP{r.IP4, r.IP6} {
		if ip != nil {
			prefix("ip", ip.IP)
			addr("gateway", ip.Gateway)
		}
	}
	for n, route := range r.routes() {
		prefix(fmt.Sprintf("dst of route %d", n), route.Dst)
		addr(fmt.Sprintf("gw of route %d", n), route.GW)
	}
	for n, server := range r.DNS.Nameservers {
		if server == "" {
			faults = append(faults, fmt.Errorf("dns.nameservers[%d] is empty", n))
		}
		addr(fmt.Sprintf("dns.nameservers[%d]", n), server)
	}
	for n, i := range r.Interfaces {
		if _, err := net.ParseMAC(i.MAC); i.MAC != "" && err != nil {
			faults = append(faults, fmt.Errorf("interfaces[%d].mac: %w", n, err))
		}
	}
	return errors.Join(faults...)
}

// routes lists those of all versions.
func (r *addResult) routes() []*routeResult {
	all := r.Routes
	for _, ip := range []*oldIP{r.IP4, r.IP6} {
		if ip != nil {
			all = append(all, ip.Routes...)
		}
	}
	return all
}
