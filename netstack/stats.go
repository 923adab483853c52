package netstack

import (
	"net"
	"net/netip"
	"time"
)

// closeGrace is how long Close waits for goroutines that have been told to end.
const closeGrace = 5 * time.Second

// Stats is a snapshot of a switch's counters since New, links that have left
// included.
type Stats struct {
	Network       string            `json:"network"`
	Links         int               `json:"links"`
	Publications  int               `json:"publications"`
	Flows         int               `json:"flows"` // live ones
	FromContainer Traffic           `json:"fromContainer"`
	ToContainer   Traffic           `json:"toContainer"`
	Drops         map[string]uint64 `json:"drops"` // by reason; absent means none
	DNS           DNSStats          `json:"dns"`
}

// DNSStats counts what the network's resolver was asked and what became of it.
type DNSStats struct {
	Queries   uint64 `json:"queries"`   // all that arrived
	Local     uint64 `json:"local"`     // answered with the network's own names
	Cached    uint64 `json:"cached"`    // answered from the cache
	Forwarded uint64 `json:"forwarded"` // exchanges begun with the host's resolvers
	Refused   uint64 `json:"refused"`   // names of others on an internal network, or types never served
	Failed    uint64 `json:"failed"`    // no resolver gave an answer
}

func (r *resolver) stats() DNSStats {
	st := r.server.Stats()
	return DNSStats{
		Queries: st.Queries, Local: st.Local, Cached: st.CacheHits,
		Forwarded: st.Forwarded, Refused: st.Refused, Failed: st.Failed,
	}
}

// Stats returns the switch's counters.
func (s *Switch) Stats() Stats {
	st := Stats{
		Network: s.cfg.Name, Flows: s.flows.liveCount(),
		Publications: len(s.Publications()), Drops: map[string]uint64{}, DNS: s.resolver.stats(),
	}
	links := s.Links()
	st.Links = len(links)
	counters := []*linkCounters{&s.past}
	for _, l := range links {
		counters = append(counters, &l.counters)
		addDeviceDrops(l.dev, st.Drops)
	}
	for _, l := range s.HostLinks() {
		l.counters.drops.snapshot(st.Drops) // their traffic counts at the containers' links
		addDeviceDrops(l.dev, st.Drops)
	}
	s.addPastDeviceDrops(st.Drops)
	for _, c := range counters {
		st.FromContainer.Packets += c.packets[fromContainer].Load()
		st.FromContainer.Bytes += c.bytes[fromContainer].Load()
		st.ToContainer.Packets += c.packets[toContainer].Load()
		st.ToContainer.Bytes += c.bytes[toContainer].Load()
		c.drops.snapshot(st.Drops)
	}
	return st
}

// addPastDeviceDrops adds what the devices of links that have left discarded.
func (s *Switch) addPastDeviceDrops(m map[string]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for reason, n := range s.pastDevices {
		m[reason] += n
	}
}

// interfaceAddrs returns the host's addresses and the broadcast addresses of
// its IPv4 networks, as far as they can be read.
func interfaceAddrs() (addrs, broadcasts []netip.Addr) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, nil
	}
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		addrs = append(addrs, p.Addr())
		if p.Addr().Is4() && p.Bits() < 31 {
			broadcasts = append(broadcasts, lastAddr(p))
		}
	}
	return addrs, broadcasts
}

// lastAddr is the highest address of an IPv4 prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := range 32 - p.Bits() {
		b[3-i/8] |= 1 << (i % 8)
	}
	return netip.AddrFrom4(b)
}
