package netstack

import (
	"net"
	"net/netip"
	"testing"

	mdns "github.com/miekg/dns"
)

// upstreamDNS is a real resolver on loopback that knows every name.
func upstreamDNS(t *testing.T, handle mdns.HandlerFunc) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started, done := make(chan struct{}), make(chan struct{})
	srv := &mdns.Server{PacketConn: pc, Handler: handle, NotifyStartedFunc: func() { close(started) }}
	go func() {
		defer close(done)
		_ = srv.ActivateAndServe()
	}()
	<-started
	t.Cleanup(func() { _ = srv.Shutdown(); <-done })
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

// everyName answers A questions with one address.
func everyName(w mdns.ResponseWriter, q *mdns.Msg) {
	m := new(mdns.Msg)
	m.SetReply(q)
	if q.Question[0].Qtype == mdns.TypeA {
		m.Answer = []mdns.RR{&mdns.A{
			Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: 60},
			A:   net.IPv4(192, 0, 2, 99),
		}}
	}
	_ = w.WriteMsg(m)
}

func dnsHarness(t *testing.T, change func(*Config)) *harness {
	up := upstreamDNS(t, everyName)
	return newHarness(t, func(c *Config) {
		c.DNS.Upstreams = []netip.AddrPort{up}
		c.HostServices = []HostService{{Name: "db", Target: netip.MustParseAddrPort("127.0.0.1:5432")}}
		if change != nil {
			change(c)
		}
	})
}

// query asks the gateway from a container and returns the answer.
func (e *end) query(v4 bool, port uint16, name string, qtype uint16) *mdns.Msg {
	e.t.Helper()
	q := new(mdns.Msg)
	q.SetQuestion(mdns.Fqdn(name), qtype)
	b, err := q.Pack()
	if err != nil {
		e.t.Fatal(err)
	}
	src, dst := ap(e.addr(v4), port), ap(e.link.s.gateway(v4), dnsPort)
	e.send(udpPacket(src, dst, 64, b))
	hdr, pkt := e.receive()
	m := new(mdns.Msg)
	if err := m.Unpack(wantUDP(e.t, hdr, pkt, dst, src)); err != nil {
		e.t.Fatal(err)
	}
	if m.Id != q.Id {
		e.t.Fatalf("answer has id %d, want %d", m.Id, q.Id)
	}
	return m
}

func TestResolverKnowsTheNetwork(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := dnsHarness(t, nil)
		a := h.attach("a", 2, nil)
		h.attach("web", 3, func(c *LinkConfig) { c.Aliases = []string{"www"} })
		for _, tt := range []struct {
			name  string
			qtype uint16
			rcode int
			want  string
		}{
			{"web", mdns.TypeA, 0, "10.88.0.3"},
			{"WEB.usernet.internal", mdns.TypeAAAA, 0, "fd00:88::3"},
			{"www", mdns.TypeA, 0, "10.88.0.3"},
			{"db", mdns.TypeA, 0, "10.88.0.1"},
			{"gateway", mdns.TypeAAAA, 0, "fd00:88::1"},
			{"3.0.88.10.in-addr.arpa", mdns.TypePTR, 0, "web.usernet.internal."},
			{"nobody.usernet.internal", mdns.TypeA, mdns.RcodeNameError, ""},
			{"example.org", mdns.TypeA, 0, "192.0.2.99"},
		} {
			m := a.query(v4, 5000, tt.name, tt.qtype)
			got := ""
			if len(m.Answer) > 0 {
				switch rr := m.Answer[0].(type) {
				case *mdns.A:
					got = rr.A.String()
				case *mdns.AAAA:
					got = rr.AAAA.String()
				case *mdns.PTR:
					got = rr.Ptr
				}
			}
			if m.Rcode != tt.rcode || got != tt.want {
				t.Errorf("%s %s: %s %q, want %s %q", tt.name, mdns.TypeToString[tt.qtype],
					mdns.RcodeToString[m.Rcode], got, mdns.RcodeToString[tt.rcode], tt.want)
			}
		}
		a.wantDrops(map[string]uint64{})
	})
}

func TestResolverFollowsLinks(t *testing.T) {
	h := dnsHarness(t, nil)
	a, b := h.attach("a", 2, nil), h.attach("b", 3, nil)
	if m := a.query(true, 5000, "b.usernet.internal", mdns.TypeA); m.Rcode != 0 {
		t.Fatalf("%v", m)
	}
	if err := b.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m := a.query(true, 5000, "b.usernet.internal", mdns.TypeA); m.Rcode != mdns.RcodeNameError {
		t.Errorf("a link that left still resolves: %v", m)
	}
}

func TestResolverOfAnInternalNetwork(t *testing.T) {
	h := dnsHarness(t, func(c *Config) { c.Internal = true })
	a := h.attach("a", 2, nil)
	if m := a.query(true, 5000, "example.org", mdns.TypeA); m.Rcode != mdns.RcodeRefused {
		t.Errorf("an outside name: %v", m)
	}
	if m := a.query(true, 5000, "a", mdns.TypeA); len(m.Answer) != 1 {
		t.Errorf("an own name: %v", m)
	}
}

func TestResolverFlows(t *testing.T) {
	h := dnsHarness(t, nil)
	a := h.attach("a", 2, nil)
	a.query(true, 5000, "example.org", mdns.TypeA)
	eventually(t, func() bool { f := h.s.Flows(); return len(f) == 1 && f[0].End != nil })
	f := h.s.Flows()[0]
	if f.Direction != FlowService || f.Destination != ap(h.s.gateway4, 53) || f.FromContainer.Packets != 1 || f.ToContainer.Packets != 1 {
		t.Errorf("flow %+v", f)
	}
}

func TestResolverHostileQueries(t *testing.T) {
	h := dnsHarness(t, nil)
	a := h.attach("a", 2, nil)
	src, dst := ap(a.v4, 5000), ap(h.s.gateway4, dnsPort)
	a.send(udpPacket(src, dst, 64, nil))
	a.send(udpPacket(src, dst, 64, []byte("no header")))
	bad := udpPacket(src, dst, 64, []byte("0123456789012345"))
	bad[len(bad)-1] ^= 1
	a.send(bad)
	a.wantDrops(map[string]uint64{"dns_malformed": 2, "checksum": 1})
	hdr, pkt := udpSuperframe(src, dst, make([]byte, 20000), 9000)
	a.sendFrame(hdr, pkt)
	a.wantDrops(map[string]uint64{"dns_malformed": 3, "checksum": 1})
	a.quiet()
}

// Over its limit a link loses queries and no other link does; what is in flight
// ends with the link.
func TestResolverLimit(t *testing.T) {
	release := make(chan struct{})
	up := upstreamDNS(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		<-release
		everyName(w, q)
	})
	h := newHarness(t, func(c *Config) {
		c.DNS.Upstreams = []netip.AddrPort{up}
		c.Limits.DNSQueries = 2
	})
	a, b := h.attach("a", 2, nil), h.attach("b", 3, nil)
	q, err := new(mdns.Msg).SetQuestion("example.org.", mdns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for port := uint16(1); port <= 3; port++ {
		a.send(udpPacket(ap(a.v4, port), ap(h.s.gateway4, dnsPort), 64, q))
	}
	a.wantDrops(map[string]uint64{"dns_limit": 1})
	if m := b.query(true, 1, "b", mdns.TypeA); len(m.Answer) != 1 {
		t.Errorf("another link: %v", m)
	}
	if err := a.link.Detach(t.Context()); err != nil {
		t.Errorf("detach with queries in flight: %v", err)
	}
	close(release)
}

// A superframe to the resolver is as many queries.
func TestResolverSuperframe(t *testing.T) {
	h := dnsHarness(t, nil)
	a := h.attach("a", 2, nil)
	var all []byte
	one := 0
	for id := range uint16(3) {
		q := new(mdns.Msg).SetQuestion("a.", mdns.TypeA)
		q.Id = id
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		one = len(b)
		all = append(all, b...)
	}
	src, dst := ap(a.v4, 5000), ap(h.s.gateway4, dnsPort)
	hdr, pkt := udpSuperframe(src, dst, all, one)
	a.sendFrame(hdr, pkt)
	seen := map[uint16]bool{}
	for range 3 {
		hdr, pkt := a.receive()
		m := new(mdns.Msg)
		if err := m.Unpack(wantUDP(t, hdr, pkt, dst, src)); err != nil {
			t.Fatal(err)
		}
		seen[m.Id] = true
	}
	if len(seen) != 3 {
		t.Errorf("answers to %v", seen)
	}
}
