package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/usernet/usernet/internal/policy"
	"github.com/usernet/usernet/internal/portowner"
	"github.com/usernet/usernet/internal/undo"
)

// PublishConfig says which host port leads to which port of which link. Ranges
// are for callers to expand.
type PublishConfig struct {
	// Link is the name of an attached link. The publication ends with it.
	Link string

	// Proto is "tcp" or "udp".
	Proto string

	// Host is the host address and port to listen on, when neither Listener
	// nor PacketConn is given. Zero address: 127.0.0.1, never all addresses.
	// Zero port: one that the kernel picks, see [Publication.Host].
	//
	// With Listener or PacketConn it is what clients ask for, where a rule of
	// the host leads from there to the socket. Zero: the socket's address.
	Host netip.AddrPort

	// Port is the container's port. Required.
	Port uint16

	// Listener is an open TCP socket to accept from, for ports that this
	// process may not open itself. The publication owns it once Publish has
	// succeeded. Nil: opened here.
	Listener net.Listener

	// PacketConn is the same for UDP.
	PacketConn net.PacketConn

	// Ended is called once, when the publication has ended and its socket is
	// closed; not when Publish fails. Nil: nobody is told.
	Ended func()
}

// Publication is a host listener that leads to a link's port.
type Publication struct {
	id    uint64
	proto string
	link  *Link
	host  netip.AddrPort
	port  uint16
	flows atomic.Uint64

	half  io.Closer // the protocol's half: listener or socket, and its goroutine
	owner *publications
	ended func()
	once  sync.Once
	err   error // of the first Close
}

// ID tells publications of one switch apart, for as long as the switch lives.
func (p *Publication) ID() uint64 { return p.id }

// Proto is "tcp" or "udp".
func (p *Publication) Proto() string { return p.proto }

// Link is the link that the publication leads to.
func (p *Publication) Link() *Link { return p.link }

// Host is the address that clients ask for, with the port that it really got.
func (p *Publication) Host() netip.AddrPort { return p.host }

// Port is the container's port.
func (p *Publication) Port() uint16 { return p.port }

// Flows is how many flows have come in through the publication.
func (p *Publication) Flows() uint64 { return p.flows.Load() }

// String is the publication as users write it: "127.0.0.1:8080->web:80/tcp".
func (p *Publication) String() string {
	return fmt.Sprintf("%v->%s:%d/%s", p.host, p.link.name, p.port, p.proto)
}

// Close stops listening and frees the host port. TCP connections that are
// established go on until their ends or the link's. Calls after the first
// return what the first did.
func (p *Publication) Close() error {
	p.once.Do(func() {
		p.err = p.half.Close()
		p.owner.remove(p)
		if p.ended != nil {
			p.ended()
		}
	})
	return p.err
}

// publications is the registry of a switch.
type publications struct {
	mu     sync.Mutex // guards what follows
	all    map[*Publication]struct{}
	lastID uint64
	closed bool
}

func (ps *publications) init() { ps.all = map[*Publication]struct{}{} }

func (ps *publications) add(p *Publication) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.closed {
		return ErrClosed
	}
	select {
	case <-p.link.gone:
		return ErrNoLink
	default:
	}
	ps.lastID++
	p.id, p.owner = ps.lastID, ps
	ps.all[p] = struct{}{}
	p.link.s.cfg.Fabric.publish(p)
	return nil
}

func (ps *publications) remove(p *Publication) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.all, p)
	p.link.s.cfg.Fabric.unpublish(p)
}

// closeIf closes the publications that match.
func (ps *publications) closeIf(match func(*Publication) bool) {
	for _, p := range ps.list() {
		if match(p) {
			p.Close() // its error has no reader here, and nothing is left to do about it
		}
	}
}

func (ps *publications) linkGone(l *Link) {
	ps.closeIf(func(p *Publication) bool { return p.link == l })
}

// list returns the publications in the order of their making.
func (ps *publications) list() []*Publication {
	ps.mu.Lock()
	list := make([]*Publication, 0, len(ps.all))
	for p := range ps.all {
		list = append(list, p)
	}
	ps.mu.Unlock()
	slices.SortFunc(list, func(a, b *Publication) int { return int(int64(a.id) - int64(b.id)) })
	return list
}

// closePublications closes all publications and refuses new ones.
func (t *tcpNAT) closePublications() {
	t.pubs.mu.Lock()
	t.pubs.closed = true
	t.pubs.mu.Unlock()
	t.pubs.closeIf(func(*Publication) bool { return true })
}

// Publications returns the switch's publications in the order of their making.
func (s *Switch) Publications() []*Publication { return s.tcp.pubs.list() }

// Publish makes a host port lead to a link's port, for TCP with the client's
// real address as the source that the container sees. There are three
// exceptions, in which the container sees the gateway: clients on the host's
// loopback, whose address would be the container's own loopback; clients of a
// family that the link has no address of; and clients whose address no route
// leads back to (link-local ones, and addresses of this network).
func (s *Switch) Publish(cfg PublishConfig) (*Publication, error) {
	p, err := s.publish(cfg)
	if err != nil {
		return nil, &OpError{Op: "publish", Object: cfg.String(), Err: err}
	}
	s.log.Debug("published", "publication", p)
	return p, nil
}

func (s *Switch) publish(cfg PublishConfig) (*Publication, error) {
	l, err := s.checkPublish(&cfg)
	if err != nil {
		return nil, err
	}
	p := &Publication{proto: cfg.Proto, link: l, port: cfg.Port, ended: cfg.Ended}
	var undo undo.List
	defer undo.Run()
	start, err := s.openHalf(p, &cfg, &undo)
	if err != nil {
		return nil, err
	}
	if err := s.tcp.pubs.add(p); err != nil {
		return nil, err
	}
	undo.Keep()
	start()
	return p, nil
}

// checkPublish checks cfg, fills its zero fields and finds the link.
func (s *Switch) checkPublish(cfg *PublishConfig) (*Link, error) {
	cfg.Proto = strings.ToLower(cfg.Proto)
	var errs []error
	if cfg.Proto != "tcp" && cfg.Proto != "udp" {
		errs = append(errs, fmt.Errorf("protocol %q: want tcp or udp", cfg.Proto))
	}
	if cfg.Port == 0 {
		errs = append(errs, errors.New("container port 0: want 1 to 65535"))
	}
	if cfg.Listener != nil && cfg.Proto != "tcp" {
		errs = append(errs, fmt.Errorf("a listener was given for protocol %q: want a packet socket", cfg.Proto))
	}
	if cfg.PacketConn != nil && cfg.Proto != "udp" {
		errs = append(errs, fmt.Errorf("a packet socket was given for protocol %q: want a listener", cfg.Proto))
	}
	if !cfg.Host.Addr().IsValid() {
		cfg.Host = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), cfg.Host.Port())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	l := s.Link(cfg.Link)
	if l == nil {
		return nil, ErrNoLink
	}
	return l, nil
}

// openHalf makes the protocol's half of a publication. start begins to serve.
func (s *Switch) openHalf(p *Publication, cfg *PublishConfig, undo *undo.List) (start func(), err error) {
	if p.proto == "udp" {
		return s.openUDP(p, cfg, undo)
	}
	ln := cfg.Listener
	if ln == nil {
		if ln, err = s.listenTCP(cfg.Host); err != nil {
			return nil, err
		}
		undo.Add(func() { ln.Close() })
	}
	if p.host, err = cfg.hostOf(cfg.Listener != nil, ln.Addr()); err != nil {
		return nil, err
	}
	a := newAcceptor(s.tcp, p, ln)
	p.half = a
	return a.start, nil
}

func (s *Switch) openUDP(p *Publication, cfg *PublishConfig, undo *undo.List) (start func(), err error) {
	pc := cfg.PacketConn
	if pc == nil {
		if pc, err = s.listenUDP(cfg.Host); err != nil {
			return nil, err
		}
		undo.Add(func() { pc.Close() })
	}
	if p.host, err = cfg.hostOf(cfg.PacketConn != nil, pc.LocalAddr()); err != nil {
		return nil, err
	}
	if p.half, start, err = s.udp.publish(p, pc); err != nil {
		return nil, err
	}
	undo.Add(func() { p.half.Close() })
	return start, nil
}

// hostOf returns what clients ask for to come to a socket.
func (cfg *PublishConfig) hostOf(given bool, socket net.Addr) (netip.AddrPort, error) {
	if given && cfg.Host.Port() != 0 {
		return unmapped(cfg.Host), nil
	}
	return addrPortOf(socket)
}

func (s *Switch) listenTCP(host netip.AddrPort) (net.Listener, error) {
	lc := net.ListenConfig{Control: s.cfg.Host.Control, KeepAlive: -1} // set on each connection
	lc.SetMultipathTCP(false)                                          // see dialHost
	ln, err := lc.Listen(context.Background(), "tcp"+family(host), host.String())
	return ln, listenError(err, "tcp", host)
}

func (s *Switch) listenUDP(host netip.AddrPort) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: s.cfg.Host.Control}
	pc, err := lc.ListenPacket(context.Background(), "udp"+family(host), host.String())
	return pc, listenError(err, "udp", host)
}

// family makes Go listen on exactly what was named: "::" would otherwise take
// IPv4 as well.
func family(a netip.AddrPort) string {
	if a.Addr().Is4() {
		return "4"
	}
	return "6"
}

// listenError turns a taken port into ErrPortInUse, with the name of whoever
// has it if that may be known.
func listenError(err error, proto string, host netip.AddrPort) error {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	if owner, ok := portowner.Of(proto, host); ok {
		return fmt.Errorf("%w by %s", ErrPortInUse, owner)
	}
	return ErrPortInUse
}

// String is the publication asked for, as users write it.
func (cfg PublishConfig) String() string {
	return fmt.Sprintf("%s->%s:%d/%s", hostString(cfg.Host), cfg.Link, cfg.Port, cfg.Proto)
}

func hostString(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return fmt.Sprintf("127.0.0.1:%d", a.Port())
	}
	return a.String()
}

func addrPortOf(a net.Addr) (netip.AddrPort, error) {
	switch a := a.(type) {
	case *net.TCPAddr:
		return unmapped(a.AddrPort()), nil
	case *net.UDPAddr:
		return unmapped(a.AddrPort()), nil
	}
	return netip.AddrPort{}, fmt.Errorf("a socket of address %v (%T) is neither TCP nor UDP", a, a)
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// sourceFor chooses the source that a container sees for a client of a
// publication, see Publish, and the container's address that goes with it. A
// source on the gateway has no port: the stack picks one.
func (s *Switch) sourceFor(l *Link, client netip.AddrPort, port uint16) (source, target netip.AddrPort) {
	a := client.Addr()
	addr := l.addrOf(a.Is4())
	if addr.IsValid() && s.spoofable(a) {
		return netip.AddrPortFrom(a, client.Port()), netip.AddrPortFrom(addr, port)
	}
	if !addr.IsValid() {
		addr = l.addrOf(!a.Is4())
	}
	return netip.AddrPortFrom(s.gateway(addr.Is4()), 0), netip.AddrPortFrom(addr, port)
}

// spoofable reports whether a container may see an address as the source of a
// connection, which takes that its reply comes back to this switch's stack.
func (s *Switch) spoofable(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return false
	}
	return s.cfg.Fabric.network(a) == nil
}

// decideIngress asks policy about a flow that begins on the host.
func (s *Switch) decideIngress(l *Link, proto uint8, source, target netip.AddrPort) policy.Verdict {
	return s.rules.Load().Decide(policy.Flow{
		Origin: policy.FromHost, Link: l.name, Proto: proto, Src: source, Dst: target,
	}, s.hostAddrs.Load(), s.isLink)
}
