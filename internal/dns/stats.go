package dns

import "sync/atomic"

// Stats counts what a [Server] did since it was made. Every query is counted in
// Queries, and each one that was not answered as asked in exactly one of the
// fields that say why.
type Stats struct {
	Queries   uint64 // all that arrived, whatever became of them
	Local     uint64 // answered from hosts, links, own domain or own reverse zones
	CacheHits uint64 // answered from the cache
	Forwarded uint64 // exchanges begun with upstream resolvers
	Truncated uint64 // answers cut to the client's size, with TC set

	Dropped         uint64 // no readable header, or an answer instead of a query
	Malformed       uint64 // answered FORMERR, NOTIMP or BADVERS
	Oversized       uint64 // longer than Config.MaxQuery
	Refused         uint64 // internal network, or a class or type never served
	RateLimited     uint64 // client over Config.Rate
	InFlightLimited uint64 // client over Config.InFlight
	StreamsLimited  uint64 // connections over Config.Streams
	Busy            uint64 // all of Config.Exchanges in use: answered SERVFAIL
	Failed          uint64 // no upstream resolver gave an answer: SERVFAIL
	Abandoned       uint64 // context ended or server closed before the answer
	Unsendable      uint64 // the answer could not be encoded into the transport

	UpstreamTimeouts   uint64 // tries that ended in silence
	UpstreamErrors     uint64 // tries that ended in a socket error
	UpstreamMismatched uint64 // replies discarded: wrong id or question, or unreadable

	CacheEntries int // entries now
	CacheBytes   int // their size in wire format, bytes
}

type counters struct {
	queries, local, cacheHits, forwarded, truncated      atomic.Uint64
	dropped, malformed, oversized, refused               atomic.Uint64
	rateLimited, inFlightLimited, streamsLimited         atomic.Uint64
	busy, failed, abandoned, unsendable                  atomic.Uint64
	upstreamTimeouts, upstreamErrors, upstreamMismatched atomic.Uint64
}

// Stats returns a snapshot; its fields are read one after another, so sums may
// be off by what is in flight.
func (s *Server) Stats() Stats {
	c := &s.count
	st := Stats{
		Queries: c.queries.Load(), Local: c.local.Load(), CacheHits: c.cacheHits.Load(),
		Forwarded: c.forwarded.Load(), Truncated: c.truncated.Load(),
		Dropped: c.dropped.Load(), Malformed: c.malformed.Load(), Oversized: c.oversized.Load(),
		Refused: c.refused.Load(), RateLimited: c.rateLimited.Load(),
		InFlightLimited: c.inFlightLimited.Load(), StreamsLimited: c.streamsLimited.Load(),
		Busy: c.busy.Load(), Failed: c.failed.Load(), Abandoned: c.abandoned.Load(),
		Unsendable:         c.unsendable.Load(),
		UpstreamTimeouts:   c.upstreamTimeouts.Load(),
		UpstreamErrors:     c.upstreamErrors.Load(),
		UpstreamMismatched: c.upstreamMismatched.Load(),
	}
	st.CacheEntries, st.CacheBytes = s.cache.size()
	return st
}
