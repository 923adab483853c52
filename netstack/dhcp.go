package netstack

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"github.com/usernet/usernet/internal/dhcp"
	"github.com/usernet/usernet/internal/packet"
)

// DHCP says what DHCPv4 clients in the container are told beside the link's
// address, MTU and name and the network's gateway, which is the server.
type DHCP struct {
	// Nameservers of the container; those of IPv6 are not told. Empty: the
	// gateway.
	Nameservers []netip.Addr
	// Search are the domains in which the container looks names up.
	Search []string
	// LeaseTime is how long a client keeps the address without asking again.
	// The address is the link's for as long as the link is there. Zero: one
	// hour.
	LeaseTime time.Duration
}

// check reports what no client could be told. Nil is nothing to check.
func (d *DHCP) check() error {
	if d == nil || d.LeaseTime == 0 || d.LeaseTime >= time.Second && d.LeaseTime <= maxLeaseTime {
		return nil
	}
	return fmt.Errorf("DHCP lease time %v: want 1s to %v, or 0 for one hour", d.LeaseTime, maxLeaseTime)
}

// maxLeaseTime is what fits the option; all bits set would mean for ever (RFC
// 2131 section 3.3).
const maxLeaseTime = (1<<32 - 2) * time.Second

// Messages that a link answers: a client sends two, and again after seconds.
const (
	dhcpRate  = 10 // a second
	dhcpBurst = 20
)

// dhcpServer answers the clients of one link. It belongs to the link's reader.
type dhcpServer struct {
	lease dhcp.Lease
	rate  *rate.Limiter
	out   []byte // scratch
}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// newDHCPServer returns nil when cfg is, and for a link without IPv4.
func newDHCPServer(l *Link, cfg *DHCP) *dhcpServer {
	if cfg == nil {
		return nil
	}
	for _, a := range l.addrs {
		for _, g := range l.s.cfg.Gateways {
			if !a.Is4() || !g.Contains(a) {
				continue
			}
			d := &dhcpServer{rate: rate.NewLimiter(dhcpRate, dhcpBurst), lease: dhcp.Lease{
				Addr: netip.PrefixFrom(a, g.Bits()), Server: g.Addr(), Nameservers: cfg.Nameservers, Search: cfg.Search,
				Hostname: l.name, MTU: l.mtu, Time: cfg.LeaseTime,
			}}
			if !l.s.cfg.Internal {
				d.lease.Router = g.Addr()
			}
			if len(cfg.Nameservers) == 0 {
				d.lease.Nameservers = []netip.Addr{g.Addr()}
			}
			if cfg.LeaseTime == 0 {
				d.lease.Time = time.Hour
			}
			return d
		}
	}
	return nil
}

// mine reports whether a packet is a client's to this server. Everything else
// on DHCP's ports is what a container has no business with.
func (d *dhcpServer) mine(p *packet.Header) bool {
	return p.Proto == packet.ProtoUDP && p.Version == 4 && p.DstPort == dhcp.ServerPort && p.SrcPort == dhcp.ClientPort &&
		!p.Fragment && (p.Dst == broadcast4 || p.Dst == d.lease.Server) &&
		(p.Src.IsUnspecified() || p.Src == d.lease.Addr.Addr())
}

// serve answers one message. It runs on the link's reader.
func (d *dhcpServer) serve(l *Link, f *frame) {
	if !d.rate.Allow() {
		l.drop(DropDHCPLimit)
		return
	}
	size := f.pkt.Len - f.pkt.Payload
	if f.hdr.Superframe() || size > dhcp.MaxMessage {
		l.drop(DropDHCPMalformed)
		return
	}
	if !l.s.udp.checksum(l, f) {
		return
	}
	answer, to, verdict := d.lease.Answer(f.bytes(make([]byte, 0, f.pkt.Len))[f.pkt.Payload:])
	switch verdict {
	case dhcp.Malformed:
		l.drop(DropDHCPMalformed)
	case dhcp.NotServed:
		l.drop(DropDHCP)
	case dhcp.Answered:
		from, at := netip.AddrPortFrom(d.lease.Server, dhcp.ServerPort), netip.AddrPortFrom(to, dhcp.ClientPort)
		const udpHeader = 8
		d.out = packet.AppendIP(d.out[:0], packet.ProtoUDP, from.Addr(), to, 64, 0, udpHeader+len(answer), 0, true)
		d.out = packet.AppendUDPHeader(d.out, from, at, [][]byte{answer})
		d.out = append(d.out, answer...)
		l.sendPacket(d.out)
	}
}
