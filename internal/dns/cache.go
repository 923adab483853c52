package dns

import (
	"container/list"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

// cacheKey names one question to one list of resolvers. DO and CD are part of
// it because they change what a resolver answers (RFC 4035 §3.2).
type cacheKey struct {
	name       string // lower case, no final dot
	qtype      uint16
	do, cd     bool
	generation uint64
}

const (
	maxTTL = 24 * time.Hour // a wrong record upstream is forgotten within a day
	// RFC 2308 §5 advises one to three hours at most for negative answers.
	maxNegativeTTL = time.Hour
	// RFC 9520 §3.2: failures are to be cached for at least a second.
	failureTTL = time.Second
)

type cacheEntry struct {
	key     cacheKey
	msg     *mdns.Msg // never changed once stored
	size    int
	stored  time.Time
	expires time.Time
}

// cache keeps answers for as long as their records say, in a bounded space.
type cache struct {
	maxEntries, maxBytes int

	mu      sync.Mutex
	entries map[cacheKey]*list.Element
	recent  *list.List // of *cacheEntry, most recently used first
	bytes   int
}

func newCache(entries, bytes int) *cache {
	return &cache{maxEntries: entries, maxBytes: bytes, entries: make(map[cacheKey]*list.Element), recent: list.New()}
}

// get returns a copy of the answer with its TTLs reduced by its age, or nil.
func (c *cache) get(key cacheKey, now time.Time) *mdns.Msg {
	e := c.find(key, now)
	if e == nil {
		return nil
	}
	m := e.msg.Copy()
	age := uint32(max(0, now.Sub(e.stored)) / time.Second)
	for _, section := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			h.Ttl -= min(age, h.Ttl)
		}
	}
	return m
}

func (c *cache) find(key cacheKey, now time.Time) *cacheEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.entries[key]
	if !ok {
		return nil
	}
	e := el.Value.(*cacheEntry)
	if !now.Before(e.expires) {
		c.removeLocked(el)
		return nil
	}
	c.recent.MoveToFront(el)
	return e
}

// put stores m, which must not be changed afterwards, if its records allow it.
func (c *cache) put(key cacheKey, m *mdns.Msg, now time.Time) {
	ttl := lifetime(m)
	size := m.Len()
	if ttl <= 0 || c.maxEntries < 0 || size > c.maxBytes {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.entries[key]; ok {
		c.removeLocked(el)
	}
	c.entries[key] = c.recent.PushFront(&cacheEntry{key: key, msg: m, size: size, stored: now, expires: now.Add(ttl)})
	c.bytes += size
	for len(c.entries) > c.maxEntries || c.bytes > c.maxBytes {
		c.removeLocked(c.recent.Back())
	}
}

func (c *cache) removeLocked(el *list.Element) {
	e := c.recent.Remove(el).(*cacheEntry)
	delete(c.entries, e.key)
	c.bytes -= e.size
}

func (c *cache) size() (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries), c.bytes
}

// lifetime says for how long an answer may be given again; zero: not at all.
func lifetime(m *mdns.Msg) time.Duration {
	if m.Truncated {
		return 0
	}
	switch m.Rcode {
	case mdns.RcodeSuccess, mdns.RcodeNameError:
	case mdns.RcodeServerFailure:
		return failureTTL
	default:
		return 0
	}
	if m.Rcode == mdns.RcodeNameError || !answersQuestion(m) {
		return negativeTTL(m)
	}
	ttl := maxTTL
	for _, section := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != mdns.TypeOPT {
				ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
			}
		}
	}
	return ttl
}

// answersQuestion reports whether the answer holds what was asked for, beyond
// aliases on the way to it.
func answersQuestion(m *mdns.Msg) bool {
	for _, rr := range m.Answer {
		if t := rr.Header().Rrtype; len(m.Question) == 1 && (t == m.Question[0].Qtype || m.Question[0].Qtype == mdns.TypeANY) {
			return true
		}
	}
	return false
}

// negativeTTL follows RFC 2308 §5: the lower of the SOA's own TTL and its
// minimum field; without a SOA the answer is not to be cached. The TTLs of
// aliases in the answer count too.
func negativeTTL(m *mdns.Msg) time.Duration {
	ttl, found := maxNegativeTTL, false
	for _, rr := range m.Ns {
		if soa, ok := rr.(*mdns.SOA); ok {
			found = true
			ttl = min(ttl, time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second)
		}
	}
	if !found {
		return 0
	}
	for _, rr := range m.Answer {
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
	}
	return ttl
}
