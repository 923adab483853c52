package netstack

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

// testNow is any time: reassembly only compares times.
var testNow = time.Unix(1e9, 0)

func TestNewReportsEveryFault(t *testing.T) {
	_, err := New(Config{
		MTU:          100,
		Gateways:     []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("10.0.0.129/25")},
		HostServices: []HostService{{Name: "x", Target: netip.MustParseAddrPort("127.0.0.1:53")}, {Name: ""}},
	})
	var op *OpError
	if !errors.As(err, &op) || op.Op != "new network" {
		t.Fatalf("error %v, want an OpError of new network", err)
	}
	for _, part := range []string{"MTU 100", "overlap", "port 53", `host service ""`} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "no gateway") {
		t.Errorf("error %v, want one about the gateway", err)
	}
}

func TestAttachRefusesWhatCannotBe(t *testing.T) {
	h := newHarness(t, nil)
	h.attach("taken", 2, nil)
	v4 := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	for _, tt := range []struct {
		name string
		cfg  LinkConfig
		says string
		is   error
	}{
		{"no name", LinkConfig{Addrs: v4("10.88.0.5")}, "1 to 253", nil},
		{"bad name", LinkConfig{Name: "a b", Addrs: v4("10.88.0.5")}, `' '`, nil},
		{"name in use", LinkConfig{Name: "TAKEN", Addrs: v4("10.88.0.5")}, "name in use", ErrNameInUse},
		{"address in use", LinkConfig{Name: "b", Addrs: v4("10.88.0.2")}, "link taken", ErrAddressInUse},
		{"gateway's address", LinkConfig{Name: "b", Addrs: v4("10.88.0.1")}, "gateway", nil},
		{"outside", LinkConfig{Name: "b", Addrs: v4("10.99.0.1")}, "outside", nil},
		{"no address", LinkConfig{Name: "b"}, "no address", nil},
		{"bad MTU", LinkConfig{Name: "b", Addrs: v4("10.88.0.5"), MTU: 68}, "MTU 68", nil},
		{"bad hostname", LinkConfig{Name: "b", Addrs: v4("10.88.0.5"), Hostname: "c"}, "none of the link's names", nil},
		{"bad alias", LinkConfig{Name: "b", Addrs: v4("10.88.0.5"), Aliases: []string{"-x"}}, "hyphen", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev, far := tunneltest.Pair(DefaultMTU)
			defer dev.Close()
			defer far.Close()
			_, err := h.s.Attach(dev, tt.cfg)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
			if tt.is != nil {
				isErr(t, err, tt.is)
			}
			// The caller still owns the device.
			if err := far.WriteFrame([][]byte{make([]byte, tunnel.HeaderLen+20)}); err != nil && !errors.Is(err, tunnel.ErrFrame) {
				t.Errorf("device after a refused attach: %v", err)
			}
			if n := len(h.s.Links()); n != 1 {
				t.Errorf("%d links, want 1", n)
			}
		})
	}
}

func TestDetachFreesNameAndAddress(t *testing.T) {
	h := newHarness(t, nil)
	a := h.attach("a", 2, nil)
	if err := a.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.link.Detach(t.Context()); err != nil {
		t.Errorf("second detach: %v", err)
	}
	if err := a.link.Err(); err != nil {
		t.Errorf("Err after Detach: %v", err)
	}
	h.attach("a", 2, nil)
}

func TestDeviceDeathDetaches(t *testing.T) {
	h := newHarness(t, nil)
	a := h.attach("a", 2, nil)
	a.dev.Close()
	select {
	case <-a.link.Done():
	case <-time.After(testTimeout):
		t.Fatal("link lives on without its device")
	}
	if a.link.Err() == nil {
		t.Error("Err says nothing")
	}
	if len(h.s.Links()) != 0 {
		t.Error("link is still listed")
	}
}

func TestCountersOutliveTheirLink(t *testing.T) {
	h := newHarness(t, nil)
	a := h.attach("a", 2, nil)
	a.send(udpPacket(ap(a.v4, 1), ap(a.v4, 2), 64, nil))
	a.wantDrops(map[string]uint64{"loop": 1})
	before := h.s.Stats()
	if err := a.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := h.s.Stats()
	if after.Drops["loop"] != 1 || after.FromContainer != before.FromContainer {
		t.Errorf("stats %+v, want those of %+v", after, before)
	}
}

func TestClosedSwitchRefuses(t *testing.T) {
	h := newHarness(t, nil)
	if err := h.s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	dev, far := tunneltest.Pair(DefaultMTU)
	defer dev.Close()
	defer far.Close()
	_, err := h.s.Attach(dev, LinkConfig{Name: "a", Addrs: []netip.Addr{netip.MustParseAddr("10.88.0.2")}})
	isErr(t, err, ErrClosed)
}

func TestNames(t *testing.T) {
	h := newHarness(t, func(c *Config) {
		c.HostServices = []HostService{{Name: "db", Target: netip.MustParseAddrPort("127.0.0.1:5432")}}
		c.DNS.Hosts = map[string][]netip.Addr{"Extra": {netip.MustParseAddr("192.0.2.1")}}
	})
	a := h.attach("web1", 2, func(c *LinkConfig) { c.Aliases = []string{"web"} })
	b := h.attach("web2", 3, func(c *LinkConfig) { c.Aliases = []string{"web", "web1"} })
	c := h.attach("web3", 4, func(c *LinkConfig) { c.Aliases, c.Hostname = []string{"x", "Mail.Example"}, "mail.example" })
	n := h.s.names.Load()
	if got, _ := n.Lookup("web"); len(got) != 4 {
		t.Errorf("shared alias resolves to %v, want both links' addresses", got)
	}
	if got, _ := n.Lookup("web1"); len(got) != 2 || got[0] != a.v4 {
		t.Errorf("web1 resolves to %v: an alias must not take a link's own name", got)
	}
	if got, _ := n.Lookup("db"); len(got) != 2 || got[0] != h.s.gateway4 {
		t.Errorf("host service resolves to %v, want the gateway", got)
	}
	if got, _ := n.Lookup("extra"); len(got) != 1 {
		t.Errorf("extra host resolves to %v", got)
	}
	if name, _ := n.Reverse(b.v6); name != "web2" {
		t.Errorf("reverse of %v is %q", b.v6, name)
	}
	if name, _ := n.Reverse(c.v4); name != "mail.example" {
		t.Errorf("reverse of %v is %q, want the hostname", c.v4, name)
	}
	if err := c.link.SetAliases([]string{"y"}, ""); err != nil {
		t.Fatal(err)
	}
	if name, _ := h.s.names.Load().Reverse(c.v6); name != "web3" || c.link.Hostname() != "" {
		t.Errorf("without a hostname the reverse of %v is %q", c.v6, name)
	}
	if err := c.link.SetAliases([]string{"y"}, "z"); err == nil || !strings.Contains(err.Error(), `"z"`) {
		t.Errorf("a hostname that is no name of the link: %v", err)
	}
	if err := b.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := h.s.names.Load().Lookup("web"); len(got) != 2 {
		t.Errorf("after detach, alias resolves to %v", got)
	}
}

func TestCapture(t *testing.T) {
	h := newHarness(t, nil)
	a, b := h.attach("a", 2, nil), h.attach("b", 3, nil)
	c, err := h.s.Capture("a")
	if err != nil {
		t.Fatal(err)
	}
	sent := udpPacket(ap(a.v4, 1), ap(b.v4, 2), 64, []byte("seen"))
	a.send(sent)
	b.receive()
	b.send(udpPacket(ap(b.v4, 2), ap(a.v4, 1), 64, []byte("seen too")))
	a.receive()
	for _, wantFrom := range []bool{true, false} {
		select {
		case p := <-c.Packets():
			if p.FromContainer != wantFrom {
				t.Errorf("direction %v, want %v", p.FromContainer, wantFrom)
			}
			if wantFrom && string(p.Data) != string(sent) {
				t.Errorf("captured % x, want % x", p.Data, sent)
			}
		case <-time.After(testTimeout):
			t.Fatal("capture has nothing")
		}
	}
	c.Stop()
	c.Stop()
	<-c.Done()
	_, err = h.s.Capture("nobody")
	isErr(t, err, ErrNoLink)
}

func TestCaptureEndsWithItsLink(t *testing.T) {
	h := newHarness(t, nil)
	a := h.attach("a", 2, nil)
	c, err := h.s.Capture("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-time.After(testTimeout):
		t.Error("capture outlives its link")
	}
}

// TestEverythingAtOnce is for the race detector: links come, talk and go while
// others look.
func TestEverythingAtOnce(t *testing.T) {
	h := newHarness(t, nil)
	target := h.attach("target", 200, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var drain, wg sync.WaitGroup
	drain.Go(func() {
		for {
			select {
			case <-target.got:
			case <-ctx.Done():
				return
			}
		}
	})
	for n := range byte(8) {
		wg.Go(func() {
			for range 10 {
				e := h.attach("l"+string('a'+rune(n)), n+2, nil)
				e.send(udpPacket(ap(e.v4, 1), ap(target.v4, 2), 64, nil))
				h.s.Stats()
				h.s.Flows()
				if err := e.link.Detach(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	drain.Wait()
}
