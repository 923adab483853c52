package dhcp

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	hw    = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	all   = netip.MustParseAddr("255.255.255.255")
	lease = Lease{
		Addr: netip.MustParsePrefix("10.88.0.7/20"), Server: netip.MustParseAddr("10.88.0.1"), Router: netip.MustParseAddr("10.88.0.1"),
		Nameservers: []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.88.0.1")},
		Search:      []string{"usernet.internal", "example.org"}, Hostname: "web", MTU: 1400, Time: time.Hour,
	}
)

func ip(s string) net.IP { return net.ParseIP(s).To4() }

// message makes a client's.
func message(t testing.TB, kind dhcpv4.MessageType, with ...dhcpv4.Modifier) []byte {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(hw), dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4}),
	}, with...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m.ToBytes()
}

func TestAnswer(t *testing.T) {
	option := dhcpv4.WithOption
	wants := func(a string) dhcpv4.Modifier { return option(dhcpv4.OptRequestedIPAddress(ip(a))) }
	has := func(a string) dhcpv4.Modifier { return dhcpv4.WithClientIP(ip(a)) }
	chose := func(a string) dhcpv4.Modifier { return option(dhcpv4.OptServerIdentifier(ip(a))) }
	const (
		discover, offer = dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeOffer
		request, ack    = dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeAck
		nak             = dhcpv4.MessageTypeNak
	)
	ours := lease.Addr.Addr()
	tests := []struct {
		name    string
		message []byte
		verdict Verdict
		kind    dhcpv4.MessageType
		to      netip.Addr
	}{
		{"discover", message(t, discover), Answered, offer, ours},
		{"discover by broadcast", message(t, discover, dhcpv4.WithBroadcast(true)), Answered, offer, all},
		{"discover that hopes for another", message(t, discover, wants("10.88.0.99")), Answered, offer, ours},
		{"request, selecting", message(t, request, chose("10.88.0.1"), wants("10.88.0.7")), Answered, ack, ours},
		{"request of a foreign address", message(t, request, chose("10.88.0.1"), wants("10.88.0.8")), Answered, nak, all},
		{"request after a reboot", message(t, request, wants("10.88.0.7")), Answered, ack, ours},
		{"request after a move", message(t, request, wants("192.168.1.7")), Answered, nak, all},
		{"renew", message(t, request, has("10.88.0.7"), dhcpv4.WithBroadcast(true)), Answered, ack, ours},
		{"renew of a foreign address", message(t, request, has("10.88.0.8")), Answered, nak, all},
		{"request of nothing", message(t, request), Malformed, 0, netip.Addr{}},
		{"another server was chosen", message(t, request, chose("10.88.0.2"), wants("10.88.0.7")), NotServed, 0, netip.Addr{}},
		{"a server of no address was chosen", message(t, request, option(dhcpv4.OptGeneric(dhcpv4.OptionServerIdentifier, []byte{1})), wants("10.88.0.7")), NotServed, 0, netip.Addr{}},
		{"inform", message(t, dhcpv4.MessageTypeInform, has("10.88.0.7")), Answered, ack, ours},
		{"inform of a stranger", message(t, dhcpv4.MessageTypeInform, has("8.8.8.8")), Answered, ack, all},
		{"release", message(t, dhcpv4.MessageTypeRelease, has("10.88.0.7"), chose("10.88.0.1")), Taken, 0, netip.Addr{}},
		{"decline", message(t, dhcpv4.MessageTypeDecline, wants("10.88.0.7"), chose("10.88.0.1")), NotServed, 0, netip.Addr{}},
		{"a server's message", message(t, offer), NotServed, 0, netip.Addr{}},
		{"relayed", message(t, discover, dhcpv4.WithGatewayIP(ip("10.88.0.50"))), NotServed, 0, netip.Addr{}},
		{"no type", message(t, discover, dhcpv4.WithoutOption(dhcpv4.OptionDHCPMessageType)), Malformed, 0, netip.Addr{}},
		{"a reply", message(t, discover, func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply }), Malformed, 0, netip.Addr{}},
		{"client identifier too long", message(t, discover, option(dhcpv4.OptClientIdentifier(make([]byte, 193)))), Malformed, 0, netip.Addr{}},
		{"empty", nil, Malformed, 0, netip.Addr{}},
		{"truncated", message(t, discover)[:239], Malformed, 0, netip.Addr{}},
		{"no cookie", bytes.Replace(message(t, discover), []byte{99, 130, 83, 99}, []byte{0, 0, 0, 0}, 1), Malformed, 0, netip.Addr{}},
		{"too long", append(message(t, discover), make([]byte, MaxMessage)...), Malformed, 0, netip.Addr{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, to, verdict := lease.Answer(tt.message)
			if verdict != tt.verdict || to != tt.to || (b != nil) != (verdict == Answered) {
				t.Fatalf("verdict %d, to %v, %d bytes; want %d, %v", verdict, to, len(b), tt.verdict, tt.to)
			}
			if b == nil {
				return
			}
			m, err := dhcpv4.FromBytes(b)
			if err != nil || m.MessageType() != tt.kind || !m.ServerIdentifier().Equal(ip("10.88.0.1")) ||
				m.TransactionID != (dhcpv4.TransactionID{1, 2, 3, 4}) || m.ClientHWAddr.String() != hw.String() {
				t.Fatalf("%v, %v; want %v", m, err, tt.kind)
			}
			if tt.kind == nak && (m.SubnetMask() != nil || m.YourIPAddr.String() != "0.0.0.0") {
				t.Errorf("a refusal tells %v", m)
			}
		})
	}
}

// What is told, to those that get an address and to those that have one.
func TestAnswerTellsTheLease(t *testing.T) {
	id := []byte{0, 'c', '1'}
	for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeInform} {
		b, _, _ := lease.Answer(message(t, kind, dhcpv4.WithOption(dhcpv4.OptClientIdentifier(id)), dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionRelayAgentInformation, []byte("xxx")))))
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			t.Fatal(err)
		}
		mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, m.Options)
		if err != nil || mtu != 1400 {
			t.Errorf("MTU %d, %v", mtu, err)
		}
		if ones, _ := m.SubnetMask().Size(); ones != 20 || !m.BroadcastAddress().Equal(ip("10.88.15.255")) ||
			len(m.Router()) != 1 || !m.Router()[0].Equal(ip("10.88.0.1")) || len(m.DNS()) != 1 || !m.DNS()[0].Equal(ip("10.88.0.1")) ||
			m.HostName() != "web" || m.DomainName() != "usernet.internal" ||
			!slices.Equal(m.DomainSearch().Labels, lease.Search) ||
			!bytes.Equal(m.Options.Get(dhcpv4.OptionClientIdentifier), id) || m.Options.Has(dhcpv4.OptionRelayAgentInformation) {
			t.Errorf("%s", m.Summary())
		}
		lasts, gets := m.IPAddressLeaseTime(0), m.YourIPAddr.String()
		if kind == dhcpv4.MessageTypeInform {
			if lasts != 0 || gets != "0.0.0.0" {
				t.Errorf("INFORM: address %s for %v", gets, lasts)
			}
			continue
		}
		if lasts != time.Hour || m.IPAddressRenewalTime(0) != 30*time.Minute || m.IPAddressRebindingTime(0) != 52*time.Minute+30*time.Second || gets != "10.88.0.7" {
			t.Errorf("%s for %v", gets, lasts)
		}
	}
}

// However much there is to tell, an answer fits what every client takes.
func TestAnswerFits(t *testing.T) {
	l := lease
	l.Router = netip.Addr{}
	l.Hostname = strings.Repeat("h", 63)
	for range 30 {
		l.Nameservers = append(l.Nameservers, l.Server)
		l.Search = append(l.Search, strings.Repeat("d", 40)+".org")
	}
	b, _, verdict := l.Answer(message(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithOption(dhcpv4.OptClientIdentifier(make([]byte, 192)))))
	if verdict != Answered || len(b) > 548 {
		t.Errorf("verdict %d, %d bytes", verdict, len(b))
	}
	if m, err := dhcpv4.FromBytes(b); err != nil || m.Router() != nil || len(m.DNS()) != 3 {
		t.Errorf("%v, %v", m, err)
	}
}

// FuzzAnswer: any bytes are judged without a panic, and an answer is one that
// clients can read, of this lease and no longer than they take.
func FuzzAnswer(f *testing.F) {
	for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform, dhcpv4.MessageTypeRelease} {
		f.Add(message(f, kind, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip("10.88.0.7"))), dhcpv4.WithClientIP(ip("10.88.0.7"))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, to, verdict := lease.Answer(b)
		if (got != nil) != (verdict == Answered) {
			t.Fatalf("verdict %d with %d bytes", verdict, len(got))
		}
		if got == nil {
			return
		}
		m, err := dhcpv4.FromBytes(got)
		if err != nil || m.OpCode != dhcpv4.OpcodeBootReply || len(got) > 548 || to != all && to != lease.Addr.Addr() {
			t.Fatalf("%v, %v, %d bytes to %v", m, err, len(got), to)
		}
		if y := m.YourIPAddr.String(); y != "0.0.0.0" && y != "10.88.0.7" {
			t.Fatalf("gives %s", y)
		}
	})
}
