package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

// ErrClosed is returned by [Server.ServeStream] on a closed server.
var ErrClosed = errors.New("dns: server closed")

// Server answers the queries of one network. Its methods may be called
// concurrently.
type Server struct {
	cfg       Config
	zone      zone
	resolvers *hostResolvers
	cache     *cache
	clients   clients
	count     counters
	now       func() time.Time

	group     singleflight.Group
	exchanges chan struct{} // one token per upstream exchange in progress

	// ctx lives as long as the server: exchanges that several callers share
	// must not end with one of them.
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup // Add only under mu and while not closed
}

// New returns a server for cfg, or everything that is wrong with cfg. It starts
// no goroutine and opens no socket before it is asked.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configure the resolver: %w", err)
	}
	s := &Server{
		cfg:       cfg,
		zone:      newZone(cfg),
		resolvers: newHostResolvers(cfg, time.Now()),
		cache:     newCache(cfg.CacheEntries, cfg.CacheBytes),
		clients:   clients{cfg: cfg, byAddr: make(map[netip.Addr]*client)},
		now:       time.Now,
		exchanges: make(chan struct{}, cfg.Exchanges),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Close refuses new queries, cuts what is in flight and returns when every
// goroutine of the server has ended. Connections in ServeStream end too.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// begin counts a piece of work that Close waits for; done must be called if it
// returns true.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

// Forget drops what is known of a client's budget. Call it when the client's
// link is gone.
func (s *Server) Forget(client netip.Addr) { s.clients.forget(client) }

// ServePacket answers one query that came in a UDP datagram from client. The
// answer is at most as long as the client said that it can take (512 bytes
// without EDNS0), and at most maxSize, the longest payload that the way back
// carries whole; what does not fit is cut with TC set so that the client asks
// again over TCP. Nil means: send nothing. The query is not kept.
func (s *Server) ServePacket(ctx context.Context, client netip.Addr, query []byte, maxSize int) []byte {
	if !s.begin() {
		return nil
	}
	defer s.wg.Done()
	return s.serve(ctx, client, query, transport{maxSize: max(maxSize, mdns.MinMsgSize)})
}

// transport is what a query came over.
type transport struct {
	stream  bool
	maxSize int
}

func (s *Server) serve(ctx context.Context, client netip.Addr, query []byte, via transport) []byte {
	s.count.queries.Add(1)
	if len(query) > s.cfg.MaxQuery {
		s.count.oversized.Add(1)
		return nil
	}
	r, rcode := parseRequest(query)
	switch {
	case r == nil:
		s.count.dropped.Add(1)
		return nil
	case rcode != mdns.RcodeSuccess:
		s.count.malformed.Add(1)
		return s.encode(r, r.reply(rcode), via)
	}
	release, reason := s.clients.admit(client, s.now())
	switch reason {
	case overRate:
		s.count.rateLimited.Add(1)
		return s.encode(r, r.reply(mdns.RcodeRefused), via)
	case overInFlight:
		s.count.inFlightLimited.Add(1)
		return s.encode(r, r.reply(mdns.RcodeRefused), via)
	}
	defer release()
	answer := s.answer(ctx, r)
	if answer == nil {
		s.count.abandoned.Add(1)
		return nil
	}
	return s.encode(r, answer, via)
}

// answer decides who knows: this network, nobody, or the world outside. Nil
// means that there is no longer anybody to answer.
func (s *Server) answer(ctx context.Context, r *request) *mdns.Msg {
	if r.question.Qclass != mdns.ClassINET || !servedType(r.question.Qtype) {
		s.count.refused.Add(1)
		return r.reply(mdns.RcodeRefused)
	}
	if m := s.zone.answer(r); m != nil {
		s.count.local.Add(1)
		return m
	}
	if s.cfg.Internal {
		s.count.refused.Add(1)
		return r.reply(mdns.RcodeRefused)
	}
	return s.forward(ctx, r)
}

// servedType excludes zone transfers and types that are no data but parts of
// the protocol (RFC 6895 §3.1: 128–255 are query types and meta types; of these
// only ANY is a question that a resolver answers).
func servedType(t uint16) bool {
	return t == mdns.TypeANY || (t != mdns.TypeNone && t != mdns.TypeOPT && (t < 128 || t > 255))
}
