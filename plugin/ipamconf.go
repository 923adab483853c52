package plugin

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/control"
)

// nativeIPAM is the ipam.type for which the daemon leases addresses itself.
// Any other type is the name of a CNI IPAM plugin to run.
const nativeIPAM = "usernet"

// noIPAM stands for an interface without addresses.
const noIPAM = ""

// ipamConfig is the key "ipam". Its schema for type "usernet" is host-local's,
// so that a configuration moves over by changing the type.
type ipamConfig struct {
	// Type is "usernet" (also when the key ipam is absent) or the file name of
	// an IPAM plugin in CNI_PATH.
	Type string
	// Sets are the ranges; a container gets one address of each set. Only of
	// types usernet and dhcp. Empty: those of the network of this name, which
	// the daemon must have then ("usernet network create", or its configuration
	// file).
	Sets [][]control.Range
	// Routes of the container, instead of the default routes. Only of type
	// usernet; an IPAM plugin returns its own.
	Routes []*types.Route
	// Sticky has a container of the same name get the same addresses again. The
	// key "sticky", only of type usernet; see cniArgs.Sticky for the name.
	Sticky bool
	// ResolvConf is the file that the result's DNS comes from, where neither
	// the key dns nor the runtime says anything. Only of type usernet.
	ResolvConf string
}

// delegated reports whether an IPAM plugin is to be run.
func (c ipamConfig) delegated() bool { return c.Type != nativeIPAM && c.Type != noIPAM }

// ipamFields is the schema of "ipam" for type usernet.
type ipamFields struct {
	Type   string            `json:"type"`
	Ranges [][]control.Range `json:"ranges"`
	Routes []json.RawMessage `json:"routes"`
	// host-local's older form of one set of one range.
	control.Range
	ResolvConf string `json:"resolvConf"`
	// Where host-local keeps its leases; they are in the daemon's state here.
	DataDir string `json:"dataDir"`
	// Usernet's own.
	Sticky bool `json:"sticky"`
}

func decodeIPAM(c *config, raw json.RawMessage) error {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return err
	}
	if head.Type == "" {
		head.Type = nativeIPAM
	}
	c.IPAM.Type = head.Type
	switch {
	case c.IPAM.dhcp():
		return decodeDHCP(c, raw)
	case c.IPAM.delegated():
		return nil // the rest is that plugin's own
	}
	var f ipamFields
	if err := decodeStrict(raw, &f); err != nil {
		return err
	}
	return f.settle(c)
}

// settle judges the ranges and routes and takes them over.
func (f *ipamFields) settle(c *config) error {
	c.IPAM.Sticky, c.IPAM.ResolvConf = f.Sticky, f.ResolvConf
	sets := f.Ranges
	if f.Range != (control.Range{}) {
		sets = append([][]control.Range{{f.Range}}, sets...)
	}
	if err := checkSets("ipam.ranges", sets); err != nil {
		return err
	}
	c.IPAM.Sets = sets
	var err error
	c.IPAM.Routes, err = routeList("ipam.routes", f.Routes)
	return err
}

// decodeHostLocal decodes "ipam" of type host-local, whose schema the native one
// has, to be served by the daemon.
func decodeHostLocal(c *config, raw json.RawMessage) error {
	var f ipamFields
	if err := json.Unmarshal(raw, &f); err != nil {
		return err
	}
	c.IPAM.Type = nativeIPAM
	return f.settle(c)
}

// checkSets judges ranges by host-local's rules, so that the fault is told
// with the key it is in; the daemon judges again what it is asked.
func checkSets(key string, sets [][]control.Range) error {
	var all []control.Range
	for _, set := range sets {
		if len(set) == 0 {
			return badValue(key, set, "an empty set of ranges")
		}
		for _, r := range set {
			if why := rangeFault(r); why != "" {
				return badValue(key, r, why)
			}
			if r.Subnet.Addr().Is4() != set[0].Subnet.Addr().Is4() {
				return badValue(key, set, "the ranges of one set must be of one family, since it gives one address; make two sets")
			}
			for _, other := range all {
				if rangesOverlap(r, other) {
					return badValue(key, r, fmt.Sprintf("overlaps with %s", compact(other)))
				}
			}
			all = append(all, r)
		}
	}
	return nil
}

// rangeFault says what is wrong with one range, or "".
func rangeFault(r control.Range) string {
	subnet := r.Subnet
	switch {
	case !subnet.IsValid():
		return `"subnet" is missing`
	case subnet.Addr().Is4In6():
		return "write IPv4 subnets in IPv4 notation"
	case subnet != subnet.Masked():
		return fmt.Sprintf("the subnet has host bits set; the network is %s", subnet.Masked())
	case subnet.Bits() > subnet.Addr().BitLen()-2:
		return fmt.Sprintf("Network %s too small to allocate from: there is no room for a gateway and a container", subnet) // host-local's words
	}
	for _, a := range []struct {
		key  string
		addr netip.Addr
	}{{"rangeStart", r.RangeStart}, {"rangeEnd", r.RangeEnd}, {"gateway", r.Gateway}} {
		if a.addr.IsValid() && !subnet.Contains(a.addr) {
			return fmt.Sprintf("%s %s is not in the subnet", a.key, a.addr)
		}
	}
	if r.RangeStart.IsValid() && r.RangeEnd.IsValid() && r.RangeEnd.Less(r.RangeStart) {
		return "rangeEnd is before rangeStart"
	}
	return ""
}

// rangesOverlap reports whether two ranges share an address. Ranges of one
// subnet that do not meet are host-local's way to leave out a part of it.
func rangesOverlap(a, b control.Range) bool {
	if !a.Subnet.Overlaps(b.Subnet) {
		return false
	}
	aFirst, aLast := bounds(a)
	bFirst, bLast := bounds(b)
	return !aLast.Less(bFirst) && !bLast.Less(aFirst)
}

// bounds returns the first and last address of a range. For those that are
// not set the subnet's own are close enough to judge an overlap.
func bounds(r control.Range) (first, last netip.Addr) {
	first, last = r.RangeStart, r.RangeEnd
	if !first.IsValid() {
		first = r.Subnet.Addr()
	}
	if !last.IsValid() {
		last = lastAddr(r.Subnet)
	}
	return first, last
}

// lastAddr returns the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
