package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
)

func TestHostileQueries(t *testing.T) {
	pack := func(change func(*mdns.Msg)) []byte {
		q := new(mdns.Msg)
		q.SetQuestion("web.", mdns.TypeA)
		q.Id = 0x1234
		change(q)
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := pack(func(*mdns.Msg) {})
	opt := func() mdns.RR { return &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT, Class: 1232}} }
	tests := []struct {
		name  string
		query []byte
		rcode int // -1: nothing is sent
		want  Stats
	}{
		{"empty", nil, -1, Stats{Dropped: 1}},
		{"header cut", good[:11], -1, Stats{Dropped: 1}},
		{"an answer", pack(func(q *mdns.Msg) { q.Response = true }), -1, Stats{Dropped: 1}},
		{"too long", append(bytes.Clone(good), make([]byte, 4096)...), -1, Stats{Oversized: 1}},
		{"question cut", good[:15], mdns.RcodeFormatError, Stats{Malformed: 1}},
		{"no question", pack(func(q *mdns.Msg) { q.Question = nil }), mdns.RcodeFormatError, Stats{Malformed: 1}},
		{"two questions", pack(func(q *mdns.Msg) { q.Question = append(q.Question, q.Question[0]) }), mdns.RcodeFormatError, Stats{Malformed: 1}},
		{"pointer loop", append(bytes.Clone(good[:12]), 0xc0, 12, 0, 1, 0, 1), mdns.RcodeFormatError, Stats{Malformed: 1}},
		{"two OPT", pack(func(q *mdns.Msg) { q.Extra = []mdns.RR{opt(), opt()} }), mdns.RcodeFormatError, Stats{Malformed: 1}},
		{"EDNS version 1", pack(func(q *mdns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) }), mdns.RcodeBadVers, Stats{Malformed: 1}},
		{"update", pack(func(q *mdns.Msg) { q.Opcode = mdns.OpcodeUpdate }), mdns.RcodeNotImplemented, Stats{Malformed: 1}},
		{"zone transfer", pack(func(q *mdns.Msg) { q.Question[0].Qtype = mdns.TypeAXFR }), mdns.RcodeRefused, Stats{Refused: 1}},
		{"meta type", pack(func(q *mdns.Msg) { q.Question[0].Qtype = mdns.TypeTSIG }), mdns.RcodeRefused, Stats{Refused: 1}},
		{"class CH", pack(func(q *mdns.Msg) { q.Question[0].Qclass = mdns.ClassCHAOS }), mdns.RcodeRefused, Stats{Refused: 1}},
		{"good", good, mdns.RcodeSuccess, Stats{Local: 1}},
	}
	s := newServer(t, Config{Internal: true, Names: links{"web": addrs("10.9.0.3")}})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := s.Stats()
			b := s.ServePacket(context.Background(), alice, tt.query, 1452)
			if (b == nil) != (tt.rcode < 0) {
				t.Fatalf("answer %v", b)
			}
			if b != nil {
				m := parse(t, b, 0x1234)
				if o := m.IsEdns0(); o != nil { // Unpack leaves the upper bits there
					m.Rcode = m.Rcode&0xf | o.ExtendedRcode()
				}
				if m.Rcode != tt.rcode {
					t.Errorf("rcode %d, want %d", m.Rcode, tt.rcode)
				}
			}
			tt.want.Queries = 1
			if d := cmp.Diff(tt.want, delta(before, s.Stats())); d != "" {
				t.Errorf("counters (-want +got):\n%s", d)
			}
		})
	}
}

// tcpPair is a real TCP connection; the server's end is given to serve.
func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

func serveStream(ctx context.Context, t *testing.T, s *Server) (client net.Conn, ended chan error) {
	t.Helper()
	client, server := tcpPair(t)
	ended = make(chan error, 1)
	go func() { ended <- s.ServeStream(ctx, alice, server) }()
	return client, ended
}

func write(t *testing.T, conn net.Conn, name string, qtype uint16) uint16 {
	t.Helper()
	q := new(mdns.Msg)
	q.SetQuestion(mdns.Fqdn(name), qtype)
	if err := (&mdns.Conn{Conn: conn}).WriteMsg(q); err != nil {
		t.Fatal(err)
	}
	return q.Id
}

// A slow name must not hold back a fast one on the same connection.
func TestStreamAnswersOutOfOrder(t *testing.T) {
	release := make(chan struct{})
	u := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		<-release
		answerWith(t, 0, []string{"slow.example.org. 60 IN A 192.0.2.1"}, nil)(w, q)
	})
	s := newServer(t, Config{Upstream: []netip.AddrPort{u.addr}, Names: links{"web": addrs("10.9.0.3")}})
	client, ended := serveStream(context.Background(), t, s)
	slow := write(t, client, "slow.example.org", mdns.TypeA)
	fast := write(t, client, "web", mdns.TypeA)
	co := &mdns.Conn{Conn: client}
	if m, err := co.ReadMsg(); err != nil || m.Id != fast {
		t.Fatalf("first answer %v, %v", m, err)
	}
	close(release)
	if m, err := co.ReadMsg(); err != nil || m.Id != slow || len(m.Answer) != 1 {
		t.Fatalf("second answer %v, %v", m, err)
	}
	_ = client.Close()
	if err := <-ended; err != nil {
		t.Errorf("a client that closes is no error: %v", err)
	}
}

// What UDP would cut comes whole over TCP.
func TestStreamIsNotTruncated(t *testing.T) {
	u := newUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg)
		m.SetReply(q)
		for range 200 {
			m.Answer = append(m.Answer, rr(t, "big.example.org. 60 IN TXT \"some text that repeats itself again and again\""))
		}
		if w.RemoteAddr().Network() == "udp" {
			m.Truncate(512)
		}
		_ = w.WriteMsg(m)
	})
	s := newServer(t, Config{Upstream: []netip.AddrPort{u.addr}})
	client, ended := serveStream(context.Background(), t, s)
	write(t, client, "big.example.org", mdns.TypeTXT)
	m, err := (&mdns.Conn{Conn: client}).ReadMsg()
	if err != nil || m.Truncated || len(m.Answer) != 200 {
		t.Fatalf("%v", err)
	}
	_ = client.Close()
	<-ended
}

func TestStreamEnds(t *testing.T) {
	var (
		ctx, cancel = context.WithCancel(context.Background())
		closed      = newServer(t, Config{Internal: true})
	)
	defer cancel()
	closed.Close()
	tests := []struct {
		name  string
		s     *Server
		input []byte
		act   func(s *Server, client net.Conn)
		want  string // part of the error; empty: none
	}{
		{"idle", newServer(t, Config{Internal: true, IdleTimeout: 50 * time.Millisecond}), nil, func(*Server, net.Conn) {}, ""},
		{"query too long", newServer(t, Config{Internal: true}), []byte{0x10, 0x01}, func(*Server, net.Conn) {}, "4097 bytes"},
		{"cut in the query", newServer(t, Config{Internal: true}), []byte{0, 20, 1, 2}, func(_ *Server, c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() }, "20 bytes"},
		{"cut in the length", newServer(t, Config{Internal: true}), []byte{0}, func(_ *Server, c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() }, "query length"},
		{"context ends", newServer(t, Config{Internal: true}), nil, func(*Server, net.Conn) { cancel() }, ""},
		{"server closes", newServer(t, Config{Internal: true}), nil, func(s *Server, _ net.Conn) { s.Close() }, ""},
		{"server is closed", closed, nil, func(*Server, net.Conn) {}, ErrClosed.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := context.Background()
			if tt.name == "context ends" {
				c = ctx
			}
			client, ended := serveStream(c, t, tt.s)
			if tt.name == "server closes" { // only once it is being served
				write(t, client, "a", mdns.TypeA)
				if _, err := (&mdns.Conn{Conn: client}).ReadMsg(); err != nil {
					t.Fatal(err)
				}
			}
			_, _ = client.Write(tt.input) // fails where it is closed already
			tt.act(tt.s, client)
			err := <-ended
			if (err == nil) != (tt.want == "") || err != nil && !bytes.Contains([]byte(err.Error()), []byte(tt.want)) {
				t.Errorf("ended with %v, want %q", err, tt.want)
			}
			_ = client.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := client.Read(make([]byte, 1)); errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return
			} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("the connection stayed open")
			}
		})
	}
}

// A client that pipelines without reading is slowed down, not buffered for.
func TestStreamHoldsBackAFlood(t *testing.T) {
	s := newServer(t, Config{Internal: true, Rate: -1, IdleTimeout: 300 * time.Millisecond, Names: links{"web": addrs("10.9.0.3")}})
	client, ended := serveStream(context.Background(), t, s)
	q, _ := new(mdns.Msg).SetQuestion("web.", mdns.TypeA).Pack()
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
	flood := bytes.Repeat(framed, 1000)
	_ = client.SetWriteDeadline(time.Now().Add(20 * time.Second))
	for {
		if _, err := client.Write(flood); err != nil {
			break // the server gave up on us
		}
	}
	if err := <-ended; err == nil {
		t.Error("no error from a client that never reads")
	}
}

func TestStreamsPerClient(t *testing.T) {
	s := newServer(t, Config{Internal: true, Streams: 1})
	first, firstEnded := serveStream(context.Background(), t, s)
	write(t, first, "a", mdns.TypeA)
	if _, err := (&mdns.Conn{Conn: first}).ReadMsg(); err != nil {
		t.Fatal(err)
	}
	_, ended := serveStream(context.Background(), t, s)
	if err := <-ended; err == nil || s.Stats().StreamsLimited != 1 {
		t.Errorf("second connection: %v, %+v", err, s.Stats())
	}
	_ = first.Close()
	<-firstEnded
	third, ended := serveStream(context.Background(), t, s)
	write(t, third, "a", mdns.TypeA)
	if _, err := (&mdns.Conn{Conn: third}).ReadMsg(); err != nil {
		t.Errorf("after the first closed: %v", err)
	}
	_ = third.Close()
	<-ended
}

func TestForgottenClientsLeaveNothing(t *testing.T) {
	s := newServer(t, Config{Internal: true})
	ask(t, s, "a", mdns.TypeA)
	if len(s.clients.byAddr) != 1 {
		t.Fatalf("%d clients", len(s.clients.byAddr))
	}
	s.Forget(alice)
	if len(s.clients.byAddr) != 0 {
		t.Errorf("%d clients after Forget", len(s.clients.byAddr))
	}
	now := time.Now()
	a := netip.MustParseAddr("10.0.0.0")
	for range maxClients {
		a = a.Next()
		_, _ = s.clients.admitStream(a, now)
		release, _ := s.clients.admit(a, now)
		release()
		s.clients.byAddr[a].streams = 0
	}
	_, _ = s.clients.admit(alice, now.Add(2*time.Minute))
	if n := len(s.clients.byAddr); n != 1 {
		t.Errorf("%d idle clients kept", n)
	}
}
