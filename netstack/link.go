package netstack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

// LinkConfig describes one container's attachment.
type LinkConfig struct {
	// Name is the link's name: unique in the network, a DNS label or dotted
	// name, resolved by every link of the network. Required.
	Name string

	// Addrs are the addresses leased to the container, inside the network's
	// prefixes. Packets from any other source are dropped. At least
	// one, unless the network has no prefixes.
	Addrs []netip.Addr

	// Aliases are further names. Several links may share an alias; it then
	// resolves to all of them.
	Aliases []string

	// Hostname is the one of Aliases that the link's addresses resolve back
	// to. Zero: Name.
	Hostname string

	// MTU of the container's device in bytes. Zero: the network's.
	MTU int

	// NoOwnPorts closes the link's publications, at the host's addresses, to
	// the container itself, as a bridge without hairpin mode does. Others reach
	// them as [Policy] says.
	NoOwnPorts bool

	// DHCP, if not nil, has the switch answer DHCPv4 clients in the container
	// with the link's IPv4 address. Nil: what they send is dropped.
	DHCP *DHCP

	// Limits override the network's, field by field. Nil: the network's.
	Limits *Limits

	// Bandwidth limits what the link carries. Packets from the container wait
	// in its own queue, whose length is its maker's choice
	// (tunnel.Options.QueueLen); of those to the container 0.1 s worth wait, more
	// are dropped. A limited link should have an MTU of at most LimitedMTU. Zero:
	// no limit.
	Bandwidth Bandwidth
}

// Link is one container's attachment to a network. Its methods are safe for
// concurrent use.
type Link struct {
	s         *Switch
	name      string
	aliases   []string // Switch.mu guards it
	hostname  string   // LinkConfig.Hostname; Switch.mu guards it
	addrs     []netip.Addr
	mtu       int
	limits    Limits
	dev       tunnel.Device
	worker    *worker
	reader    *reader                // nil: a goroutine reads the device, see readLoop
	bandwidth Bandwidth              // Switch.mu guards it
	pacer     bucketSlot             // the reader's
	shaper    atomic.Pointer[shaper] // of packets to the container; nil: never limited
	host      bool                   // it is the host's own, see AttachHost
	forward   bool                   // of a host link: HostLinkConfig.Forward
	dhcp      *dhcpServer            // the reader's; nil: not served

	noOwnPorts bool // LinkConfig.NoOwnPorts
	newFlows   *rate.Limiter
	icmpErrors *rate.Limiter
	peerFlows  atomic.Int64
	counters   linkCounters
	captures   captureSet
	nat        linkNAT

	once sync.Once
	stop chan struct{}  // closed when detaching begins
	wg   sync.WaitGroup // the reader, the shaper
	gone chan struct{}  // closed when the link is detached whole
	err  error          // why; set before gone closes
}

type linkCounters struct {
	packets [2]atomic.Uint64
	bytes   [2]atomic.Uint64
	drops   dropCounters
}

// LinkStats is a snapshot of a link's counters.
type LinkStats struct {
	FromContainer Traffic           `json:"fromContainer"`
	ToContainer   Traffic           `json:"toContainer"`
	Drops         map[string]uint64 `json:"drops"` // by reason; absent means none
}

// Name is the link's name.
func (l *Link) Name() string { return l.name }

// Addrs are the addresses leased to the container.
func (l *Link) Addrs() []netip.Addr { return slices.Clone(l.addrs) }

// Aliases are the link's further names.
func (l *Link) Aliases() []string {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return slices.Clone(l.aliases)
}

// Hostname is the name that the link's addresses resolve back to; empty: its name.
func (l *Link) Hostname() string {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.hostname
}

// SetAliases replaces the link's further names, and the one of them that its
// addresses resolve back to: LinkConfig.Aliases and Hostname.
func (l *Link) SetAliases(aliases []string, hostname string) error {
	aliases, err := normalAliases(l.name, aliases)
	hostname, hostErr := normalHostname(hostname, l.name, aliases)
	err = errors.Join(err, hostErr)
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if err == nil && l.s.links[l.name] != l {
		err = ErrNoLink
	}
	if err != nil {
		return &OpError{Op: "set aliases", Object: l.name, Err: err}
	}
	l.aliases, l.hostname = aliases, hostname
	l.s.rebuildNamesLocked()
	return nil
}

// normalAliases checks aliases of a link of that name and brings them into the
// form that names are looked up in, each once.
func normalAliases(name string, aliases []string) (normal []string, err error) {
	var errs []error
	for _, a := range aliases {
		a = strings.ToLower(a)
		errs = append(errs, checkName(a))
		if a != name && !slices.Contains(normal, a) {
			normal = append(normal, a)
		}
	}
	return normal, errors.Join(errs...)
}

// normalHostname does the same for a LinkConfig.Hostname.
func normalHostname(hostname, name string, aliases []string) (string, error) {
	hostname = strings.ToLower(hostname)
	if hostname != "" && hostname != name && !slices.Contains(aliases, hostname) {
		return "", fmt.Errorf("hostname %q is none of the link's names; add it to the aliases", hostname)
	}
	return hostname, nil
}

// MTU is the link's MTU in bytes.
func (l *Link) MTU() int { return l.mtu }

// Done is closed when the link is detached: by Detach, by the switch's end, or
// because the container's interface is gone.
func (l *Link) Done() <-chan struct{} { return l.gone }

// Err says why the link ended, after Done: nil after Detach, tunnel.ErrGone
// (by errors.Is) when the container's interface is gone, deleted or with its
// namespace.
func (l *Link) Err() error {
	select {
	case <-l.gone:
		return l.err
	default:
		return nil
	}
}

// Stats returns the link's counters.
func (l *Link) Stats() LinkStats {
	st := LinkStats{
		FromContainer: Traffic{l.counters.packets[fromContainer].Load(), l.counters.bytes[fromContainer].Load()},
		ToContainer:   Traffic{l.counters.packets[toContainer].Load(), l.counters.bytes[toContainer].Load()},
		Drops:         map[string]uint64{},
	}
	l.counters.drops.snapshot(st.Drops)
	addDeviceDrops(l.dev, st.Drops)
	return st
}

// Detach takes the link from the network, resets its flows and closes its
// device. It returns when nothing of the link is left, or ctx ends first; the
// detaching goes on then. Detaching twice is no error.
func (l *Link) Detach(ctx context.Context) error {
	l.once.Do(func() { go l.detach(nil) })
	select {
	case <-l.gone:
		return nil
	case <-ctx.Done():
		return &OpError{Op: "detach", Object: l.name, Err: ctx.Err()}
	}
}

// detach undoes Attach in reverse. Its goroutine ends with it; Detach and the
// reader start it, once.
func (l *Link) detach(cause error) {
	l.s.removeLink(l)
	close(l.stop)
	l.stopReader()
	l.dev.Close()
	l.wg.Wait()
	l.s.tcp.linkGone(l)
	l.s.udp.linkGone(l)
	l.s.icmp.linkGone(l)
	l.s.resolver.linkGone(l)
	l.s.dropPeers(func(f *flow) string {
		if f.spec.link == l || f.spec.peer == l {
			return "link detached"
		}
		return ""
	})
	l.captures.stopAll()
	l.s.forgetLink(l)
	l.err = cause
	close(l.gone)
}

// readLoop moves frames from a container whose device cannot be watched into the
// switch. Attach starts it; it ends when the device is closed or dies; detach
// waits for it.
func (l *Link) readLoop() {
	defer l.wg.Done()
	var f frame
	defer f.release()
	for {
		n, err := l.dev.ReadFrame(f.prepare())
		if err != nil {
			l.once.Do(func() { go l.detach(fmt.Errorf("read from the container: %w", err)) })
			return
		}
		if reason := f.decode(n); reason != dropNone {
			l.drop(reason)
			continue
		}
		if !l.pacer.Load().pace(f.pkt.Len, l.stop) {
			l.drop(DropDeviceGone)
			continue
		}
		l.take(&f)
	}
}

// take counts a frame from the container and sends it where it belongs.
func (l *Link) take(f *frame) {
	l.counters.packets[fromContainer].Add(1)
	l.counters.bytes[fromContainer].Add(uint64(f.pkt.Len))
	l.captures.see(true, f.bufs, 0)
	if l.host {
		l.s.fromHost(l, f)
	} else {
		l.s.fromContainer(l, f)
	}
}

// drop counts a packet that goes no further.
func (l *Link) drop(r DropReason) { l.counters.drops.add(r, 1) }

// dropMany counts n of them.
func (l *Link) dropMany(r DropReason, n int) { l.counters.drops.add(r, n) }

// send writes one frame to the container: bufs[0] begins with the virtio
// header. It never blocks and keeps nothing.
func (l *Link) send(bufs [][]byte) {
	n := -tunnel.HeaderLen
	for _, b := range bufs {
		n += len(b)
	}
	if sh := l.shaper.Load(); !sh.limits() {
		l.write(bufs, n)
	} else if !sh.add(bufs, n) {
		l.drop(DropBandwidth)
	}
}

// write writes a frame whose packet has n bytes to the device. Captures see it
// first: once it is written the container may answer, and even end, before this
// goroutine runs again.
func (l *Link) write(bufs [][]byte, n int) {
	l.captures.see(false, bufs, tunnel.HeaderLen)
	if err := l.dev.WriteFrame(bufs); err != nil {
		l.drop(dropForDevice(err))
		return
	}
	l.counters.packets[toContainer].Add(1)
	l.counters.bytes[toContainer].Add(uint64(n))
}

// zeroHeader is the virtio header of a packet with nothing left to do.
var zeroHeader [tunnel.HeaderLen]byte

// scatter is a pooled pair of slices for frames made of a header and a packet.
type scatter struct{ bufs [2][]byte }

var scatters = sync.Pool{New: func() any { return new(scatter) }}

// sendPacket writes one complete IP packet to the container.
func (l *Link) sendPacket(pkt []byte) {
	sc := scatters.Get().(*scatter)
	sc.bufs[0], sc.bufs[1] = zeroHeader[:], pkt
	l.send(sc.bufs[:])
	sc.bufs[1] = nil
	scatters.Put(sc)
}

// quoteLen is how much of a packet ICMP errors quote: RFC 4443 §2.4(c) allows
// as much as fits 1,280 bytes, RFC 1812 §4.3.2.3 576.
const quoteLen = 1280 - 48

// reject answers a packet of the container with an ICMP error from the
// gateway. It does not count the drop.
func (l *Link) reject(f *frame, kind packet.ErrorKind) {
	if l.icmpErrors.Allow() {
		l.sendICMPError(f.quote(make([]byte, 0, quoteLen)), kind, netip.Addr{}, 0)
	}
}

// rejectTooBig says which MTU the next link has.
func (l *Link) rejectTooBig(f *frame, mtu int) {
	if l.icmpErrors.Allow() {
		l.sendICMPError(f.quote(make([]byte, 0, quoteLen)), packet.ErrTooBig, netip.Addr{}, mtu)
	}
}

// rejectPacket answers a packet of which the first bytes were kept, within the
// link's rate of errors. An invalid from is the gateway.
func (l *Link) rejectPacket(orig []byte, kind packet.ErrorKind, from netip.Addr, mtu int) {
	if l.icmpErrors.Allow() {
		l.sendICMPError(orig, kind, from, mtu)
	}
}

func (l *Link) sendICMPError(orig []byte, kind packet.ErrorKind, from netip.Addr, mtu int) {
	if len(orig) == 0 {
		return
	}
	if !from.IsValid() {
		from = l.errorSource(orig)
	}
	if !from.IsValid() {
		return
	}
	if pkt := packet.AppendICMPError(nil, kind, from, mtu, orig); len(pkt) > 0 {
		l.sendPacket(pkt)
	}
}

// owns reports whether an address is leased to the link.
func (l *Link) owns(a netip.Addr) bool {
	for _, own := range l.addrs {
		if own == a {
			return true
		}
	}
	return false
}

// addrOf returns the link's address of a family, invalid if it has none.
func (l *Link) addrOf(v4 bool) netip.Addr {
	for _, a := range l.addrs {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// checkName holds the rule for link names and aliases: what a resolver can be
// asked for (RFC 1123 §2.1), and the underscore that container names use.
func checkName(name string) error {
	if name == "" || len(name) > 253 {
		return fmt.Errorf("name %q: want 1 to 253 characters", name)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("name %q: a part of it is empty, over 63 characters, or has a hyphen at its end", name)
		}
		for _, c := range []byte(label) {
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return fmt.Errorf("name %q: %q is not a lower-case letter, digit, hyphen or underscore", name, c)
			}
		}
	}
	return nil
}
