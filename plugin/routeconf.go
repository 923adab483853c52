package plugin

import (
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
)

// decodeRoutes decodes the key "routes".
func decodeRoutes(c *config, raw json.RawMessage) error {
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return err
	}
	var err error
	c.Routes, err = routeList("routes", list)
	return err
}

// routes returns the routes that the container gets: those of ipam or the
// default routes, and those of the key "routes".
func (a *adding) routes() []*types.Route {
	if a.conf.IPAM.dhcp() {
		return append(a.dhcpRoutes(), routes(a.conf.Routes, a.made.addrs, a.made.gateways, routeNever)...)
	}
	configured, how := a.conf.IPAM.Routes, a.conf.routing()
	if a.leased != nil {
		configured = a.leased.Routes
	}
	if how == routeUnlessConfigured {
		how = routeAlways
		if len(configured) > 0 {
			how = routeNever
		}
	}
	return routes(slices.Concat(configured, a.conf.Routes), a.made.addrs, a.made.gateways, how)
}

// routeList decodes the routes of a key.
func routeList(key string, list []json.RawMessage) ([]*types.Route, error) {
	var routes []*types.Route
	for _, raw := range list {
		r, err := decodeRoute(raw)
		if err != nil {
			return nil, badValue(key, raw, err.Error())
		}
		routes = append(routes, r)
	}
	return routes, nil
}

// decodeRoute decodes one route (SPEC.md "routes" of the success result).
func decodeRoute(raw json.RawMessage) (*types.Route, error) {
	var r struct {
		Dst      types.IPNet `json:"dst"`
		GW       net.IP      `json:"gw"`
		MTU      int         `json:"mtu"`
		AdvMSS   int         `json:"advmss"`
		Priority int         `json:"priority"`
		Table    *int        `json:"table"`
		Scope    *int        `json:"scope"`
	}
	if err := decodeStrict(raw, &r); err != nil {
		return nil, err
	}
	route := &types.Route{
		Dst: net.IPNet(r.Dst), GW: r.GW, MTU: r.MTU, AdvMSS: r.AdvMSS,
		Priority: r.Priority, Table: r.Table, Scope: r.Scope,
	}
	return route, routeFault(route)
}

// routeFault says what is wrong with a route.
func routeFault(r *types.Route) error {
	if r.Dst.IP == nil {
		return fmt.Errorf(`"dst" is missing`)
	}
	dst, err := prefix(r.Dst)
	if err != nil {
		return err
	}
	if dst != dst.Masked() {
		return fmt.Errorf("dst has host bits set; the network is %s", dst.Masked())
	}
	if r.GW != nil {
		gw, _ := netip.AddrFromSlice(r.GW)
		switch gw = gw.Unmap(); {
		case gw.Is4() != dst.Addr().Is4():
			return fmt.Errorf("dst and gw are of different families")
		case gw.IsUnspecified() || gw.IsMulticast() || gw.IsLoopback():
			return fmt.Errorf("gw %s is not a neighbour's address", gw)
		}
	}
	least := minMTUv4
	if dst.Addr().Is6() {
		least = minMTUv6
	}
	number := func(p *int) int {
		if p == nil {
			return 0
		}
		return *p
	}
	table, scope := number(r.Table), number(r.Scope)
	switch {
	case r.MTU != 0 && (r.MTU < least || r.MTU > maxMTU):
		return fmt.Errorf("mtu must be 0 or %d to %d bytes", least, maxMTU)
	case r.AdvMSS < 0 || r.AdvMSS > maxMTU:
		return fmt.Errorf("advmss must be 0 to %d bytes", maxMTU)
	case r.Priority < 0 || r.Priority > math.MaxUint32:
		return fmt.Errorf("priority must be 0 to %d", uint32(math.MaxUint32))
	case table < 0 || table > math.MaxUint32:
		return fmt.Errorf("table must be 0 to %d", uint32(math.MaxUint32))
	case scope < 0 || scope > math.MaxUint8:
		return fmt.Errorf("scope must be 0 to %d", math.MaxUint8)
	case r.GW != nil && onLink(r):
		return fmt.Errorf("a route of scope %d (link) or narrower has no gw", scope)
	case scope != 0 && dst.Addr().Is6():
		return fmt.Errorf("scope is IPv4's; the kernel gives IPv6 routes none")
	}
	return nil
}
