package dns

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
)

// zone is what the network knows by itself. Immutable; only Names behind it
// changes.
type zone struct {
	names    Names
	domain   string // lower case, no final dot; empty: none
	hosts    map[string][]netip.Addr
	hostName map[netip.Addr]string // reverse of hosts
	prefixes []netip.Prefix
	ttl      uint32
}

func newZone(cfg Config) zone {
	z := zone{names: cfg.Names, domain: cfg.Domain, hosts: cfg.Hosts, hostName: make(map[netip.Addr]string)}
	z.ttl = uint32((cfg.LocalTTL + time.Second/2) / time.Second)
	for name, addrs := range cfg.Hosts {
		for _, a := range addrs {
			// The lowest name wins so that the answer does not change from
			// run to run.
			if old, ok := z.hostName[a.Unmap()]; !ok || name < old {
				z.hostName[a.Unmap()] = name
			}
		}
	}
	for _, p := range cfg.Prefixes {
		z.prefixes = append(z.prefixes, p.Masked())
	}
	return z
}

// answer returns the network's own answer, or nil when the question is not for
// it.
func (z *zone) answer(r *request) *mdns.Msg {
	if addrs, ok := z.lookup(r.name); ok {
		return z.addresses(r, addrs)
	}
	if below(r.name, z.domain) {
		return z.own(r)
	}
	if prefix, ok := reversePrefix(r.name); ok {
		return z.reverse(r, prefix)
	}
	return nil
}

// lookup finds the addresses of a name: extra hosts, links, and localhost, which
// must never be asked of anybody (RFC 6761 §6.3).
func (z *zone) lookup(name string) ([]netip.Addr, bool) {
	if name == "" {
		return nil, false
	}
	short := ""
	if below(name, z.domain) && name != z.domain {
		short = strings.TrimSuffix(name, "."+z.domain)
	}
	for _, n := range []string{name, short} {
		if n == "" {
			continue
		}
		if addrs, ok := z.hosts[n]; ok {
			return addrs, true
		}
		if z.names != nil {
			if addrs, ok := z.names.Lookup(n); ok {
				return addrs, true
			}
		}
	}
	if below(name, "localhost") {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, true
	}
	return nil, false
}

func (z *zone) addresses(r *request, addrs []netip.Addr) *mdns.Msg {
	m := r.reply(mdns.RcodeSuccess)
	m.Authoritative = true
	t := r.question.Qtype
	for _, a := range addrs {
		a = a.Unmap()
		if a.Is4() && (t == mdns.TypeA || t == mdns.TypeANY) {
			m.Answer = append(m.Answer, &mdns.A{Hdr: z.header(r.question.Name, mdns.TypeA), A: a.AsSlice()})
		}
		if a.Is6() && (t == mdns.TypeAAAA || t == mdns.TypeANY) {
			m.Answer = append(m.Answer, &mdns.AAAA{Hdr: z.header(r.question.Name, mdns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	if len(m.Answer) == 0 {
		m.Ns = []mdns.RR{z.soa(z.apexOf(r.name))}
	}
	return m
}

// own answers for the domain itself and for names that do not exist below it.
func (z *zone) own(r *request) *mdns.Msg {
	m := r.reply(mdns.RcodeSuccess)
	m.Authoritative = true
	soa := z.soa(z.domain)
	switch {
	case r.name != z.domain:
		m.Rcode = mdns.RcodeNameError
		m.Ns = []mdns.RR{soa}
	case r.question.Qtype == mdns.TypeSOA || r.question.Qtype == mdns.TypeANY:
		m.Answer = []mdns.RR{soa}
	default:
		m.Ns = []mdns.RR{soa}
	}
	return m
}

// reverse answers names below in-addr.arpa and ip6.arpa that belong to the
// network's prefixes or to an extra host; nil for others.
func (z *zone) reverse(r *request, p netip.Prefix) *mdns.Msg {
	whole := p.Bits() == p.Addr().BitLen()
	if whole {
		if name, ok := z.nameOf(p.Addr()); ok {
			m := r.reply(mdns.RcodeSuccess)
			m.Authoritative = true
			if t := r.question.Qtype; t == mdns.TypePTR || t == mdns.TypeANY {
				m.Answer = []mdns.RR{&mdns.PTR{Hdr: z.header(r.question.Name, mdns.TypePTR), Ptr: mdns.Fqdn(name)}}
			} else {
				m.Ns = []mdns.RR{z.soa(r.name)}
			}
			return m
		}
	}
	for _, own := range z.prefixes {
		if own.Addr().Is4() != p.Addr().Is4() || own.Bits() > p.Bits() || !own.Contains(p.Addr()) {
			continue
		}
		m := r.reply(mdns.RcodeSuccess) // an empty non-terminal exists (RFC 8020 §2)
		if whole {
			m.Rcode = mdns.RcodeNameError
		}
		m.Authoritative = true
		m.Ns = []mdns.RR{z.soa(reverseApex(own, r.name))}
		return m
	}
	return nil
}

func (z *zone) nameOf(a netip.Addr) (string, bool) {
	if z.names != nil {
		if name, ok := z.names.Reverse(a); ok {
			name = strings.TrimSuffix(name, ".")
			if z.domain != "" && !strings.Contains(name, ".") {
				name += "." + z.domain
			}
			_, valid := mdns.IsDomainName(name)
			return name, valid && name != ""
		}
	}
	name, ok := z.hostName[a]
	return name, ok
}

func (z *zone) header(name string, t uint16) mdns.RR_Header {
	return mdns.RR_Header{Name: name, Rrtype: t, Class: mdns.ClassINET, Ttl: z.ttl}
}

// apexOf names the zone whose SOA goes with an empty answer: the own domain for
// names inside it, else the name itself (an extra host or a bare link name).
func (z *zone) apexOf(name string) string {
	if below(name, z.domain) {
		return z.domain
	}
	return name
}

// soa is made up: there is no zone file. What matters to a client is the
// minimum field, which says for how long "does not exist" may be remembered.
func (z *zone) soa(apex string) *mdns.SOA {
	return &mdns.SOA{
		Hdr: z.header(mdns.Fqdn(apex), mdns.TypeSOA),
		Ns:  "gateway.", Mbox: "nobody.invalid.",
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: z.ttl,
	}
}

// below reports whether name is domain or inside it; never for an empty domain.
func below(name, domain string) bool {
	return domain != "" && (name == domain || strings.HasSuffix(name, "."+domain))
}

// reversePrefix reads a name below in-addr.arpa (RFC 1035 §3.5) or ip6.arpa
// (RFC 3596 §2.5). Fewer labels than a whole address give a shorter prefix; the
// bare suffix and anything with other labels in it is no reverse name.
func reversePrefix(name string) (netip.Prefix, bool) {
	if labels, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		return reverse4(strings.Split(labels, "."))
	}
	if labels, ok := strings.CutSuffix(name, ".ip6.arpa"); ok {
		return reverse6(strings.Split(labels, "."))
	}
	return netip.Prefix{}, false
}

func reverse4(labels []string) (netip.Prefix, bool) {
	var a [4]byte
	if len(labels) > len(a) {
		return netip.Prefix{}, false
	}
	for i, l := range labels {
		n, err := strconv.ParseUint(l, 10, 8)
		if err != nil || strconv.FormatUint(n, 10) != l {
			return netip.Prefix{}, false
		}
		a[len(labels)-1-i] = byte(n)
	}
	return netip.PrefixFrom(netip.AddrFrom4(a), 8*len(labels)), true
}

func reverse6(labels []string) (netip.Prefix, bool) {
	var a [16]byte
	if len(labels) > 2*len(a) {
		return netip.Prefix{}, false
	}
	for i, l := range labels {
		n, err := strconv.ParseUint(l, 16, 4)
		if err != nil || len(l) != 1 {
			return netip.Prefix{}, false
		}
		at := len(labels) - 1 - i
		a[at/2] |= byte(n) << (4 * (1 - at%2))
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), 4*len(labels)), true
}

// reverseApex is the reverse zone that covers own, in the spelling of a name
// below it: as many labels as own has whole octets (IPv4) or nibbles (IPv6).
func reverseApex(own netip.Prefix, name string) string {
	step := 4
	if own.Addr().Is4() {
		step = 8
	}
	labels := strings.Split(name, ".")
	keep := own.Bits()/step + 2 // and the suffix
	if keep > len(labels) {
		keep = len(labels)
	}
	return strings.Join(labels[len(labels)-keep:], ".")
}
