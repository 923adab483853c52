package dns

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// FuzzServePacket: whatever comes, nothing panics; what is sent back is a
// message, an answer, to the same id, within the size, and of no more than one
// OPT record.
func FuzzServePacket(f *testing.F) {
	q := new(mdns.Msg)
	q.SetQuestion("web.", mdns.TypeA)
	b, _ := q.Pack()
	f.Add(b)
	q.SetEdns0(100, true)
	b, _ = q.Pack()
	f.Add(b)
	for _, n := range []string{"3.0.9.10.in-addr.arpa.", arpa6("fd00:9::3") + ".", "a\\.b.usernet.internal.", "usernet.internal.", ".", "x.localhost."} {
		b, _ = new(mdns.Msg).SetQuestion(n, mdns.TypePTR).Pack()
		f.Add(b)
	}
	f.Add([]byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, query []byte) {
		cfg := localConfig()
		cfg.Rate = -1
		s := newServer(t, cfg)
		a := s.ServePacket(context.Background(), alice, query, 1452)
		if a == nil {
			return
		}
		m := new(mdns.Msg)
		if err := m.Unpack(a); err != nil {
			t.Fatalf("answer does not parse: %v", err)
		}
		if m.Id != binary.BigEndian.Uint16(query) || !m.Response || len(a) > 1452 {
			t.Fatalf("answer %v of %d bytes", m, len(a))
		}
		if st := s.Stats(); st.Queries != 1 || st.Local+st.Refused+st.Malformed != 1 {
			t.Fatalf("counters %+v", st)
		}
	})
}

// FuzzUpstreamAnswer: an upstream resolver that says anything can neither crash
// the server nor make it send something that is no answer.
func FuzzUpstreamAnswer(f *testing.F) {
	m := new(mdns.Msg)
	m.SetQuestion("example.org.", mdns.TypeA)
	m.Response = true
	m.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: "example.org.", Rrtype: 1, Class: 1, Ttl: 60}, A: net.IPv4(192, 0, 2, 1)}}
	b, _ := m.Pack()
	f.Add(b[2:])
	m.SetEdns0(1232, true)
	m.Rcode = mdns.RcodeBadVers
	b, _ = m.Pack()
	f.Add(b[2:])
	m.Rcode, m.Truncated = 0, true
	b, _ = m.Pack()
	f.Add(b[2:])
	f.Fuzz(func(t *testing.T, rest []byte) {
		s := newServer(t, Config{
			Upstream: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")},
			Timeout:  50 * time.Millisecond,
			Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
				if network != "udp" {
					return nil, net.ErrClosed
				}
				return &scripted{rest: rest}, nil
			},
		})
		got := ask(t, s, "example.org", mdns.TypeA, edns(1232, true))
		if len(got.Question) != 1 || got.Question[0].Name != "example.org." {
			t.Fatalf("%v", got)
		}
	})
}

// scripted is a datagram socket whose far side answers every query with its id
// and then rest, once.
type scripted struct {
	net.Conn
	id   []byte
	rest []byte
	done bool
}

func (c *scripted) Write(b []byte) (int, error) {
	c.id = append([]byte(nil), b[:2]...)
	return len(b), nil
}

func (c *scripted) Read(b []byte) (int, error) {
	if c.done {
		return 0, net.ErrClosed
	}
	c.done = true
	return copy(b, append(c.id, c.rest...)), nil
}

func (c *scripted) Close() error                { return nil }
func (c *scripted) SetDeadline(time.Time) error { return nil }
