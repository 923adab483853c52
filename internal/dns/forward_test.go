package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
)

func upstreams(us ...*upstream) (out []netip.AddrPort) {
	for _, u := range us {
		out = append(out, u.addr)
	}
	return out
}

// silent is a resolver that reads queries and says nothing.
func silent(t *testing.T) *upstream {
	return newUpstream(t, func(mdns.ResponseWriter, *mdns.Msg) {})
}

func edns(size uint16, do bool) func(*mdns.Msg) {
	return func(q *mdns.Msg) { q.SetEdns0(size, do) }
}

func TestForwardAndCache(t *testing.T) {
	u := newUpstream(t, answerWith(t, mdns.RcodeSuccess, []string{"www.example.org. 60 IN CNAME h.example.net.", "h.example.net. 90 IN AAAA 2001:db8::1"}, nil))
	s := newServer(t, Config{Upstream: upstreams(u)})
	clock := setClock(s)
	before := s.Stats()
	first := ask(t, s, "www.example.org", mdns.TypeAAAA)
	clock.Add(25 * int64(time.Second))
	second := ask(t, s, "WWW.example.ORG", mdns.TypeAAAA)
	want := []string{"WWW.example.ORG.\t35\tIN\tCNAME\th.example.net.", "h.example.net.\t65\tIN\tAAAA\t2001:db8::1"}
	if d := cmp.Diff(want, texts(second.Answer)); d != "" {
		t.Errorf("from the cache (-want +got):\n%s", d)
	}
	if len(first.Answer) != 2 || first.Answer[0].Header().Ttl != 60 || u.udp.Load() != 1 {
		t.Errorf("first answer %v, upstream asked %d times", first.Answer, u.udp.Load())
	}
	if first.IsEdns0() != nil {
		t.Error("an OPT record for a client that sent none (RFC 6891 §7)")
	}
	if d := cmp.Diff(Stats{Queries: 2, Forwarded: 1, CacheHits: 1}, delta(before, s.Stats())); d != "" {
		t.Errorf("counters (-want +got):\n%s", d)
	}
	clock.Add(36 * int64(time.Second))
	if ask(t, s, "www.example.org", mdns.TypeAAAA); u.udp.Load() != 2 {
		t.Errorf("upstream asked %d times after the TTL, want 2", u.udp.Load())
	}
}

func TestNegativeAnswersAreCached(t *testing.T) {
	u := newUpstream(t, answerWith(t, mdns.RcodeNameError, nil, []string{"org. 900 IN SOA a. b. 1 2 3 4 60"}))
	s := newServer(t, Config{Upstream: upstreams(u)})
	for range 3 {
		if m := ask(t, s, "nowhere.org", mdns.TypeA); m.Rcode != mdns.RcodeNameError || len(m.Ns) != 1 {
			t.Fatalf("%v", m)
		}
	}
	if n := u.udp.Load(); n != 1 {
		t.Errorf("upstream asked %d times", n)
	}
}

// DO and CD change the answer, so they must not share a cache entry.
func TestDNSSECFlagsAreKeptApart(t *testing.T) {
	var seen sync.Map
	u := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		o := q.IsEdns0()
		seen.Store(fmt.Sprintf("do %t cd %t", o != nil && o.Do(), q.CheckingDisabled), true)
		m := new(mdns.Msg)
		m.SetReply(q)
		m.AuthenticatedData = true
		m.Answer = []mdns.RR{rr(t, "example.org. 60 IN A 192.0.2.1")}
		_ = w.WriteMsg(m)
	})
	s := newServer(t, Config{Upstream: upstreams(u)})
	plain := ask(t, s, "example.org", mdns.TypeA)
	secure := ask(t, s, "example.org", mdns.TypeA, edns(1232, true))
	ask(t, s, "example.org", mdns.TypeA, func(q *mdns.Msg) { q.CheckingDisabled = true })
	if plain.AuthenticatedData || !secure.AuthenticatedData {
		t.Errorf("AD: plain %t, with DO %t", plain.AuthenticatedData, secure.AuthenticatedData)
	}
	if o := secure.IsEdns0(); o == nil || !o.Do() {
		t.Errorf("OPT of the answer: %v", o)
	}
	for _, want := range []string{"do false cd false", "do true cd false", "do false cd true"} {
		if _, ok := seen.Load(want); !ok {
			t.Errorf("upstream was not asked with %s", want)
		}
	}
}

// Nothing that marks the client goes upstream: no subnet, no cookie, no spelling.
func TestClientOptionsStayHere(t *testing.T) {
	got := make(chan *mdns.Msg, 1)
	u := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		got <- q.Copy()
		answerWith(t, mdns.RcodeSuccess, []string{"example.org. 60 IN A 192.0.2.1"}, nil)(w, q)
	})
	s := newServer(t, Config{Upstream: upstreams(u)})
	ask(t, s, "eXample.org", mdns.TypeA, func(q *mdns.Msg) {
		q.Id = 4711
		q.SetEdns0(4096, false)
		q.IsEdns0().Option = []mdns.EDNS0{
			&mdns.EDNS0_SUBNET{Code: mdns.EDNS0SUBNET, Family: 1, SourceNetmask: 32, Address: net.IPv4(10, 9, 0, 2)},
			&mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: "0011223344556677"},
		}
	})
	q := <-got
	o := q.IsEdns0()
	if q.Question[0].Name != "example.org." || o == nil || len(o.Option) != 0 || o.UDPSize() != ednsSize {
		t.Errorf("sent upstream: %v", q)
	}
}

func TestTruncation(t *testing.T) {
	u := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg)
		m.SetReply(q)
		for i := range 120 {
			m.Answer = append(m.Answer, rr(t, fmt.Sprintf("big.example.org. 60 IN TXT \"record number %03d of many, with some text\"", i)))
		}
		if w.RemoteAddr().Network() == "udp" {
			m.Truncate(int(q.IsEdns0().UDPSize()))
		}
		_ = w.WriteMsg(m)
	})
	s := newServer(t, Config{Upstream: upstreams(u)})
	before := s.Stats()
	for _, tt := range []struct {
		change []func(*mdns.Msg)
		limit  int
	}{
		{nil, 512},
		{[]func(*mdns.Msg){edns(100, false)}, 512}, // RFC 6891 §6.2.3: less than 512 is 512
		{[]func(*mdns.Msg){edns(1232, false)}, 1232},
		{[]func(*mdns.Msg){edns(65535, false)}, 1452}, // what the link carries whole
	} {
		q := new(mdns.Msg)
		q.SetQuestion("big.example.org.", mdns.TypeTXT)
		for _, c := range tt.change {
			c(q)
		}
		b, _ := q.Pack()
		a := s.ServePacket(context.Background(), alice, b, 1452)
		m := parse(t, a, q.Id)
		if !m.Truncated || len(a) > tt.limit || len(a) < tt.limit-100 {
			t.Errorf("limit %d: %d bytes, TC %t", tt.limit, len(a), m.Truncated)
		}
	}
	if u.tcp.Load() != 1 || u.udp.Load() != 1 {
		t.Errorf("upstream: %d over UDP, %d over TCP; want one each", u.udp.Load(), u.tcp.Load())
	}
	if d := cmp.Diff(Stats{Queries: 4, Forwarded: 1, CacheHits: 3, Truncated: 4}, delta(before, s.Stats())); d != "" {
		t.Errorf("counters (-want +got):\n%s", d)
	}
}

// Where the resolver's TCP does not work, a cut answer is better than none.
func TestTruncatedAnswerAsLastResort(t *testing.T) {
	u := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		if w.RemoteAddr().Network() == "tcp" {
			_ = w.Close()
			return
		}
		m := new(mdns.Msg)
		m.SetReply(q)
		m.Truncated = true
		_ = w.WriteMsg(m)
	})
	s := newServer(t, Config{Upstream: upstreams(u)})
	if m := ask(t, s, "example.org", mdns.TypeA); !m.Truncated || m.Rcode != mdns.RcodeSuccess {
		t.Errorf("%v", m)
	}
	if n, _ := s.cache.size(); n != 0 {
		t.Error("a cut answer was cached")
	}
}

func TestNextServer(t *testing.T) {
	good := answerWith(t, mdns.RcodeSuccess, []string{"example.org. 60 IN A 192.0.2.1"}, nil)
	for _, tt := range []struct {
		name  string
		first func(*testing.T) netip.AddrPort
		want  Stats
	}{
		{"silent", func(t *testing.T) netip.AddrPort { return silent(t).addr }, Stats{UpstreamTimeouts: 1}},
		{"SERVFAIL", func(t *testing.T) netip.AddrPort { return newUpstream(t, answerWith(t, 2, nil, nil)).addr }, Stats{}},
		{"REFUSED", func(t *testing.T) netip.AddrPort { return newUpstream(t, answerWith(t, 5, nil, nil)).addr }, Stats{}},
		{"nobody there", func(t *testing.T) netip.AddrPort {
			l, pc := listenBoth(t)
			_, _ = l.Close(), pc.Close()
			return netip.MustParseAddrPort(l.Addr().String())
		}, Stats{UpstreamErrors: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := newUpstream(t, good)
			s := newServer(t, Config{})
			s.resolvers = newHostResolvers(Config{Upstream: []netip.AddrPort{tt.first(t), u.addr}}, time.Now())
			s.resolvers.list.Load().Timeout = 200 * time.Millisecond
			before := s.Stats()
			if m := ask(t, s, "example.org", mdns.TypeA); len(m.Answer) != 1 {
				t.Fatalf("%v", m)
			}
			tt.want.Queries, tt.want.Forwarded = 1, 1
			if d := cmp.Diff(tt.want, delta(before, s.Stats())); d != "" {
				t.Errorf("counters (-want +got):\n%s", d)
			}
		})
	}
}

// A server that was silent once does not cost its time-out again.
func TestSilentServerIsAskedLast(t *testing.T) {
	dead := silent(t)
	good := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		answerWith(t, 0, []string{q.Question[0].Name + " 60 IN A 192.0.2.1"}, nil)(w, q)
	})
	s := newServer(t, Config{})
	s.resolvers = newHostResolvers(Config{Upstream: upstreams(dead, good)}, time.Now())
	s.resolvers.list.Load().Timeout = 100 * time.Millisecond
	for i := range 5 {
		ask(t, s, fmt.Sprintf("n%d.example.org", i), mdns.TypeA)
	}
	if n := dead.udp.Load(); n != 1 {
		t.Errorf("the silent server was asked %d times", n)
	}
}

func TestEverySilent(t *testing.T) {
	s := newServer(t, Config{Timeout: 300 * time.Millisecond, Upstream: upstreams(silent(t))})
	start := time.Now()
	m := ask(t, s, "example.org", mdns.TypeA, edns(1232, false))
	if m.Rcode != mdns.RcodeServerFailure || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", m, time.Since(start))
	}
	ede, ok := m.IsEdns0().Option[0].(*mdns.EDNS0_EDE)
	if !ok || ede.InfoCode != mdns.ExtendedErrorCodeNetworkError {
		t.Errorf("no reason in the answer: %v", m.IsEdns0())
	}
	if st := s.Stats(); st.Failed != 1 {
		t.Errorf("%+v", st)
	}
}

func TestServerWithoutEDNS(t *testing.T) {
	u := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		if q.IsEdns0() != nil {
			answerWith(t, mdns.RcodeFormatError, nil, nil)(w, q)
			return
		}
		answerWith(t, 0, []string{"example.org. 60 IN A 192.0.2.1"}, nil)(w, q)
	})
	s := newServer(t, Config{Upstream: upstreams(u)})
	if m := ask(t, s, "example.org", mdns.TypeA); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
}

// Forged answers that come first do not count, whatever is wrong with them.
func TestForgedAnswers(t *testing.T) {
	u := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		bad := func(change func(*mdns.Msg)) {
			m := new(mdns.Msg)
			m.SetReply(q)
			m.Answer = []mdns.RR{rr(t, "example.org. 60 IN A 203.0.113.66")}
			change(m)
			_ = w.WriteMsg(m)
		}
		bad(func(m *mdns.Msg) { m.Id++ })
		bad(func(m *mdns.Msg) { m.Question[0].Name = "other.example.org." })
		bad(func(m *mdns.Msg) {
			m.Question = []mdns.Question{{Name: "example.org.", Qtype: mdns.TypeAAAA, Qclass: 1}}
		})
		bad(func(m *mdns.Msg) { m.Question = nil })
		bad(func(m *mdns.Msg) { m.Response = false })
		_, _ = w.Write([]byte("no message"))
		_, _ = w.Write([]byte{byte(q.Id >> 8), byte(q.Id), 0x80, 0, 0, 1, 0, 9, 0, 0, 0, 0, 0xc0})
		answerWith(t, 0, []string{"example.org. 60 IN A 192.0.2.1"}, nil)(w, q)
	})
	s := newServer(t, Config{Upstream: upstreams(u)})
	m := ask(t, s, "example.org", mdns.TypeA)
	if len(m.Answer) != 1 || m.Answer[0].(*mdns.A).A.String() != "192.0.2.1" {
		t.Fatalf("%v", m)
	}
	if n := s.Stats().UpstreamMismatched; n != 7 {
		t.Errorf("%d forged answers counted", n)
	}
}

func TestEqualQuestionsShareOneExchange(t *testing.T) {
	release := make(chan struct{})
	u := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		<-release
		answerWith(t, 0, []string{"example.org. 60 IN A 192.0.2.1"}, nil)(w, q)
	})
	s := newServer(t, Config{Upstream: upstreams(u)})
	var wg sync.WaitGroup
	var answered atomic.Int64
	for range 20 {
		wg.Go(func() {
			if m := ask(t, s, "Example.org", mdns.TypeA); len(m.Answer) == 1 && m.Answer[0].Header().Name == "Example.org." {
				answered.Add(1)
			}
		})
	}
	waitFor(t, func() bool { return s.Stats().Queries == 20 && u.udp.Load() == 1 })
	close(release)
	wg.Wait()
	if u.udp.Load() != 1 || answered.Load() != 20 {
		t.Errorf("%d exchanges, %d answers", u.udp.Load(), answered.Load())
	}
}

// setClock makes the server live by a clock, in nanoseconds, that only the test
// moves. Call it before the first query.
func setClock(s *Server) *atomic.Int64 {
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	s.now = func() time.Time { return time.Unix(0, clock.Load()) }
	return &clock
}

// waitFor polls until ok or fails after ten seconds.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("did not happen within ten seconds")
		}
	}
}

// One client at its limit is REFUSED; another goes on.
func TestLimitsPerClient(t *testing.T) {
	u := silent(t)
	s := newServer(t, Config{Upstream: upstreams(u), InFlight: 4, Rate: 10, Domain: "usernet.internal", Names: links{"web": addrs("10.9.0.3")}})
	clock := setClock(s) // stands still: no new tokens
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	q := new(mdns.Msg)
	for i := range 4 {
		q.SetQuestion(fmt.Sprintf("n%d.example.org.", i), mdns.TypeA)
		b, _ := q.Pack()
		wg.Go(func() { s.ServePacket(ctx, alice, b, 1452) })
	}
	waitFor(t, func() bool { return u.udp.Load() == 4 })
	want := Stats{Queries: 4, Forwarded: 4}
	if m := ask(t, s, "web", mdns.TypeA); m.Rcode != mdns.RcodeRefused {
		t.Errorf("over the limit in flight: %v", m)
	}
	want.Queries, want.InFlightLimited = want.Queries+1, 1
	for range 5 {
		ask(t, s, "web", mdns.TypeA)
	}
	want.Queries, want.InFlightLimited = want.Queries+5, 6
	if m := ask(t, s, "web", mdns.TypeA); m.Rcode != mdns.RcodeRefused {
		t.Errorf("over the rate: %v", m)
	}
	want.Queries, want.RateLimited = want.Queries+1, 1
	bob, _ := q.SetQuestion("web.", mdns.TypeA).Pack()
	if m := parse(t, s.ServePacket(ctx, netip.MustParseAddr("10.9.0.9"), bob, 1452), q.Id); len(m.Answer) != 1 {
		t.Errorf("another client: %v", m)
	}
	want.Queries, want.Local = want.Queries+1, 1
	cancel()
	wg.Wait()
	want.Abandoned = 4
	if d := cmp.Diff(want, delta(Stats{}, s.Stats())); d != "" {
		t.Errorf("counters (-want +got):\n%s", d)
	}
	clock.Add(int64(time.Second))
	if m := ask(t, s, "web", mdns.TypeA); len(m.Answer) != 1 {
		t.Errorf("after a second: %v", m)
	}
}

func TestExchangesAreBounded(t *testing.T) {
	u := silent(t)
	s := newServer(t, Config{Upstream: upstreams(u), Exchanges: 1})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	b, _ := new(mdns.Msg).SetQuestion("a.example.org.", mdns.TypeA).Pack()
	wg.Go(func() { s.ServePacket(ctx, alice, b, 1452) })
	waitFor(t, func() bool { return u.udp.Load() == 1 })
	if m := ask(t, s, "b.example.org", mdns.TypeA); m.Rcode != mdns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
	if st := s.Stats(); st.Busy != 1 || st.Forwarded != 1 {
		t.Errorf("%+v", st)
	}
	cancel()
	wg.Wait()
}

// Close cuts what waits for a silent resolver and leaves no goroutine (TestMain
// looks); afterwards nothing is answered.
func TestCloseCuts(t *testing.T) {
	u := silent(t)
	s := newServer(t, Config{Upstream: upstreams(u)})
	b, _ := new(mdns.Msg).SetQuestion("a.example.org.", mdns.TypeA).Pack()
	done := make(chan []byte, 1)
	go func() { done <- s.ServePacket(context.Background(), alice, b, 1452) }()
	waitFor(t, func() bool { return u.udp.Load() == 1 })
	start := time.Now()
	s.Close()
	if a := <-done; a != nil || time.Since(start) > time.Second {
		t.Errorf("answer %v after %v", a, time.Since(start))
	}
	if a := s.ServePacket(context.Background(), alice, b, 1452); a != nil {
		t.Error("a closed server answers")
	}
}

func TestUseTCP(t *testing.T) {
	u := newUpstream(t, answerWith(t, 0, []string{"example.org. 60 IN A 192.0.2.1"}, nil))
	s := newServer(t, Config{Upstream: upstreams(u)})
	s.resolvers.list.Load().UseTCP = true
	ask(t, s, "example.org", mdns.TypeA)
	if u.udp.Load() != 0 || u.tcp.Load() != 1 {
		t.Errorf("%d over UDP, %d over TCP", u.udp.Load(), u.tcp.Load())
	}
}

func TestDialHook(t *testing.T) {
	var mu sync.Mutex
	var dialled []string
	s := newServer(t, Config{
		Upstream: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::53]:53")},
		Dial: func(_ context.Context, network, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			dialled = append(dialled, network+" "+address)
			return nil, net.ErrClosed
		},
	})
	if m := ask(t, s, "example.org", mdns.TypeA); m.Rcode != mdns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
	if got := strings.Join(dialled, ", "); got != "udp [2001:db8::53]:53, udp [2001:db8::53]:53" {
		t.Errorf("dialled %s", got)
	}
}
