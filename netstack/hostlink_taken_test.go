package netstack

import (
	"context"
	"net/netip"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/usernet/usernet/internal/packet"
)

// TestHostAndSwitchShareNoTCPFlow: the host speaks from the gateway's address, as
// the switch does for clients of publications. A port of it is one's or the
// other's.
func TestHostAndSwitchShareNoTCPFlow(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
		gw, target := host.addr(v4), ap(c.addr(v4), 80)
		dial := func(ctx context.Context, port uint16) error {
			in := &ingress{t: h.s.tcp, link: c.link, cancel: func() {}}
			ep, err := in.dial(ctx, ap(gw, port), target, new(waiter.Queue))
			if err == nil {
				ep.Abort()
			}
			return err
		}
		host.send(tcpPacket(ap(gw, 40000), target, packet.FlagSYN))
		c.receive()
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		isErr(t, dial(ctx, 40000), syscall.EADDRINUSE)
		done := make(chan error, 1)
		go func() { done <- dial(ctx, 40001) }()
		c.receive() // the stack's SYN
		host.send(tcpPacket(ap(gw, 40001), target, packet.FlagSYN))
		_, got := host.receive()
		if hdr := parse(t, got); !hdr.IsICMPError() {
			t.Errorf("the host got %+v, want an error", hdr)
		}
		host.wantDrops(map[string]uint64{"flow_taken": 1})
		cancel()
		isErr(t, <-done, context.Canceled)
	})
}

func TestHostAndSwitchShareNoUDPFlow(t *testing.T) {
	h := newHarness(t, nil)
	host, c := h.attachHost("host", nil), h.attach("c", 2, nil)
	p := h.publishUDP("c", "127.0.0.1:0")
	client := dialUDP(t, p.Host())
	// The client's port is in the range that the gateway's aliases are from, or
	// the alias is another one anyway; either way the two differ.
	port := client.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Port()
	taken := max(port, aliasPortMin)
	host.send(udpPacket(ap(host.v4, taken), ap(c.v4, p.Port()), 64, []byte("host")))
	c.receive()
	if _, err := client.Write([]byte("client")); err != nil {
		t.Fatal(err)
	}
	_, got := c.receive()
	hdr := parse(t, got)
	alias := hdr.SrcAddrPort()
	if alias.Addr() != host.v4 || alias.Port() == taken {
		t.Fatalf("the client appears as %v, want another port of the gateway than the host's %d", alias, taken)
	}
	host.send(udpPacket(alias, ap(c.v4, p.Port()), 64, nil))
	host.receive()
	host.wantDrops(map[string]uint64{"flow_taken": 1})
}
