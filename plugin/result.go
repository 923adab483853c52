package plugin

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
)

// outcome is what an ADD made, in the terms of the result.
type outcome struct {
	host     string // interface of the host's side; empty: none
	hostMTU  int
	ifName   string
	sandbox  string // CNI_NETNS as it came
	mac      string
	mtu      int
	addrs    []netip.Prefix
	gateways []netip.Addr // one per address; invalid: none
	routes   []*types.Route
	dns      types.DNS
}

// result returns the outcome in the newest version's form, after the result of
// the plugin before, which SPEC.md has a plugin pass on.
func (o *outcome) result(prev *types100.Result) *types100.Result {
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if prev != nil {
		r.Interfaces, r.IPs, r.Routes, r.DNS = prev.Interfaces, prev.IPs, prev.Routes, prev.DNS
	}
	if o.host != "" {
		// Before the container's, as every reference plugin has it: firewall
		// takes the first interface for the network's on the host.
		r.Interfaces = append(r.Interfaces, &types100.Interface{Name: o.host, Mtu: o.hostMTU})
	}
	index := len(r.Interfaces)
	r.Interfaces = append(r.Interfaces, &types100.Interface{
		Name: o.ifName, Mac: o.mac, Mtu: o.mtu, Sandbox: o.sandbox,
	})
	for n, a := range o.addrs {
		ip := &types100.IPConfig{Interface: new(index), Address: ipNet(a)}
		if gw := o.gateways[n]; gw.IsValid() {
			ip.Gateway = gw.AsSlice()
		}
		r.IPs = append(r.IPs, ip)
	}
	r.Routes = append(r.Routes, o.routes...)
	if !o.dns.IsEmpty() {
		r.DNS = o.dns
	}
	return r
}

// printResult writes a result in a version's form.
func printResult(w io.Writer, r *types100.Result, version string) error {
	v, err := r.GetAsVersion(version)
	if err != nil {
		return fmt.Errorf("convert the result to version %s: %w", version, err)
	}
	return printJSON(w, v)
}

// parseResult decodes a prevResult. Before 1.0.0 it may come without a version
// and is then in the configuration's.
func parseResult(raw json.RawMessage, version string) (*types100.Result, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var head struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, fail(types.ErrDecodingFailure, "decode %q: %v", "prevResult", err)
	}
	if head.CNIVersion == "" {
		var object map[string]json.RawMessage
		if err := json.Unmarshal(raw, &object); err != nil {
			return nil, fail(types.ErrDecodingFailure, "decode %q: %v", "prevResult", err)
		}
		object["cniVersion"] = json.RawMessage(`"` + version + `"`)
		var err error
		if raw, err = json.Marshal(object); err != nil {
			return nil, fail(types.ErrDecodingFailure, "decode %q: %v", "prevResult", err)
		}
	}
	prev, err := create.CreateFromBytes(bytes.TrimSpace(raw))
	if err != nil {
		return nil, fail(types.ErrDecodingFailure, "decode %q: %v", "prevResult", err)
	}
	r, err := types100.NewResultFromResult(prev)
	if err != nil {
		return nil, fail(types.ErrDecodingFailure, "decode %q: %v", "prevResult", err)
	}
	return r, nil
}

// randomMAC returns a locally administered unicast address. Random for each
// ADD: podman expects another one after network disconnect and connect.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac)               // never fails (crypto/rand)
	mac[0] = mac[0]&^0x01 | 0x02 // unicast, locally administered (IEEE 802 section 8.4)
	return mac
}

// routing says which default routes a container gets.
type routing int

const (
	routeUnlessConfigured routing = iota // where no route is configured
	routeNever
	routeAlways // besides those that are configured
)

// routes returns the routes of a container: those that were configured, and a
// default route for each family that has a gateway, as how says.
func routes(configured []*types.Route, addrs []netip.Prefix, gateways []netip.Addr, how routing) []*types.Route {
	first := map[bool]netip.Addr{} // by Is4
	for n, a := range addrs {
		if _, ok := first[a.Addr().Is4()]; !ok && gateways[n].IsValid() {
			first[a.Addr().Is4()] = gateways[n]
		}
	}
	var out []*types.Route
	given := map[bool]bool{} // a default route, by whether it is of IPv4
	for _, r := range configured {
		r = r.Copy()
		v4 := r.Dst.IP.To4() != nil
		if gw, ok := first[v4]; r.GW == nil && ok && !onLink(r) {
			r.GW = gw.AsSlice()
		}
		if ones, _ := r.Dst.Mask.Size(); ones == 0 && inMainTable(r) {
			given[v4] = true
		}
		out = append(out, r)
	}
	if how == routeNever || how == routeUnlessConfigured && len(configured) > 0 {
		return out
	}
	for _, zero := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if gw, ok := first[zero.Is4()]; ok && !given[zero.Is4()] {
			out = append(out, &types.Route{Dst: ipNet(netip.PrefixFrom(zero, 0)), GW: gw.AsSlice()})
		}
	}
	return out
}

// onLink reports whether a route's scope says that it has no gateway.
func onLink(r *types.Route) bool { return r.Scope != nil && *r.Scope >= unix.RT_SCOPE_LINK }

// inMainTable reports whether a route is looked at by everything that is sent.
func inMainTable(r *types.Route) bool {
	return r.Table == nil || *r.Table == 0 || *r.Table == unix.RT_TABLE_MAIN
}

// kernelInterface returns what the namespace is to have, in the kernel's terms.
func kernelInterface(name string, mtu int, addrs []netip.Prefix, routes []*types.Route) (netns.Interface, error) {
	cfg := netns.Interface{Name: name, MTU: mtu, Addrs: addrs}
	for _, r := range routes {
		dst, err := prefix(r.Dst)
		if err != nil {
			return cfg, fail(types.ErrInvalidNetworkConfig, "route to %v: %v", &r.Dst, err)
		}
		route := netns.Route{Dst: dst, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
		if r.GW != nil {
			gw, ok := netip.AddrFromSlice(r.GW)
			if !ok {
				return cfg, fail(types.ErrInvalidNetworkConfig, "route to %v: gateway %v is no address", &r.Dst, r.GW)
			}
			route.Gateway = gw.Unmap()
		}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if r.Scope != nil {
			route.Scope = *r.Scope
		}
		cfg.Routes = append(cfg.Routes, route)
	}
	return cfg, nil
}

// dnsRequest turns resolver wishes into the daemon's terms.
func dnsRequest(dns types.DNS) *control.DNSConf {
	if dns.IsEmpty() {
		return nil
	}
	c := &control.DNSConf{Domain: dns.Domain, Search: dns.Search, Options: dns.Options}
	for _, s := range dns.Nameservers {
		if a, err := netip.ParseAddr(s); err == nil { // judged by checkNameservers
			c.Nameservers = append(c.Nameservers, a)
		}
	}
	return c
}

// dnsResult is the inverse of dnsRequest.
func dnsResult(c control.DNSConf) types.DNS {
	dns := types.DNS{Domain: c.Domain, Search: c.Search, Options: c.Options}
	for _, a := range c.Nameservers {
		dns.Nameservers = append(dns.Nameservers, a.String())
	}
	return dns
}

// ipNet converts an address with its subnet's length, keeping the address.
func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefix is the inverse of ipNet.
func prefix(n net.IPNet) (netip.Prefix, error) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); !ok || bits == 0 {
		return netip.Prefix{}, fmt.Errorf("%v is no address with a prefix length", &n)
	}
	if a.Is4() && bits == 128 {
		ones -= 96
	}
	return netip.PrefixFrom(a, ones), nil
}
