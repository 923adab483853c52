package redirect

import (
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Forget makes the current namespace's connection tracking forget what it knows
// of the UDP ports that rules are about, so that the next datagram of each
// client is looked up anew. TCP needs none of it: the ends of its connections
// see to them. A kernel that cannot be told (without nf_conntrack_netlink)
// forgets a client once it has been silent for half a minute or two.
func Forget(rules []Rule) {
	stale := staleFlows{}
	for _, r := range rules {
		if r.Proto == "udp" {
			stale.hosts = append(stale.hosts, r.Host)
		}
	}
	if len(stale.hosts) == 0 {
		return
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			stale.local = append(stale.local, n.IP)
		}
	}
	const tries = 5 // a listing that changes under way is begun anew
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		for range tries {
			_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, stale)
			if !errors.Is(err, netlink.ErrDumpInterrupted) {
				break
			}
		}
	}
}

// staleFlows are the conversations to be forgotten: those with the hosts, and
// with the ports of unspecified ones at any address of this machine.
type staleFlows struct {
	hosts []netip.AddrPort
	local []net.IP
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, ok := netip.AddrFromSlice(flow.Forward.DstIP)
	if to = to.Unmap(); !ok || flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	for _, h := range s.hosts {
		switch {
		case h.Port() != flow.Forward.DstPort:
		case h.Addr() == to:
			return true
		case h.Addr().IsUnspecified() && h.Addr().Is4() == to.Is4():
			return to.IsLoopback() || s.isLocal(to)
		}
	}
	return false
}

func (s staleFlows) isLocal(a netip.Addr) bool {
	for _, l := range s.local {
		if l.Equal(a.AsSlice()) {
			return true
		}
	}
	return false
}
