package tunnel

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/usernet/usernet/internal/packet"
)

// etherPort is the switch's end of the wire to one container: it takes IP
// packets out of Ethernet frames and answers the container's questions after
// its neighbours. It reads and writes memory only.
type etherPort struct {
	// gateway is the address of every neighbour.
	gateway mac
	// own are the container's addresses, which are never answered for.
	own []netip.Addr
	// container is the mac of the container's interface. Writers read it, the
	// reader may replace it.
	container atomic.Uint64
	// moved is asked about a source that is not the container's: whether the
	// interface has changed its address to it. Nil: never.
	moved func(mac) bool

	// What follows belongs to the reader.

	// answer is the frame that is to be sent in answer to the last one, with
	// its virtio header; empty when there is nothing to say.
	answer []byte
	room   [maxAnswer]byte
	// asked is the solicitation that is being read.
	asked [maxSolicitation]byte
	ip    packet.Header
}

const (
	// maxAnswer is the length of a neighbour advertisement, the longer of the
	// two answers, in bytes.
	maxAnswer = HeaderLen + etherLen + ipv6Len + advertisementLen
	// maxSolicitation is the longest solicitation that is read, in bytes from
	// the IP header. Linux's have 72 at most, with a nonce 80.
	maxSolicitation = 256
	// leastPacket is how much of a packet receive needs to see: all that tells
	// its version, length and, for IPv6, protocol.
	leastPacket = 8
	ipv6Len     = 40
)

// receive judges a frame from the container: ether is its Ethernet header, bufs
// hold its payload of n bytes, behind HeaderLen others. It returns the length of
// the IP packet, which is shorter than the payload of a padded frame; or 0 when
// there is nothing for the switch, and then either p.answer is to be sent or the
// frame is dropped for the reason returned.
func (p *etherPort) receive(ether []byte, bufs [][]byte, n int) (int, etherDrop) {
	p.answer = p.answer[:0]
	to := mac(binary.BigEndian.Uint64(ether) >> 16)
	rest := binary.BigEndian.Uint64(ether[6:])
	from, kind := mac(rest>>16), uint16(rest)
	if from != mac(p.container.Load()) && (p.moved == nil || !p.moved(from)) {
		return 0, dropEtherSource
	}
	if to != p.gateway && !to.multicast() {
		return 0, dropEtherDestination
	}
	switch kind {
	case etherIPv4, etherIPv6:
		return p.receiveIP(from, kind, bufs, n)
	case etherARP:
		return 0, p.receiveARP(from, bufs, n)
	case etherVLAN, etherQinQ:
		return 0, dropEtherVLAN
	default:
		return 0, dropEtherType
	}
}

func (p *etherPort) receiveIP(from mac, kind uint16, bufs [][]byte, n int) (int, etherDrop) {
	var head [leastPacket]byte
	if n < len(head) || gather(head[:], bufs, HeaderLen) < len(head) {
		return 0, dropEtherTruncated
	}
	version, length := head[0]>>4, int(binary.BigEndian.Uint16(head[2:]))
	if kind == etherIPv6 {
		length = ipv6Len + int(binary.BigEndian.Uint16(head[4:]))
	}
	if (version == 4) != (kind == etherIPv4) || (version == 6) != (kind == etherIPv6) {
		return 0, dropEtherType
	}
	if n <= minEtherPayload && length >= len(head) {
		n = min(n, length)
	}
	if version == 6 && head[6] == packet.ProtoICMPv6 {
		b := p.asked[:min(n, len(p.asked))]
		b = b[:gather(b, bufs, HeaderLen)]
		if len(b) > ipv6Len && b[ipv6Len] == icmpSolicitation {
			return 0, p.receiveSolicitation(from, b, n)
		}
	}
	return n, etherPass
}

// neverAnswered reports whether a neighbour is asked for that is not ours to
// speak for. probe says that the container asks in order to take the address.
func (p *etherPort) neverAnswered(target netip.Addr, probe bool) bool {
	switch {
	case target.IsUnspecified(), target.IsLoopback(), target.IsMulticast():
		return true
	case target.IsLinkLocalUnicast() && probe:
		return true // the container is alone on its link: any is free
	default:
		return slices.Contains(p.own, target)
	}
}
