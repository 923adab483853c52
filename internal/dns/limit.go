package dns

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// client is one container's budget.
type client struct {
	limiter  *rate.Limiter // nil: no limit
	inFlight int
	streams  int
	lastSeen time.Time
}

// clients holds the budgets. Callers pass addresses that they have checked (the
// switch drops what is not leased), so there are as many as links; the sweep
// only guards against a caller that never calls forget.
type clients struct {
	cfg Config

	mu     sync.Mutex
	byAddr map[netip.Addr]*client
}

// maxClients is where idle budgets are swept out.
const maxClients = 1 << 14

type overLimit uint8

const (
	admitted overLimit = iota
	overRate
	overInFlight
)

// admit takes one query off the budget of addr. release must be called if and
// only if it was admitted.
func (c *clients) admit(addr netip.Addr, now time.Time) (release func(), reason overLimit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := c.getLocked(addr, now)
	if cl.limiter != nil && !cl.limiter.AllowN(now, 1) {
		return nil, overRate
	}
	if cl.inFlight >= c.cfg.InFlight {
		return nil, overInFlight
	}
	cl.inFlight++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		cl.inFlight--
	}, admitted
}

// admitStream is admit for a connection.
func (c *clients) admitStream(addr netip.Addr, now time.Time) (release func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := c.getLocked(addr, now)
	if cl.streams >= c.cfg.Streams {
		return nil, false
	}
	cl.streams++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		cl.streams--
	}, true
}

func (c *clients) getLocked(addr netip.Addr, now time.Time) *client {
	addr = addr.Unmap()
	cl := c.byAddr[addr]
	if cl == nil {
		c.sweepLocked(now)
		cl = &client{}
		if c.cfg.Rate > 0 {
			cl.limiter = rate.NewLimiter(rate.Limit(c.cfg.Rate), c.cfg.Rate)
		}
		c.byAddr[addr] = cl
	}
	cl.lastSeen = now
	return cl
}

func (c *clients) sweepLocked(now time.Time) {
	if len(c.byAddr) < maxClients {
		return
	}
	for a, cl := range c.byAddr {
		if cl.inFlight == 0 && cl.streams == 0 && now.Sub(cl.lastSeen) > time.Minute {
			delete(c.byAddr, a)
		}
	}
}

func (c *clients) forget(addr netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byAddr, addr.Unmap())
}
