package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// DefaultQuarantine is how long a freed address rests unless [Config] says
// otherwise: longer than the UDP and half-closed TCP flows of a container that
// has gone can send it packets.
const DefaultQuarantine = 60 * time.Second

// Range is a run of addresses of one subnet. Its JSON form is host-local's.
type Range struct {
	// Subnet is the network the addresses belong to, without host bits, of at
	// least four addresses (no /31, /32, /127 or /128).
	Subnet netip.Prefix `json:"subnet"`
	// Start is the first address given out. Zero: the first after the
	// subnet's network address.
	Start netip.Addr `json:"rangeStart,omitzero"`
	// End is the last address given out, itself included. Zero: the last of
	// the subnet, without the broadcast address of IPv4.
	End netip.Addr `json:"rangeEnd,omitzero"`
	// Gateway is never given out and need not lie between Start and End, but
	// in the subnet. Zero: the first address after the network address.
	Gateway netip.Addr `json:"gateway,omitzero"`
}

// Config describes a [Pool]. It is read once, by [Open].
type Config struct {
	// Sets lists range sets; every lease holds one address of each. The ranges
	// of a set are of one family. No two ranges overlap, be it in one set or in
	// two, and subnets are equal or apart. There must be at least one set.
	Sets [][]Range
	// Quarantine is how long a freed address rests. Zero:
	// [DefaultQuarantine]; negative: not at all.
	Quarantine time.Duration
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Normalize returns a copy of the configuration with every zero field filled
// in and every address unmapped from IPv4-in-IPv6, or all of its faults,
// joined. A network address or broadcast address at the border of a range is
// left out by moving that border, as it cannot be given out. Normalize changes
// nothing in a configuration that it returned.
func (c Config) Normalize() (Config, error) {
	if c.Quarantine == 0 {
		c.Quarantine = DefaultQuarantine
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if len(c.Sets) == 0 {
		return c, errors.New("no range set: give at least one subnet")
	}
	var faults []error
	sets := make([][]Range, len(c.Sets))
	for i, set := range c.Sets {
		if len(set) == 0 {
			faults = append(faults, fmt.Errorf("set %d: no range: give at least one subnet", i))
		}
		sets[i] = make([]Range, len(set))
		for j, r := range set {
			n, err := r.normalize()
			if err != nil {
				faults = append(faults, fmt.Errorf("set %d range %d: %w", i, j, err))
				continue
			}
			sets[i][j] = n
		}
	}
	c.Sets = sets
	// Ranges with faults of their own cannot be compared usefully.
	if len(faults) == 0 {
		faults = append(checkSets(sets), checkOverlaps(sets)...)
	}
	return c, errors.Join(faults...)
}

// normalize fills in the zero fields of one range, or lists its faults.
func (r Range) normalize() (Range, error) {
	subnet := unmapPrefix(r.Subnet)
	if !subnet.IsValid() {
		return r, errors.New("no subnet: give a prefix such as 10.88.0.0/16 or fd00:88::/64")
	}
	if host := subnet.Addr().BitLen() - subnet.Bits(); host < 2 {
		return r, fmt.Errorf("subnet %s is too small: a /%d has no room for a gateway and a container, use /%d or shorter",
			subnet, subnet.Bits(), subnet.Addr().BitLen()-2)
	}
	if subnet != subnet.Masked() {
		return r, fmt.Errorf("subnet %s has host bits set: the network of that length is %s", subnet, subnet.Masked())
	}
	first, last := usable(subnet)
	n := Range{Subnet: subnet, Start: first, End: last, Gateway: first}
	err := errors.Join(
		pick(&n.Start, "rangeStart", r.Start, subnet),
		pick(&n.End, "rangeEnd", r.End, subnet),
		pick(&n.Gateway, "gateway", r.Gateway, subnet),
	)
	if err != nil {
		return r, err
	}
	if n.Gateway.Less(first) || last.Less(n.Gateway) {
		return r, fmt.Errorf("gateway %s is the network or broadcast address of subnet %s", n.Gateway, subnet)
	}
	if n.End.Less(n.Start) {
		return r, fmt.Errorf("rangeStart %s is after rangeEnd %s", n.Start, n.End)
	}
	if n.End.Less(first) || last.Less(n.Start) {
		return r, fmt.Errorf("range %s-%s holds only the network or broadcast address of subnet %s", n.Start, n.End, subnet)
	}
	n.Start, n.End = maxAddr(n.Start, first), minAddr(n.End, last)
	return n, nil
}

// pick stores a given address in *dst after checking that it is a plain
// address of the subnet, and leaves the default there when none is given.
func pick(dst *netip.Addr, key string, given netip.Addr, subnet netip.Prefix) error {
	if !given.IsValid() {
		return nil
	}
	a := given.Unmap()
	if a.Zone() != "" {
		return fmt.Errorf("%s %s has a zone: give the address alone", key, given)
	}
	if !subnet.Contains(a) {
		return fmt.Errorf("%s %s is not in subnet %s", key, a, subnet)
	}
	*dst = a
	return nil
}

// checkSets lists sets of mixed family and sets that hold nothing but
// gateways. The ranges are normalized.
func checkSets(sets [][]Range) []error {
	var faults []error
	reserved := gatewaySet(sets)
	for i, set := range sets {
		for j, r := range set[1:] {
			if r.Subnet.Addr().Is4() != set[0].Subnet.Addr().Is4() {
				faults = append(faults, fmt.Errorf("set %d range %d: subnet %s is not of the same family as %s: put it in a set of its own",
					i, j+1, r.Subnet, set[0].Subnet))
			}
		}
		if capacity(set, reserved) == 0 {
			faults = append(faults, fmt.Errorf("set %d: %s holds no address besides gateways", i, describe(set)))
		}
	}
	return faults
}

// checkOverlaps lists pairs of ranges that share an address and pairs of
// subnets that overlap without being equal, over all sets.
func checkOverlaps(sets [][]Range) []error {
	type place struct {
		set, pos int
		Range
	}
	var seen []place
	var faults []error
	for i, set := range sets {
		for j, r := range set {
			for _, s := range seen {
				switch {
				case !r.Subnet.Overlaps(s.Subnet):
				case r.Subnet != s.Subnet:
					faults = append(faults, fmt.Errorf("set %d range %d: subnet %s overlaps subnet %s of set %d range %d",
						i, j, r.Subnet, s.Subnet, s.set, s.pos))
				case !r.End.Less(s.Start) && !s.End.Less(r.Start):
					faults = append(faults, fmt.Errorf("set %d range %d: %s-%s overlaps %s-%s of set %d range %d",
						i, j, r.Start, r.End, s.Start, s.End, s.set, s.pos))
				}
			}
			seen = append(seen, place{i, j, r})
		}
	}
	return faults
}
