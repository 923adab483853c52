package dns

import (
	"fmt"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

func message(t *testing.T, rcode int, qtype uint16, answer, ns []string) *mdns.Msg {
	t.Helper()
	q := new(mdns.Msg)
	q.SetQuestion("example.org.", qtype)
	m := new(mdns.Msg)
	m.SetRcode(q, rcode)
	for _, s := range answer {
		m.Answer = append(m.Answer, rr(t, s))
	}
	for _, s := range ns {
		m.Ns = append(m.Ns, rr(t, s))
	}
	return m
}

func TestLifetime(t *testing.T) {
	const soa = "example.org. 900 IN SOA a. b. 1 2 3 4 "
	tests := []struct {
		name       string
		rcode      int
		qtype      uint16
		answer, ns []string
		want       time.Duration
	}{
		{"lowest of all", 0, mdns.TypeA, []string{"example.org. 60 IN A 192.0.2.1", "example.org. 30 IN A 192.0.2.2"}, []string{"example.org. 20 IN NS a."}, 20 * time.Second},
		{"ceiling", 0, mdns.TypeA, []string{"example.org. 9999999 IN A 192.0.2.1"}, nil, maxTTL},
		{"zero", 0, mdns.TypeA, []string{"example.org. 0 IN A 192.0.2.1"}, nil, 0},
		{"alias only, no SOA", 0, mdns.TypeA, []string{"example.org. 60 IN CNAME b."}, nil, 0},
		{"alias to nothing", 0, mdns.TypeA, []string{"example.org. 60 IN CNAME b."}, []string{soa + "600"}, 60 * time.Second},
		{"NODATA by minimum", 0, mdns.TypeA, nil, []string{soa + "300"}, 300 * time.Second},
		{"NXDOMAIN by the SOA's TTL", mdns.RcodeNameError, mdns.TypeA, nil, []string{soa + "1800"}, 900 * time.Second},
		{"NXDOMAIN ceiling", mdns.RcodeNameError, mdns.TypeA, nil, []string{"example.org. 99999 IN SOA a. b. 1 2 3 4 99999"}, maxNegativeTTL},
		{"NXDOMAIN without SOA", mdns.RcodeNameError, mdns.TypeA, nil, nil, 0},
		{"SERVFAIL", mdns.RcodeServerFailure, mdns.TypeA, nil, nil, failureTTL},
		{"REFUSED", mdns.RcodeRefused, mdns.TypeA, nil, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := lifetime(message(t, tt.rcode, tt.qtype, tt.answer, tt.ns)); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
	cut := message(t, 0, mdns.TypeA, []string{"example.org. 60 IN A 192.0.2.1"}, nil)
	cut.Truncated = true
	if got := lifetime(cut); got != 0 {
		t.Errorf("a cut answer is kept for %v", got)
	}
}

func TestCacheAgesAndForgets(t *testing.T) {
	c := newCache(10, 1<<20)
	key := cacheKey{name: "example.org", qtype: mdns.TypeA}
	now := time.Unix(1000, 0)
	c.put(key, message(t, 0, mdns.TypeA, []string{"example.org. 60 IN A 192.0.2.1"}, nil), now)
	m := c.get(key, now.Add(20*time.Second))
	if m == nil || m.Answer[0].Header().Ttl != 40 {
		t.Fatalf("after 20 s: %v, want a TTL of 40", m)
	}
	m.Answer[0].Header().Name = "changed." // a copy: the cache must not notice
	if m := c.get(key, now.Add(59*time.Second)); m == nil || m.Answer[0].Header().Name != "example.org." {
		t.Fatalf("after 59 s: %v", m)
	}
	if m := c.get(key, now.Add(60*time.Second)); m != nil {
		t.Fatalf("served after its time: %v", m)
	}
	if n, b := c.size(); n != 0 || b != 0 {
		t.Errorf("%d entries of %d bytes stayed", n, b)
	}
}

func TestCacheIsBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	one := message(t, 0, mdns.TypeA, []string{"example.org. 60 IN A 192.0.2.1"}, nil)
	for _, limit := range []struct{ entries, bytes, want int }{{3, 1 << 20, 3}, {1000, 4 * one.Len(), 4}} {
		c := newCache(limit.entries, limit.bytes)
		for i := range 100 {
			c.put(cacheKey{name: fmt.Sprint(i)}, one, now)
			c.get(cacheKey{name: "0"}, now) // used, so never the oldest
		}
		if n, b := c.size(); n != limit.want || b != limit.want*one.Len() || len(c.entries) != c.recent.Len() {
			t.Errorf("%+v: %d entries, %d bytes, list of %d", limit, n, b, c.recent.Len())
		}
		if c.get(cacheKey{name: "0"}, now) == nil || c.get(cacheKey{name: "99"}, now) == nil || c.get(cacheKey{name: "50"}, now) != nil {
			t.Errorf("%+v: not the least recently used went", limit)
		}
	}
	off := newCache(-1, 1<<20)
	off.put(cacheKey{}, one, now)
	if n, _ := off.size(); n != 0 {
		t.Error("a cache switched off keeps entries")
	}
}
