package dns

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var alice = netip.MustParseAddr("10.9.0.2")

// upstream is a real resolver on loopback, over UDP and TCP at one port.
type upstream struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int64 // queries seen
}

// newUpstream starts a resolver that answers with handle until the test ends.
func newUpstream(t *testing.T, handle func(w mdns.ResponseWriter, q *mdns.Msg)) *upstream {
	t.Helper()
	l, pc := listenBoth(t)
	u := &upstream{addr: netip.MustParseAddrPort(l.Addr().String())}
	h := mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		if w.RemoteAddr().Network() == "tcp" {
			u.tcp.Add(1)
		} else {
			u.udp.Add(1)
		}
		handle(w, q)
	})
	var wg sync.WaitGroup
	var ready sync.WaitGroup
	servers := []*mdns.Server{{Listener: l, Handler: h}, {PacketConn: pc, Handler: h}}
	for _, srv := range servers {
		ready.Add(1)
		srv.NotifyStartedFunc = ready.Done
		wg.Go(func() { _ = srv.ActivateAndServe() })
	}
	t.Cleanup(func() {
		for _, srv := range servers {
			_ = srv.Shutdown()
		}
		wg.Wait()
	})
	ready.Wait()
	return u
}

// listenBoth finds a loopback port that is free for TCP and UDP.
func listenBoth(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, pc
		}
		_ = l.Close()
	}
	t.Fatal("no port free for both TCP and UDP")
	return nil, nil
}

// newServer makes the server under test; it is closed with the test.
func newServer(t testing.TB, cfg Config) *Server {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// ask sends a query for name as a client would and reads the answer.
func ask(t testing.TB, s *Server, name string, qtype uint16, change ...func(*mdns.Msg)) *mdns.Msg {
	t.Helper()
	q := new(mdns.Msg)
	q.SetQuestion(mdns.Fqdn(name), qtype)
	for _, c := range change {
		c(q)
	}
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return parse(t, s.ServePacket(ctx, alice, b, 1452), q.Id)
}

func parse(t testing.TB, b []byte, id uint16) *mdns.Msg {
	t.Helper()
	if b == nil {
		t.Fatal("no answer")
	}
	m := new(mdns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("answer does not parse: %v", err)
	}
	if m.Id != id || !m.Response {
		t.Fatalf("answer has id %d response %t, want id %d true", m.Id, m.Response, id)
	}
	return m
}

func rr(t testing.TB, text string) mdns.RR {
	t.Helper()
	r, err := mdns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// answerWith makes a handler that repeats the question and adds records.
func answerWith(t testing.TB, rcode int, answer, ns []string) func(mdns.ResponseWriter, *mdns.Msg) {
	t.Helper()
	var a, n []mdns.RR
	for _, s := range answer {
		a = append(a, rr(t, s))
	}
	for _, s := range ns {
		n = append(n, rr(t, s))
	}
	return func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg)
		m.SetRcode(q, rcode)
		m.Answer, m.Ns = a, n
		_ = w.WriteMsg(m)
	}
}

// links is a Names for tests.
type links map[string][]netip.Addr

func (l links) Lookup(name string) ([]netip.Addr, bool) { a, ok := l[name]; return a, ok }

func (l links) Reverse(addr netip.Addr) (string, bool) {
	for name, addrs := range l {
		for _, a := range addrs {
			if a == addr {
				return name, true
			}
		}
	}
	return "", false
}

func addrs(ss ...string) (out []netip.Addr) {
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// delta returns what changed between two snapshots, gauges left out.
func delta(before, after Stats) Stats {
	return Stats{
		Queries: after.Queries - before.Queries, Local: after.Local - before.Local,
		CacheHits: after.CacheHits - before.CacheHits, Forwarded: after.Forwarded - before.Forwarded,
		Truncated: after.Truncated - before.Truncated, Dropped: after.Dropped - before.Dropped,
		Malformed: after.Malformed - before.Malformed, Oversized: after.Oversized - before.Oversized,
		Refused: after.Refused - before.Refused, RateLimited: after.RateLimited - before.RateLimited,
		InFlightLimited: after.InFlightLimited - before.InFlightLimited,
		StreamsLimited:  after.StreamsLimited - before.StreamsLimited,
		Busy:            after.Busy - before.Busy, Failed: after.Failed - before.Failed,
		Abandoned: after.Abandoned - before.Abandoned, Unsendable: after.Unsendable - before.Unsendable,
		UpstreamTimeouts:   after.UpstreamTimeouts - before.UpstreamTimeouts,
		UpstreamErrors:     after.UpstreamErrors - before.UpstreamErrors,
		UpstreamMismatched: after.UpstreamMismatched - before.UpstreamMismatched,
	}
}
