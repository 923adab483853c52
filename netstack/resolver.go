package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/usernet/usernet/internal/dns"
	"github.com/usernet/usernet/internal/packet"
)

// resolver joins the network's DNS server to packets and connections: it
// answers on port 53 of the gateway addresses.
type resolver struct {
	s      *Switch
	server *dns.Server
	ctx    context.Context
	cancel context.CancelFunc
}

func newResolver(s *Switch) (*resolver, error) {
	cfg := dns.Config{
		Names: switchNames{s}, Domain: s.cfg.DNS.Domain,
		Upstream: s.cfg.DNS.Upstreams, ResolvConf: s.cfg.DNS.ResolvConf, Internal: s.cfg.Internal,
		// Unlike egress, what the resolver dials is the host's own choice, so
		// that a stub resolver on loopback works.
		Dial:     (&net.Dialer{Control: s.cfg.Host.Control}).DialContext,
		InFlight: max(s.cfg.Limits.DNSQueries, 1),
	}
	for _, g := range s.cfg.Gateways {
		cfg.Prefixes = append(cfg.Prefixes, g.Masked())
	}
	server, err := dns.New(cfg)
	if err != nil {
		return nil, err
	}
	r := &resolver{s: s, server: server}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// switchNames shows the resolver the names of this moment.
type switchNames struct{ s *Switch }

func (n switchNames) Lookup(name string) ([]netip.Addr, bool) { return n.s.names.Load().Lookup(name) }
func (n switchNames) Reverse(addr netip.Addr) (string, bool)  { return n.s.names.Load().Reverse(addr) }

// dnsQueries is a link's queries in flight.
type dnsQueries struct {
	mu     sync.Mutex // guards what follows
	n      int
	gone   bool
	ctx    context.Context // ends with the link; made with the first query
	cancel context.CancelFunc
	wg     sync.WaitGroup // Add only under mu and while not gone
}

// begin takes a place for one query; false when the link has as many in flight
// as it may, or is gone. end gives it back.
func (q *dnsQueries) begin(parent context.Context, limit int) (context.Context, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone || q.n >= limit {
		return nil, false
	}
	if q.ctx == nil {
		q.ctx, q.cancel = context.WithCancel(parent)
	}
	q.n++
	q.wg.Add(1)
	return q.ctx, true
}

func (q *dnsQueries) end() {
	q.mu.Lock()
	q.n--
	q.mu.Unlock()
	q.wg.Done()
}

// stop cuts the queries in flight and waits for them.
func (q *dnsQueries) stop() {
	q.mu.Lock()
	q.gone = true
	if q.cancel != nil {
		q.cancel()
	}
	q.mu.Unlock()
	q.wg.Wait()
}

// maxDNSQuery is the longest query that is looked at; the server has the same
// limit.
const maxDNSQuery = 4096

// fromContainer takes the queries of a frame to the gateway's port 53: one, or
// those of a superframe. It runs on the link's reader; each query is answered
// on a goroutine of its own.
func (r *resolver) fromContainer(l *Link, f *frame) {
	size := f.pkt.Len - f.pkt.Payload
	each := size
	if f.hdr.Superframe() {
		each = int(f.hdr.GSOSize)
	}
	if each > maxDNSQuery || size == 0 {
		l.drop(DropDNSMalformed)
		return
	}
	for at := f.pkt.Payload; at < f.pkt.Len; at += each {
		r.query(l, f, at, min(each, f.pkt.Len-at))
	}
}

func (r *resolver) query(l *Link, f *frame, at, n int) {
	ctx, ok := l.nat.dns.begin(r.ctx, l.limits.DNSQueries)
	if !ok {
		l.drop(DropDNSLimit)
		return
	}
	q := &dnsQuery{r: r, link: l, client: f.pkt.SrcAddrPort(), gateway: f.pkt.DstAddrPort()}
	q.bytes = f.copyRange(make([]byte, 0, n), at, n)
	q.flow = r.s.openFlow(flowSpec{
		link: l, direction: FlowService, proto: packet.ProtoUDP, source: q.client, destination: q.gateway,
	})
	if q.flow == nil {
		l.nat.dns.end()
		return
	}
	q.flow.add(fromContainer, 1, f.pkt.Payload+n)
	go q.answer(ctx)
	l.worker.loop.Yield()
}

// dnsQuery is one query over UDP.
type dnsQuery struct {
	r               *resolver
	link            *Link
	client, gateway netip.AddrPort
	bytes           []byte
	flow            *flow
}

// answer asks the server and sends what it says. query starts it; it ends when
// the query is answered, and Detach waits for it.
func (q *dnsQuery) answer(ctx context.Context) {
	defer q.link.nat.dns.end()
	headers := ipUDPHeaderLen(q.client.Addr().Is4())
	a := q.r.server.ServePacket(ctx, q.client.Addr(), q.bytes, q.link.mtu-headers)
	if a == nil {
		if ctx.Err() == nil {
			q.link.drop(DropDNSMalformed)
		}
		q.flow.fail("not answered")
		return
	}
	pkt := make([]byte, 0, headers+len(a))
	pkt = packet.AppendIP(pkt, packet.ProtoUDP, q.gateway.Addr(), q.client.Addr(), defaultHopLimit, 0, 8+len(a), 0, true)
	pkt = packet.AppendUDPHeader(pkt, q.gateway, q.client, [][]byte{a})
	pkt = append(pkt, a...)
	q.flow.add(toContainer, 1, len(pkt))
	q.link.sendPacket(pkt)
	q.flow.close("")
}

// serveStream answers the DNS queries of one TCP connection until it ends.
func (r *resolver) serveStream(ctx context.Context, l *Link, c net.Conn) error {
	client, err := addrPortOf(c.RemoteAddr())
	if err != nil {
		return err
	}
	if l.limits.DNSQueries < 0 {
		l.drop(DropDNSLimit)
		return errors.New("DNS is off for this link: its limit of queries is negative")
	}
	if err := r.server.ServeStream(ctx, client.Addr(), c); err != nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	return nil
}

// linkGone cuts the link's queries in flight.
func (r *resolver) linkGone(l *Link) {
	l.nat.dns.stop()
	for _, a := range l.addrs {
		r.server.Forget(a)
	}
}

func (r *resolver) close() {
	r.cancel()
	r.server.Close()
}
