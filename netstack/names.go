package netstack

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"
)

func itoa(v uint8) string { return strconv.Itoa(int(v)) }

// names is an immutable table of the names that the resolver answers itself:
// links, their aliases, host services and configured hosts. The switch swaps
// it whenever links come or go.
type names struct {
	forward map[string][]netip.Addr
	reverse map[netip.Addr]string
}

// Lookup returns the addresses of a name without its domain, in lower case.
func (n *names) Lookup(name string) ([]netip.Addr, bool) {
	addrs, ok := n.forward[name]
	return addrs, ok
}

// Reverse returns the first name that an address was given.
func (n *names) Reverse(a netip.Addr) (string, bool) {
	name, ok := n.reverse[a]
	return name, ok
}

func (n *names) add(name string, addrs ...netip.Addr) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for _, a := range addrs {
		n.forward[name] = append(n.forward[name], a)
		if _, taken := n.reverse[a]; !taken {
			n.reverse[a] = name
		}
	}
}

// rebuildNamesLocked makes the table of the links there are. Precondition:
// s.mu is held. Aliases may be shared: a shared alias has all addresses.
func (s *Switch) rebuildNamesLocked() {
	n := &names{forward: map[string][]netip.Addr{}, reverse: map[netip.Addr]string{}}
	for _, l := range s.links {
		for _, a := range l.addrs {
			n.reverse[a] = cmp.Or(l.hostname, l.name)
		}
		n.add(l.name, l.addrs...)
	}
	for _, l := range s.links {
		for _, alias := range l.aliases {
			if _, isLink := s.links[alias]; !isLink {
				n.add(alias, l.addrs...)
			}
		}
	}
	for _, h := range s.cfg.HostServices {
		if _, taken := n.forward[strings.ToLower(h.Name)]; !taken {
			n.add(h.Name, s.gatewayAddrs()...)
		}
	}
	for name, addrs := range s.cfg.DNS.Hosts {
		n.forward[strings.ToLower(name)] = nil
		n.add(name, addrs...)
	}
	n.add("gateway", s.gatewayAddrs()...)
	s.names.Store(n)
}
