package dns

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
)

func localConfig() Config {
	return Config{
		Internal: true,
		Domain:   "Usernet.Internal.",
		Names: links{
			"web": addrs("10.9.0.3", "fd00:9::3"),
			"db":  addrs("10.9.0.4"),
		},
		Hosts:    map[string][]netip.Addr{"Api.Example.org": addrs("192.0.2.7"), "web.usernet.internal.": addrs("192.0.2.8")},
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/16"), netip.MustParsePrefix("fd00:9::1/64")},
	}
}

func TestLocalNames(t *testing.T) {
	soa := []string{"usernet.internal.\t5\tIN\tSOA\tgateway. nobody.invalid. 1 3600 600 86400 5"}
	tests := []struct {
		name   string
		qtype  uint16
		rcode  int
		answer []string
		ns     []string
	}{
		{"web", mdns.TypeA, 0, []string{"web.\t5\tIN\tA\t10.9.0.3"}, nil},
		{"web", mdns.TypeAAAA, 0, []string{"web.\t5\tIN\tAAAA\tfd00:9::3"}, nil},
		{"WeB", mdns.TypeA, 0, []string{"WeB.\t5\tIN\tA\t10.9.0.3"}, nil},
		{"web", mdns.TypeANY, 0, []string{"web.\t5\tIN\tA\t10.9.0.3", "web.\t5\tIN\tAAAA\tfd00:9::3"}, nil},
		{"db.usernet.INTERNAL", mdns.TypeA, 0, []string{"db.usernet.INTERNAL.\t5\tIN\tA\t10.9.0.4"}, nil},
		// An extra host goes before a link of the same name.
		{"web.usernet.internal", mdns.TypeA, 0, []string{"web.usernet.internal.\t5\tIN\tA\t192.0.2.8"}, nil},
		{"api.example.org", mdns.TypeA, 0, []string{"api.example.org.\t5\tIN\tA\t192.0.2.7"}, nil},
		{"localhost", mdns.TypeAAAA, 0, []string{"localhost.\t5\tIN\tAAAA\t::1"}, nil},
		// NODATA: the name exists, the family or type does not.
		{"db.usernet.internal", mdns.TypeAAAA, 0, nil, soa},
		{"db.usernet.internal", mdns.TypeMX, 0, nil, soa},
		{"usernet.internal", mdns.TypeA, 0, nil, soa},
		{"usernet.internal", mdns.TypeSOA, 0, soa, nil},
		{"nobody.usernet.internal", mdns.TypeA, mdns.RcodeNameError, nil, soa},
		{"deep.web.usernet.internal", mdns.TypeAAAA, mdns.RcodeNameError, nil, soa},
		// Not ours, and an internal network asks nobody.
		{"example.org", mdns.TypeA, mdns.RcodeRefused, nil, nil},
		{"xusernet.internal", mdns.TypeA, mdns.RcodeRefused, nil, nil},
		{"unknown", mdns.TypeA, mdns.RcodeRefused, nil, nil},
		{".", mdns.TypeNS, mdns.RcodeRefused, nil, nil},
		// Reverse.
		{"3.0.9.10.in-addr.arpa", mdns.TypePTR, 0, []string{"3.0.9.10.in-addr.arpa.\t5\tIN\tPTR\tweb.usernet.internal."}, nil},
		{"7.2.0.192.in-addr.arpa", mdns.TypePTR, 0, []string{"7.2.0.192.in-addr.arpa.\t5\tIN\tPTR\tapi.example.org."}, nil},
		{"99.0.9.10.in-addr.arpa", mdns.TypePTR, mdns.RcodeNameError, nil, []string{"9.10.in-addr.arpa.\t5\tIN\tSOA\tgateway. nobody.invalid. 1 3600 600 86400 5"}},
		{"0.9.10.in-addr.arpa", mdns.TypeSOA, 0, nil, []string{"9.10.in-addr.arpa.\t5\tIN\tSOA\tgateway. nobody.invalid. 1 3600 600 86400 5"}},
		{"10.in-addr.arpa", mdns.TypePTR, mdns.RcodeRefused, nil, nil},
		{"1.1.1.1.in-addr.arpa", mdns.TypePTR, mdns.RcodeRefused, nil, nil},
		{"03.0.9.10.in-addr.arpa", mdns.TypePTR, mdns.RcodeRefused, nil, nil},
		{arpa6("fd00:9::3"), mdns.TypePTR, 0, []string{arpa6("fd00:9::3") + ".\t5\tIN\tPTR\tweb.usernet.internal."}, nil},
		{arpa6("fd00:9::99"), mdns.TypePTR, mdns.RcodeNameError, nil, []string{"0.0.0.0.0.0.0.0.9.0.0.0.0.0.d.f.ip6.arpa.\t5\tIN\tSOA\tgateway. nobody.invalid. 1 3600 600 86400 5"}},
		{arpa6("fd00:a::3"), mdns.TypePTR, mdns.RcodeRefused, nil, nil},
	}
	s := newServer(t, localConfig())
	for _, tt := range tests {
		t.Run(tt.name+"/"+mdns.TypeToString[tt.qtype], func(t *testing.T) {
			m := ask(t, s, tt.name, tt.qtype)
			if m.Rcode != tt.rcode {
				t.Errorf("rcode %s, want %s", mdns.RcodeToString[m.Rcode], mdns.RcodeToString[tt.rcode])
			}
			if d := cmp.Diff(tt.answer, texts(m.Answer)); d != "" {
				t.Errorf("answer (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.ns, texts(m.Ns)); d != "" {
				t.Errorf("authority (-want +got):\n%s", d)
			}
			if want := m.Rcode != mdns.RcodeRefused; m.Authoritative != want {
				t.Errorf("AA = %t, want %t", m.Authoritative, want)
			}
			if !m.RecursionAvailable || !m.RecursionDesired {
				t.Errorf("RA %t RD %t, want both", m.RecursionAvailable, m.RecursionDesired)
			}
		})
	}
}

func arpa6(a string) string {
	r, err := mdns.ReverseAddr(a)
	if err != nil {
		panic(err) // a constant of the test
	}
	return strings.TrimSuffix(r, ".")
}

func texts(rrs []mdns.RR) (out []string) {
	for _, r := range rrs {
		out = append(out, r.String())
	}
	return out
}

func TestInternalNeverForwards(t *testing.T) {
	u := newUpstream(t, answerWith(t, mdns.RcodeSuccess, []string{"example.org. 60 IN A 192.0.2.1"}, nil))
	cfg := localConfig()
	cfg.Upstream = []netip.AddrPort{u.addr}
	s := newServer(t, cfg)
	before := s.Stats()
	for _, n := range []string{"example.org", "nobody.usernet.internal", "web", "1.1.1.1.in-addr.arpa", "99.0.9.10.in-addr.arpa"} {
		ask(t, s, n, mdns.TypePTR)
	}
	if u.udp.Load()+u.tcp.Load() != 0 {
		t.Errorf("upstream saw %d queries of an internal network", u.udp.Load()+u.tcp.Load())
	}
	if d := cmp.Diff(Stats{Queries: 5, Local: 3, Refused: 2}, delta(before, s.Stats())); d != "" {
		t.Errorf("counters (-want +got):\n%s", d)
	}
}

// Names of an own domain stay in the process also where others are forwarded.
func TestOwnDomainIsNotForwarded(t *testing.T) {
	u := newUpstream(t, answerWith(t, mdns.RcodeSuccess, []string{"example.org. 60 IN A 192.0.2.1"}, nil))
	cfg := localConfig()
	cfg.Internal = false
	cfg.Upstream = []netip.AddrPort{u.addr}
	s := newServer(t, cfg)
	for _, n := range []string{"nobody.usernet.internal", "usernet.internal", "99.0.9.10.in-addr.arpa", "a.localhost"} {
		ask(t, s, n, mdns.TypeTXT)
	}
	if n := u.udp.Load(); n != 0 {
		t.Fatalf("%d queries for own names were sent upstream", n)
	}
	if m := ask(t, s, "example.org", mdns.TypeA); len(m.Answer) != 1 || u.udp.Load() != 1 {
		t.Fatalf("a foreign name was not forwarded: %v", m)
	}
}

func TestConfigFaults(t *testing.T) {
	_, err := New(Config{
		Domain:   "a..b",
		Hosts:    map[string][]netip.Addr{"": {netip.Addr{}}},
		Prefixes: []netip.Prefix{{}},
		Upstream: []netip.AddrPort{netip.AddrPortFrom(alice, 0)},
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`domain "a..b"`, `host name ""`, "invalid address", "prefix", "10.9.0.2:0"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s:\n%v", want, err)
		}
	}
}
