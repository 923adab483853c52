package dhcp

import (
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// The ports of RFC 2131 section 4.1.
const (
	ServerPort = 67
	ClientPort = 68
)

// MaxMessage is the longest message that is read, in bytes: what fits an
// Ethernet frame.
const MaxMessage = 1472

const (
	// maxAnswer is what every client takes, in bytes: 576 less the headers of
	// IP and UDP (RFC 2131 section 2).
	maxAnswer = 548
	// maxClientID is the longest client identifier, in bytes. That of the CNI
	// plugin "dhcp" is container, network and interface.
	maxClientID    = 192
	maxNameservers = 3
)

// Lease is what a client is told. Addr and Server are required.
type Lease struct {
	// Addr is the container's address with its subnet's length.
	Addr netip.Prefix
	// Server is the address of the one that answers.
	Server netip.Addr
	// Router is the way out; invalid: there is none.
	Router netip.Addr
	// Nameservers, of which the first three IPv4 ones are told.
	Nameservers []netip.Addr
	// Search are the domains in which names are looked up. They are not told
	// when they do not fit the answer.
	Search []string
	// Hostname is the container's name; empty: it is not told, nor when it does
	// not fit.
	Hostname string
	// MTU of the container's interface in bytes.
	MTU int
	// Time is how long a client may wait until it asks again for the address;
	// it renews after half of it.
	Time time.Duration
}

// Verdict says what became of a message.
type Verdict uint8

const (
	// Malformed is no message of a DHCP client.
	Malformed Verdict = iota
	// NotServed is DHCP that is not for this server, or that nothing is done
	// for: another server was chosen, a relay agent, the client declines.
	NotServed
	// Taken needs no answer.
	Taken
	// Answered has an answer.
	Answered
)

// Answer judges a client's message, without its UDP header, and returns the
// answer if there is one. to is where it goes, on ClientPort: the leased
// address or the broadcast address.
func (l *Lease) Answer(message []byte) (answer []byte, to netip.Addr, verdict Verdict) {
	if len(message) > MaxMessage {
		return nil, to, Malformed
	}
	m, err := dhcpv4.FromBytes(message)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootRequest || len(m.Options.Get(dhcpv4.OptionClientIdentifier)) > maxClientID {
		return nil, to, Malformed
	}
	server := m.Options.Get(dhcpv4.OptionServerIdentifier)
	if addr(m.GatewayIPAddr).IsValid() || server != nil && addr(server) != l.Server {
		return nil, to, NotServed
	}
	kind, verdict := l.decide(m)
	if verdict != Answered {
		return nil, to, verdict
	}
	r, err := l.build(m, kind)
	if err != nil {
		return nil, to, NotServed
	}
	return r.ToBytes(), l.destination(m, kind), Answered
}

// decide chooses the kind of the answer (RFC 2131 section 4.3).
func (l *Lease) decide(m *dhcpv4.DHCPv4) (dhcpv4.MessageType, Verdict) {
	switch m.MessageType() {
	case dhcpv4.MessageTypeNone:
		return 0, Malformed
	case dhcpv4.MessageTypeDiscover:
		return dhcpv4.MessageTypeOffer, Answered
	case dhcpv4.MessageTypeInform:
		return dhcpv4.MessageTypeAck, Answered
	case dhcpv4.MessageTypeRelease:
		return 0, Taken
	case dhcpv4.MessageTypeRequest:
		// Section 4.3.2: a client that chooses or remembers names the address in
		// an option, one that renews has it already.
		wanted := addr(m.Options.Get(dhcpv4.OptionRequestedIPAddress))
		if !wanted.IsValid() {
			wanted = addr(m.ClientIPAddr)
		}
		switch wanted {
		case netip.Addr{}:
			return 0, Malformed
		case l.Addr.Addr():
			return dhcpv4.MessageTypeAck, Answered
		}
		return dhcpv4.MessageTypeNak, Answered
	}
	return 0, NotServed // DECLINE: there is no other address
}

// build makes the answer.
func (l *Lease) build(m *dhcpv4.DHCPv4, kind dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	r, err := dhcpv4.New(dhcpv4.WithReply(m), dhcpv4.WithMessageType(kind),
		dhcpv4.WithOptionCopied(m, dhcpv4.OptionClientIdentifier),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(l.Server.AsSlice())))
	if err != nil || kind == dhcpv4.MessageTypeNak {
		return r, err
	}
	if m.MessageType() == dhcpv4.MessageTypeInform {
		r.ClientIPAddr = m.ClientIPAddr // has its address, and is told the rest
	} else {
		r.YourIPAddr = l.Addr.Addr().AsSlice()
		r.UpdateOption(dhcpv4.OptIPAddressLeaseTime(l.Time))
		r.UpdateOption(dhcpv4.OptRenewTimeValue(l.Time / 2))         // section 4.4.5
		r.UpdateOption(dhcpv4.OptRebindingTimeValue(l.Time * 7 / 8)) // there too
	}
	mask := net.CIDRMask(l.Addr.Bits(), 32)
	r.UpdateOption(dhcpv4.OptSubnetMask(mask))
	r.UpdateOption(dhcpv4.OptBroadcastAddress(broadcast(l.Addr)))
	r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(l.MTU >> 8), byte(l.MTU)}))
	if l.Router.IsValid() {
		r.UpdateOption(dhcpv4.OptRouter(l.Router.AsSlice()))
	}
	l.addNames(r)
	return r, nil
}

// addNames tells how names are resolved.
func (l *Lease) addNames(r *dhcpv4.DHCPv4) {
	var servers []net.IP
	for _, a := range l.Nameservers {
		if a.Is4() && len(servers) < maxNameservers {
			servers = append(servers, a.AsSlice())
		}
	}
	if len(servers) > 0 {
		r.UpdateOption(dhcpv4.OptDNS(servers...))
	}
	for _, o := range l.luxuries() {
		r.UpdateOption(o)
		if len(r.ToBytes()) > maxAnswer {
			r.Options.Del(o.Code)
		}
	}
}

// luxuries are the options that are left out of a full answer, the most useful
// first.
func (l *Lease) luxuries() []dhcpv4.Option {
	var all []dhcpv4.Option
	if len(l.Search) > 0 {
		all = append(all, dhcpv4.OptDomainName(l.Search[0]), dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: l.Search}))
	}
	if l.Hostname != "" {
		all = append(all, dhcpv4.OptHostName(l.Hostname))
	}
	return all
}

// destination is where an answer goes (section 4.1). A client without an
// address takes what is sent to the one that it is to have.
func (l *Lease) destination(m *dhcpv4.DHCPv4, kind dhcpv4.MessageType) netip.Addr {
	ours := l.Addr.Addr()
	has := addr(m.ClientIPAddr)
	if kind == dhcpv4.MessageTypeNak || has.IsValid() && has != ours || !has.IsValid() && m.IsBroadcast() {
		return netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return ours
}

// addr reads four bytes; anything else, and 0.0.0.0, is invalid.
func addr(b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	if a = a.Unmap(); !ok || !a.Is4() || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// broadcast is the last address of an IPv4 subnet.
func broadcast(p netip.Prefix) net.IP {
	b := p.Masked().Addr().As4()
	for n, m := range net.CIDRMask(p.Bits(), 32) {
		b[n] |= ^m
	}
	return b[:]
}
