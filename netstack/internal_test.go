package netstack

import (
	"net"
	"net/netip"
	"testing"
)

// TestInternalNetwork: nothing gets out and the container hears why at once,
// its names are answered, and what is published works: who publishes a port
// opens it.
func TestInternalNetwork(t *testing.T) {
	h := newHarness(t, func(cfg *Config) { cfg.Internal = true })
	a := h.attach("a", 2, nil)
	for _, dst := range []string{"192.0.2.99", "2001:db8::99"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(dst), 443)
		a.send(udpPacket(ap(a.addr(to.Addr().Is4()), 1), to, 64, nil))
		if _, pkt := a.receive(); !prohibited(parse(t, pkt)) {
			t.Errorf("to %v: % x", to, pkt)
		}
	}
	a.wantDrops(map[string]uint64{"policy_internal": 2})
	a.wantRefusals(t, "policy_internal", "internal", "", "")
	p, err := h.s.Publish(PublishConfig{Link: "a", Proto: "udp", Port: 53})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp", p.Host().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("from outside")); err != nil {
		t.Fatal(err)
	}
	_, pkt := a.receive()
	if got := parse(t, pkt); got.DstAddrPort() != ap(a.v4, 53) || string(pkt[got.Payload:]) != "from outside" {
		t.Errorf("a got % x", pkt)
	}
}
