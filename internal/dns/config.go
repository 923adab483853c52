package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
)

// Names answers for the names that belong to links. Implementations are called
// concurrently and must not block.
type Names interface {
	// Lookup returns the addresses of a name, which is in lower case and has no
	// final dot. It is asked for the name as the client spelled it and, for a
	// name below [Config].Domain, for the name without the domain too. False
	// means that the name is not known; true with no address of a family
	// means that the name exists without one.
	Lookup(name string) ([]netip.Addr, bool)
	// Reverse returns the name of an address, with or without a final dot. A
	// name without any dot inside is completed with [Config].Domain.
	Reverse(addr netip.Addr) (string, bool)
}

// DialFunc opens a connection to an upstream resolver; network is "udp" or
// "tcp". It has the meaning of [net.Dialer.DialContext]; over "udp"
// each Read returns one message.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Config says what a [Server] answers and how it asks others. The zero value
// forwards everything to the resolvers of /etc/resolv.conf. It is copied by
// [New] and must not be changed through shared maps or slices afterwards.
type Config struct {
	// Names answers for links. Nil: there are none.
	Names Names
	// Domain is the network's own domain, with or without a final dot, such as
	// "usernet.internal". Nothing at or below it is ever asked upstream. Empty:
	// no own domain.
	Domain string
	// Hosts are extra names with fixed addresses (--add-host); they come before
	// Names and may be any name, also one that exists upstream.
	Hosts map[string][]netip.Addr
	// Prefixes are the network's own addresses: their reverse names are
	// answered here only.
	Prefixes []netip.Prefix

	// Upstream are the resolvers to forward to. Empty: those of ResolvConf.
	Upstream []netip.AddrPort
	// ResolvConf is the file followed when Upstream is empty. Empty:
	// /etc/resolv.conf.
	ResolvConf string
	// Dial opens connections to the resolvers. Nil: a plain [net.Dialer].
	Dial DialFunc
	// Internal forbids forwarding: every name that is not local is REFUSED.
	Internal bool

	// Timeout bounds the answer to one query, retries included. Zero: 10 s.
	Timeout time.Duration
	// LocalTTL is the time to live of local answers. Zero: 5 s, short because
	// links come and go; it is rounded to seconds.
	LocalTTL time.Duration
	// IdleTimeout ends a connection of ServeStream on which nothing was asked,
	// and bounds how long a client may take to accept an answer. Zero: 5 s.
	IdleTimeout time.Duration

	// MaxQuery is the longest query accepted, in bytes. Zero: 4096.
	MaxQuery int
	// InFlight is the number of queries one client may have unanswered.
	// Zero: 64.
	InFlight int
	// Rate is the number of queries per second one client may send, with a
	// burst of the same number. Zero: 10,000. Negative: no limit.
	Rate int
	// Streams is the number of connections one client may have. Zero: 16.
	Streams int
	// StreamInFlight is the number of queries one connection may have
	// unanswered; more are left unread. Zero: 16.
	StreamInFlight int
	// Exchanges is the number of upstream exchanges of all clients together,
	// each of which holds a socket. Zero: 512.
	Exchanges int
	// CacheEntries and CacheBytes bound the cache. Zero: 4096 entries, 4 MiB.
	// Negative CacheEntries: no cache.
	CacheEntries int
	CacheBytes   int
}

// defaultResolvConf is where resolv.conf(5) says that it is.
const defaultResolvConf = "/etc/resolv.conf"

// withDefaults fills what is zero and reports everything that is wrong.
func (c Config) withDefaults() (Config, error) {
	var faults []error
	if c.Domain != "" {
		if _, ok := mdns.IsDomainName(c.Domain); !ok {
			faults = append(faults, fmt.Errorf("domain %q is not a domain name: give labels of letters, digits and hyphens, such as usernet.internal", c.Domain))
		}
		c.Domain = canonical(c.Domain)
	}
	hosts := make(map[string][]netip.Addr, len(c.Hosts))
	for name, addrs := range c.Hosts {
		if _, ok := mdns.IsDomainName(name); !ok || canonical(name) == "" {
			faults = append(faults, fmt.Errorf("host name %q is not a domain name", name))
		}
		for _, a := range addrs {
			if !a.IsValid() {
				faults = append(faults, fmt.Errorf("host name %q has an invalid address: give an IPv4 or IPv6 address", name))
			}
		}
		hosts[canonical(name)] = append(hosts[canonical(name)], addrs...)
	}
	c.Hosts = hosts
	for _, p := range c.Prefixes {
		if !p.IsValid() {
			faults = append(faults, errors.New("a prefix of the network is invalid: give address/bits"))
		}
	}
	for _, u := range c.Upstream {
		if !u.IsValid() || u.Port() == 0 {
			faults = append(faults, fmt.Errorf("upstream resolver %q needs an address and a port", u))
		}
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	c.fillLimits()
	return c, errors.Join(faults...)
}

func (c *Config) fillLimits() {
	if c.ResolvConf == "" {
		c.ResolvConf = defaultResolvConf
	}
	for _, d := range []struct {
		v    *time.Duration
		zero time.Duration
	}{{&c.Timeout, 10 * time.Second}, {&c.LocalTTL, 5 * time.Second}, {&c.IdleTimeout, 5 * time.Second}} {
		if *d.v <= 0 {
			*d.v = d.zero
		}
	}
	for _, d := range []struct {
		v    *int
		zero int
	}{{&c.MaxQuery, 4096}, {&c.InFlight, 64}, {&c.Streams, 16}, {&c.StreamInFlight, 16}, {&c.Exchanges, 512}, {&c.CacheBytes, 4 << 20}} {
		if *d.v <= 0 {
			*d.v = d.zero
		}
	}
	if c.Rate == 0 {
		c.Rate = 10000
	}
	if c.CacheEntries == 0 {
		c.CacheEntries = 4096
	}
}

// canonical is the spelling used for comparisons: lower case, no final dot,
// empty for the root.
func canonical(name string) string {
	return strings.TrimSuffix(mdns.CanonicalName(name), ".")
}
