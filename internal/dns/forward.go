package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
)

// errBusy means that all of Config.Exchanges are in use.
var errBusy = errors.New("too many upstream exchanges in progress")

// forward answers from the cache or from upstream.
func (s *Server) forward(ctx context.Context, r *request) *mdns.Msg {
	upstream := s.resolvers.current(s.now())
	key := cacheKey{
		name: r.name, qtype: r.question.Qtype,
		do: r.do(), cd: r.msg.CheckingDisabled, generation: upstream.generation,
	}
	if m := s.cache.get(key, s.now()); m != nil {
		s.count.cacheHits.Add(1)
		return r.adopt(m)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	// The key as a string: singleflight takes no other. %q keeps a name with a
	// blank or a separator in it apart from the fields behind it.
	flight := fmt.Sprintf("%q %d %t %t %d", key.name, key.qtype, key.do, key.cd, key.generation)
	result := s.group.DoChan(flight, func() (any, error) { return s.exchangeOnce(key, upstream) })
	select {
	case res := <-result:
		if res.Err == nil {
			return r.adopt(res.Val.(*mdns.Msg).Copy()) // shared with other callers
		}
		return s.failed(r, res.Err)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return s.failed(r, ctx.Err())
		}
		return nil
	}
}

func (s *Server) failed(r *request, err error) *mdns.Msg {
	switch {
	case errors.Is(err, ErrClosed), errors.Is(err, context.Canceled):
		return nil
	case errors.Is(err, errBusy):
		s.count.busy.Add(1)
		return r.failure(mdns.ExtendedErrorCodeNotReady, err.Error())
	}
	s.count.failed.Add(1)
	return r.failure(mdns.ExtendedErrorCodeNetworkError, err.Error())
}

// adopt makes an upstream answer the answer to r: its id, its question and its
// spelling of the name. The AD flag is passed on only to those who can have
// asked for it (RFC 6840 §5.7). m must belong to the caller.
func (r *request) adopt(m *mdns.Msg) *mdns.Msg {
	reply := r.reply(m.Rcode)
	reply.Truncated = m.Truncated
	reply.AuthenticatedData = m.AuthenticatedData && (r.do() || r.msg.AuthenticatedData)
	reply.Answer, reply.Ns, reply.Extra = m.Answer, m.Ns, m.Extra
	for _, rr := range reply.Answer {
		if h := rr.Header(); strings.EqualFold(h.Name, r.question.Name) {
			h.Name = r.question.Name
		}
	}
	return reply
}

// exchangeOnce asks upstream on behalf of everybody who waits for key. It runs
// on a goroutine of singleflight; Close waits for it.
func (s *Server) exchangeOnce(key cacheKey, upstream *upstreamList) (*mdns.Msg, error) {
	if !s.begin() {
		return nil, ErrClosed
	}
	defer s.wg.Done()
	select {
	case s.exchanges <- struct{}{}:
		defer func() { <-s.exchanges }()
	default:
		return nil, errBusy
	}
	s.count.forwarded.Add(1)
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Timeout)
	defer cancel()
	m, err := s.askAll(ctx, key, upstream)
	if err != nil {
		return nil, err
	}
	stripOPT(m)
	s.cache.put(key, m, s.now())
	return m, nil
}

func stripOPT(m *mdns.Msg) {
	extra := m.Extra[:0]
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != mdns.TypeOPT {
			extra = append(extra, rr)
		}
	}
	m.Extra = extra
	if m.Rcode > 0xf { // its upper bits were in the OPT record just removed
		m.Rcode = mdns.RcodeServerFailure
	}
}

const (
	// firstTimeout is the wait for a server when resolv.conf does not say. The
	// five seconds of resolv.conf(5) are also what clients wait for us, so the
	// second server would never be asked in time.
	firstTimeout = 2 * time.Second
	// ednsSize is what we say that we can take over UDP: it fits every link of
	// at least 1280 bytes whole, so answers are not fragmented.
	ednsSize = 1232
)

// askAll tries the servers in turn, for as many rounds as resolv.conf wants. An
// answer that only says that this server will not do is kept in case no other
// does better.
func (s *Server) askAll(ctx context.Context, key cacheKey, upstream *upstreamList) (*mdns.Msg, error) {
	timeout := upstream.Timeout
	if timeout == 0 {
		timeout = firstTimeout
	}
	var fallback *mdns.Msg
	var faults []error
	for range upstream.Attempts {
		for _, server := range s.resolvers.order(upstream, s.now()) {
			m, err := s.ask(ctx, server, key, timeout, upstream.UseTCP)
			if err == nil && !worthAnother(m) {
				return m, nil
			}
			if err == nil && fallback == nil {
				fallback = m
			}
			if err != nil {
				faults = append(faults, err)
			}
			if ctx.Err() != nil {
				faults = append(faults, ctx.Err())
				return fallback, orNil(fallback, faults)
			}
		}
	}
	return fallback, orNil(fallback, faults)
}

// orNil is the error of a search that may have ended with a second-best answer.
func orNil(fallback *mdns.Msg, faults []error) error {
	if fallback != nil {
		return nil
	}
	return errors.Join(faults...)
}

// worthAnother reports whether the next server may know better, as the C library
// judges it; a truncated answer got here because TCP did not work.
func worthAnother(m *mdns.Msg) bool {
	return m.Truncated || m.Rcode == mdns.RcodeServerFailure || m.Rcode == mdns.RcodeRefused || m.Rcode == mdns.RcodeNotImplemented
}

// ask asks one server: over UDP, over TCP when the answer does not fit, and
// without EDNS0 when the server does not know it (RFC 6891 §7).
func (s *Server) ask(ctx context.Context, server netip.AddrPort, key cacheKey, timeout time.Duration, tcp bool) (*mdns.Msg, error) {
	network := "udp"
	if tcp {
		network = "tcp"
	}
	m, err := s.exchange(ctx, network, server, key, true, timeout)
	if err == nil && noEDNS(m) {
		m, err = s.exchange(ctx, network, server, key, false, timeout)
	}
	if err == nil && m.Truncated && network == "udp" {
		if whole, terr := s.exchange(ctx, "tcp", server, key, true, timeout); terr == nil {
			m = whole
		}
	}
	switch {
	case err == nil:
		s.resolvers.setAlive(server)
	case ctx.Err() != nil:
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.count.upstreamTimeouts.Add(1)
		s.resolvers.setSilent(server, s.now().Add(silence))
	default:
		s.count.upstreamErrors.Add(1)
	}
	return m, err
}

// noEDNS reports whether m says that the server does not understand EDNS0, or
// not ours.
func noEDNS(m *mdns.Msg) bool {
	unknown := m.Rcode == mdns.RcodeFormatError || m.Rcode == mdns.RcodeNotImplemented
	return unknown && m.IsEdns0() == nil || m.Rcode == mdns.RcodeBadVers
}

// exchange sends one query over a socket of its own and waits for its answer.
func (s *Server) exchange(ctx context.Context, network string, server netip.AddrPort, key cacheKey, edns bool, timeout time.Duration) (*mdns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := s.cfg.Dial(ctx, network, server.String())
	if err != nil {
		if ctx.Err() != nil {
			err = os.ErrDeadlineExceeded
		}
		return nil, fmt.Errorf("dial resolver %s over %s: %w", server, network, err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("ask resolver %s: %w", server, err)
	}
	// Close of the server must not wait for a silent resolver.
	stop := context.AfterFunc(s.ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	query := question(key, edns)
	if err := send(conn, query, network == "tcp"); err != nil {
		return nil, fmt.Errorf("ask resolver %s over %s: %w", server, network, err)
	}
	m, err := s.readAnswer(conn, query, network == "tcp")
	if err != nil {
		return nil, fmt.Errorf("wait for resolver %s over %s: %w", server, network, err)
	}
	return m, nil
}

// send writes m in one call: over TCP behind its length (RFC 1035 §4.2.2).
func send(conn net.Conn, m *mdns.Msg, stream bool) error {
	b, err := m.Pack()
	if err != nil {
		return err
	}
	if stream {
		b = append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...)
	}
	_, err = conn.Write(b)
	return err
}

// udpBufferSize holds every answer of a resolver that keeps to ednsSize, and of
// most that do not.
const udpBufferSize = 4096

// readAnswer waits for the message that answers query and passes over all other
// datagrams: forgers get to guess, not to end the exchange.
func (s *Server) readAnswer(conn net.Conn, query *mdns.Msg, stream bool) (*mdns.Msg, error) {
	if stream {
		b, err := readFramed(conn)
		if err != nil {
			return nil, err
		}
		if m := unpackAnswer(b, query); m != nil {
			return m, nil
		}
		s.count.upstreamMismatched.Add(1)
		return nil, errors.New("the answer is not to the question asked")
	}
	buf := make([]byte, udpBufferSize)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if m := unpackAnswer(buf[:n], query); m != nil {
			return m, nil
		}
		s.count.upstreamMismatched.Add(1)
	}
}

func readFramed(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// unpackAnswer returns nil for what is not the answer to query.
func unpackAnswer(b []byte, query *mdns.Msg) *mdns.Msg {
	m := new(mdns.Msg)
	if m.Unpack(b) != nil || !answers(m, query) {
		return nil
	}
	return m
}

// answers reports whether m is a reply to query: id, opcode, and the question
// unless the server refused to repeat it together with an error.
func answers(m, query *mdns.Msg) bool {
	if !m.Response || m.Id != query.Id || m.Opcode != query.Opcode {
		return false
	}
	if len(m.Question) == 0 {
		return m.Rcode == mdns.RcodeFormatError || m.Rcode == mdns.RcodeNotImplemented ||
			m.Rcode == mdns.RcodeServerFailure || m.Rcode == mdns.RcodeRefused
	}
	q, want := m.Question[0], query.Question[0]
	return len(m.Question) == 1 && q.Qtype == want.Qtype && q.Qclass == want.Qclass && strings.EqualFold(q.Name, want.Name)
}

// question is the query sent upstream. Nothing of the client's message is
// forwarded but what the cache key holds: no client subnet, no cookie, no
// options that would make answers differ between containers.
func question(key cacheKey, edns bool) *mdns.Msg {
	q := new(mdns.Msg)
	q.SetQuestion(mdns.Fqdn(key.name), key.qtype) // sets a random id and RD
	q.CheckingDisabled = key.cd
	q.AuthenticatedData = true // RFC 6840 §5.7: tell us whether it was validated
	if edns {
		q.SetEdns0(ednsSize, key.do)
	}
	return q
}
