package netstack

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

// dhcpMessage makes a client's.
func dhcpMessage(t testing.TB, kind dhcpv4.MessageType, with ...dhcpv4.Modifier) []byte {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 9})}, with...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m.ToBytes()
}

var (
	dhcpClient = netip.MustParseAddrPort("0.0.0.0:68")
	dhcpAll    = netip.MustParseAddrPort("255.255.255.255:67")
)

func served(c *LinkConfig) { c.DHCP = &DHCP{} }

// dhcpAnswer waits for an answer and takes it apart.
func (e *end) dhcpAnswer() (packet.Header, *dhcpv4.DHCPv4) {
	e.t.Helper()
	hdr, pkt := e.receive()
	p := parse(e.t, pkt)
	m, err := dhcpv4.FromBytes(pkt[p.Payload:])
	if err != nil || hdr != (tunnel.Header{}) || p.SrcPort != 67 || p.DstPort != 68 || !packet.ValidL4Checksum(&p, [][]byte{pkt}) {
		e.t.Fatalf("%+v %+v: %v, %v", hdr, p, m, err)
	}
	return p, m
}

func TestDHCPExchange(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.MTU = 1400 })
	a := h.attach("a", 2, served)
	gw := h.s.gateway(true)
	a.send(udpPacket(dhcpClient, dhcpAll, 64, dhcpMessage(t, dhcpv4.MessageTypeDiscover)))
	p, m := a.dhcpAnswer()
	if p.Src != gw || p.Dst != a.v4 || m.MessageType() != dhcpv4.MessageTypeOffer || m.YourIPAddr.String() != a.v4.String() {
		t.Errorf("%v to %v: %s", p.Src, p.Dst, m.Summary())
	}
	mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, m.Options)
	if ones, _ := m.SubnetMask().Size(); err != nil || mtu != 1400 || ones != 24 || m.HostName() != "a" ||
		m.IPAddressLeaseTime(0) != time.Hour || m.Router()[0].String() != gw.String() || m.DNS()[0].String() != gw.String() {
		t.Errorf("%v: %s", err, m.Summary())
	}
	renew := dhcpMessage(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(a.v4.AsSlice()))
	a.send(udpPacket(ap(a.v4, 68), ap(gw, 67), 64, renew))
	if p, m := a.dhcpAnswer(); p.Dst != a.v4 || m.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("renewal: to %v: %s", p.Dst, m.Summary())
	}
	foreign := dhcpMessage(t, dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP{10, 88, 0, 3})))
	a.send(udpPacket(dhcpClient, dhcpAll, 64, foreign))
	if p, m := a.dhcpAnswer(); p.Dst != broadcast4 || m.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("a foreign address: to %v: %s", p.Dst, m.Summary())
	}
	a.send(udpPacket(ap(a.v4, 68), ap(gw, 67), 64, dhcpMessage(t, dhcpv4.MessageTypeRelease, dhcpv4.WithClientIP(a.v4.AsSlice()))))
	a.send(udpPacket(dhcpClient, dhcpAll, 64, dhcpMessage(t, dhcpv4.MessageTypeDiscover)))
	if _, m := a.dhcpAnswer(); m.YourIPAddr.String() != a.v4.String() {
		t.Errorf("after a release: %s", m.Summary())
	}
	a.quiet()
	a.wantDrops(map[string]uint64{})
}

// An internal network has no way out to tell of.
func TestDHCPOfInternalNetwork(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Internal = true })
	a := h.attach("a", 2, func(c *LinkConfig) {
		c.DHCP = &DHCP{Nameservers: []netip.Addr{netip.MustParseAddr("10.88.0.9")}, Search: []string{"x.org"}, LeaseTime: time.Minute}
	})
	a.send(udpPacket(dhcpClient, dhcpAll, 64, dhcpMessage(t, dhcpv4.MessageTypeDiscover)))
	if _, m := a.dhcpAnswer(); m.Router() != nil || m.DNS()[0].String() != "10.88.0.9" || m.DomainName() != "x.org" || m.IPAddressLeaseTime(0) != time.Minute {
		t.Errorf("%s", m.Summary())
	}
}

// TestDHCPDrops: whatever is not answered has one counter, and no answer.
func TestDHCPDrops(t *testing.T) {
	discover := dhcpMessage(t, dhcpv4.MessageTypeDiscover)
	udp := func(src, dst string, b []byte) []byte {
		return udpPacket(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), 64, b)
	}
	damaged := udp("0.0.0.0:68", "255.255.255.255:67", discover)
	damaged[len(damaged)-1] ^= 1
	tests := []struct {
		name string
		drop string
		off  bool // not served, as on a TUN
		pkt  []byte
	}{
		{"not served", "dhcp", true, udp("0.0.0.0:68", "255.255.255.255:67", discover)},
		{"garbage", "dhcp_malformed", false, udp("0.0.0.0:68", "255.255.255.255:67", []byte("x"))},
		{"too long", "dhcp_malformed", false, udp("0.0.0.0:68", "255.255.255.255:67", bytes.Repeat(discover, 5))},
		{"checksum", "checksum", false, damaged},
		{"another's server", "dhcp", false, udp("0.0.0.0:68", "255.255.255.255:67", dhcpMessage(t, dhcpv4.MessageTypeRequest,
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{10, 88, 0, 9})), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP{10, 88, 0, 2}))))},
		{"another's source", "dhcp", false, udp("10.88.0.3:68", "255.255.255.255:67", discover)},
		{"from a server's port", "dhcp", false, udp("0.0.0.0:67", "255.255.255.255:67", discover)},
		{"to a client", "dhcp", false, udp("10.88.0.2:67", "255.255.255.255:68", discover)},
		{"to a neighbour", "dhcp", false, udp("10.88.0.2:68", "10.88.0.3:67", discover)},
		{"to the outside", "dhcp", false, udp("10.88.0.2:68", "203.0.113.7:67", discover)},
		{"DHCPv6", "dhcp", false, udp("[fd00:88::2]:546", "[ff02::1:2]:547", []byte{1, 0, 0, 1})},
		{"no address yet, something else", "spoofed_source", false, udp("0.0.0.0:68", "255.255.255.255:69", discover)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, nil)
			a := h.attach("a", 2, func(c *LinkConfig) {
				if !tt.off {
					served(c)
				}
			})
			b := h.attach("b", 3, served)
			a.send(tt.pkt)
			a.wantDrops(map[string]uint64{tt.drop: 1})
			a.quiet()
			b.quiet()
		})
	}
}

// A container that asks without end gets an answer now and then, and every
// message that gets none is counted.
func TestDHCPRate(t *testing.T) {
	h := newHarness(t, nil)
	a := h.attach("a", 2, served)
	a.link.dhcp.rate.SetLimit(0) // however slow the machine is
	const sent = 60
	for range sent { // as many as wait in the test's own device
		a.send(udpPacket(dhcpClient, dhcpAll, 64, dhcpMessage(t, dhcpv4.MessageTypeDiscover)))
	}
	eventually(t, func() bool {
		st := a.link.Stats()
		return st.ToContainer.Packets+st.Drops["dhcp_limit"] == sent
	})
	if st := a.link.Stats(); st.ToContainer.Packets != dhcpBurst || len(st.Drops) != 1 {
		t.Errorf("%d answers, drops %v", st.ToContainer.Packets, st.Drops)
	}
}

func TestDHCPLeaseTime(t *testing.T) {
	for d, ok := range map[time.Duration]bool{0: true, time.Second: true, time.Millisecond: false, -time.Hour: false, maxLeaseTime: true, maxLeaseTime + 1: false} {
		if err := (&DHCP{LeaseTime: d}).check(); (err == nil) != ok {
			t.Errorf("%v: %v", d, err)
		}
	}
}
