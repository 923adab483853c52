package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/usernet/usernet/internal/packet"
)

// ARP for IPv4 over Ethernet (RFC 826): 28 bytes.
const (
	arpLen     = 28
	arpRequest = 1
	arpReply   = 2
)

// arpPrefix is how each such message begins: Ethernet, IPv4, and the lengths of
// their addresses.
var arpPrefix = []byte{0, 1, etherIPv4 >> 8, etherIPv4 & 0xff, 6, 4}

// receiveARP reads an ARP message of n bytes and answers a request for a
// neighbour.
func (p *etherPort) receiveARP(from mac, bufs [][]byte, n int) etherDrop {
	var b [arpLen]byte
	if n < arpLen || gather(b[:], bufs, HeaderLen) < arpLen || !bytes.Equal(b[:6], arpPrefix) {
		return dropARPMalformed
	}
	operation := binary.BigEndian.Uint16(b[6:])
	hardware := macOf(b[8:14])
	sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	if hardware != from || sender.IsMulticast() {
		return dropARPMalformed
	}
	// What is no question is an announcement (RFC 5227 §2.3) or an answer that
	// nobody asked for. We keep no table that it could change.
	if operation != arpRequest || sender == target || target == limitedBroadcast {
		return dropARPUnanswered
	}
	if p.neverAnswered(target, sender.IsUnspecified()) {
		return dropARPUnanswered
	}
	a := append(p.room[:0], make([]byte, HeaderLen)...)
	a = append(appendEther(a, from, p.gateway, etherARP), arpPrefix...)
	a = binary.BigEndian.AppendUint16(a, arpReply)
	a = append(p.gateway.append(a), b[24:28]...)
	p.answer = append(from.append(a), b[14:18]...)
	return etherPass
}

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Neighbour discovery (RFC 4861 §4.3, §4.4, §4.6.1). Lengths in bytes.
const (
	icmpSolicitation  = 135
	icmpAdvertisement = 136
	solicitationLen   = 24 // without options
	advertisementLen  = 32 // with our one option

	optionSource = 1 // source link-layer address
	optionTarget = 2 // target link-layer address

	// A router, which was asked, and whose word is to replace what is known.
	flagRouter, flagSolicited, flagOverride = 0x80, 0x40, 0x20
)

var allNodes = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 1})

// receiveSolicitation reads a neighbour solicitation of n bytes, of which b are
// the first, and answers it.
func (p *etherPort) receiveSolicitation(from mac, b []byte, n int) etherDrop {
	if len(b) < n || p.ip.Parse(b, n) != packet.FaultNone || !p.validSolicitation(from, b) {
		return dropNDPMalformed
	}
	target := netip.AddrFrom16([16]byte(b[ipv6Len+8:]))
	probe := p.ip.Src.IsUnspecified()
	if p.neverAnswered(target, probe) {
		return dropNDPUnanswered
	}
	to, dst, flags := from, p.ip.Src, byte(flagRouter|flagSolicited|flagOverride)
	if probe { // nobody can be told by name (§7.2.4)
		to, dst, flags = allNodes6, allNodes, flagRouter|flagOverride
	}
	a := append(p.room[:0], make([]byte, HeaderLen)...)
	a = appendEther(a, to, p.gateway, etherIPv6)
	a = packet.AppendIP(a, packet.ProtoICMPv6, target, dst, 255, 0, advertisementLen, 0, true)
	icmp := len(a)
	a = append(a, icmpAdvertisement, 0, 0, 0, flags, 0, 0, 0)
	a = append(a, b[ipv6Len+8:ipv6Len+24]...)
	a = p.gateway.append(append(a, optionTarget, 1))
	sum := packet.Checksum(a[icmp:], packet.PseudoHeaderSum(packet.ProtoICMPv6, target, dst, advertisementLen))
	binary.BigEndian.PutUint16(a[icmp+2:], ^sum)
	p.answer = a
	return etherPass
}

// validSolicitation holds b, parsed into p.ip, against RFC 4861 §7.1.1, and
// against what one container can have to say.
func (p *etherPort) validSolicitation(from mac, b []byte) bool {
	h := &p.ip
	if h.L4 != ipv6Len || len(b) < ipv6Len+solicitationLen || h.HopLimit != 255 || h.ICMPCode != 0 {
		return false
	}
	target := [16]byte(b[ipv6Len+8:])
	if netip.AddrFrom16(target).IsMulticast() || h.Src.IsMulticast() || h.Src.IsLoopback() {
		return false
	}
	// Such addresses are for sockets (RFC 4291 §2.5.5.2), and an answer built
	// from them would be an IPv4 packet.
	if netip.AddrFrom16(target).Is4In6() || h.Src.Is4In6() {
		return false
	}
	source := false
	for o := b[ipv6Len+solicitationLen:]; len(o) > 0; {
		if len(o) < 8 || o[1] == 0 || len(o) < int(o[1])*8 {
			return false
		}
		if o[0] == optionSource {
			if o[1] != 1 || macOf(o[2:8]) != from {
				return false
			}
			source = true
		}
		o = o[int(o[1])*8:]
	}
	if h.Src.IsUnspecified() && (source || h.Dst != solicitedNode(target)) {
		return false
	}
	return packet.ValidL4Checksum(h, [][]byte{b})
}

// solicitedNode is the group of an address (RFC 4291 §2.7.1).
func solicitedNode(a [16]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
}
