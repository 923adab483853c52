package netstack_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/netstack"
	"github.com/usernet/usernet/tunnel"
)

// device opens one of the kinds of interface that a container may have.
type device func(testing.TB, *netns.Handle, netns.Interface) tunnel.Device

// pair is two containers on one switch.
type pair struct {
	s     *netstack.Switch
	ns    [2]*netns.Handle
	links [2]*netstack.Link
	addrs [2][2]netip.Addr // of each container: IPv4, IPv6
}

// newPair attaches two containers, with the bandwidths given.
func newPair(t *testing.T, kinds [2]device, limits ...netstack.Bandwidth) *pair {
	t.Helper()
	nstest.Require(t)
	checkLeaks(t)
	s, err := netstack.New(netstack.Config{
		Name:     "mixed",
		Gateways: []netip.Prefix{netip.PrefixFrom(gateway4, 24), netip.PrefixFrom(gateway6, 64)},
		DNS:      netstack.DNSConfig{ResolvConf: os.DevNull},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the switch: %v", err)
		}
	})
	p := &pair{s: s}
	mtu := netstack.DefaultMTU
	if len(limits) > 0 {
		mtu = netstack.LimitedMTU
	}
	for i, open := range kinds {
		addrs := [2]netip.Addr{container4, container6}
		if i == 1 {
			addrs = [2]netip.Addr{container4.Next(), container6.Next()}
		}
		p.ns[i], p.addrs[i] = nstest.NewNS(t), addrs
		dev := open(t, p.ns[i], netns.Interface{
			Name: "eth0", MTU: mtu,
			Addrs: []netip.Prefix{netip.PrefixFrom(addrs[0], 24), netip.PrefixFrom(addrs[1], 64)},
			Routes: []netns.Route{
				{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: gateway4},
				{Dst: netip.MustParsePrefix("::/0"), Gateway: gateway6},
			},
		})
		cfg := netstack.LinkConfig{Name: [2]string{"a", "b"}[i], Addrs: addrs[:], MTU: mtu}
		if len(limits) > i {
			cfg.Bandwidth = limits[i]
		}
		if p.links[i], err = s.Attach(dev, cfg); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// kinds are the pairs of interfaces between which containers talk.
var kinds = map[string][2]device{
	"TUNtoTUN": {nstest.TUN, nstest.TUN},
	"TAPtoTAP": {nstest.TAP, nstest.TAP},
	"TAPtoTUN": {nstest.TAP, nstest.TUN},
}

// TestNetnsTAPContainersReachEachOther: the switch forwards what came out of
// Ethernet verbatim, superframes whole, to containers of either kind.
func TestNetnsTAPContainersReachEachOther(t *testing.T) {
	for name, devices := range kinds {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, devices)
			for family := range 2 {
				for from := range 2 {
					to := p.addrs[1-from][family]
					nstest.WaitFor(t, testTimeout, func() bool { // IPv6 needs a moment
						out, err := nstest.TryExec(t, p.ns[from], "ping", "-n", "-c", "1", "-W", "1", to.String())
						return err == nil && strings.Contains(out, " 0% packet loss")
					})
					sendAcross(t, p.ns[from], p.ns[1-from], to, 16<<20)
				}
			}
			for _, gateway := range []netip.Addr{gateway4, gateway6} {
				nstest.Exec(t, p.ns[0], "ping", "-n", "-c", "1", "-W", "5", gateway.String())
			}
			for _, f := range p.s.Flows() {
				if f.Proto == "tcp" && f.FromContainer.Bytes/f.FromContainer.Packets < 8*1500 {
					t.Errorf("%d bytes in %d packets: not superframes", f.FromContainer.Bytes, f.FromContainer.Packets)
				}
			}
			for i, link := range p.links {
				// MLD reports and announcements are what kernels say unasked, and
				// of acknowledgements in a run the last says all.
				for reason, n := range link.Stats().Drops {
					if reason != "neighbor_discovery" && reason != "arp_unanswered" && reason != "superseded_ack" {
						t.Errorf("%d packets of container %d dropped as %s", n, i, reason)
					}
				}
			}
		})
	}
}

// TestNetnsTAPDropsAreTheLinks: what the Ethernet layer discards is counted on
// the link by name, and by the switch when the link is gone too.
func TestNetnsTAPDropsAreTheLinks(t *testing.T) {
	p := newPair(t, kinds["TAPtoTUN"])
	link := p.links[0]
	// A bridge's hello is neither IP nor ARP (IEEE 802.1D §9.3.1).
	nstest.Exec(t, p.ns[0], "ip", "link", "add", "br0", "type", "bridge", "stp_state", "1")
	nstest.Exec(t, p.ns[0], "ip", "link", "set", "eth0", "master", "br0")
	nstest.Exec(t, p.ns[0], "ip", "link", "set", "br0", "up")
	nstest.WaitFor(t, testTimeout, func() bool { return link.Stats().Drops["ether_type"] > 0 })
	if before := p.s.Stats().Drops["ether_type"]; before == 0 {
		t.Error("the switch's counters lack what its link's device discarded")
	}
	if d := p.links[1].Stats().Drops["ether_type"]; d != 0 {
		t.Errorf("%d frames of another kind from a TUN", d)
	}
	if err := link.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, last := p.s.Stats().Drops["ether_type"], link.Stats().Drops["ether_type"]; now != last || now == 0 {
		t.Errorf("the switch counts %d after the link is gone, the link %d", now, last)
	}
	var names []string
	for _, r := range netstack.DropReasons() {
		names = append(names, r.String())
	}
	for _, r := range tunnel.TAPDrops() {
		if !slices.Contains(names, r) {
			t.Errorf("DropReasons lacks %s", r)
		}
	}
}

// sendAcross sends size bytes from one namespace to an address of the other.
func sendAcross(t *testing.T, from, to *netns.Handle, addr netip.Addr, size int) {
	t.Helper()
	ln := nstest.Listen(t, to, "tcp", netip.AddrPortFrom(addr, 0).String())
	conn, err := nstest.Dial(t, from, "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	exchange(t, conn, server, size)
}

// exchange writes size bytes to one connection and reads them from another.
func exchange(t *testing.T, conn, server net.Conn, size int) {
	t.Helper()
	sent := bytes.Repeat([]byte("no two alike: 0123456789abcdef.\n"), size/32)
	for i := range sent {
		sent[i] += byte(i >> 12)
	}
	written := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		written <- err
	}()
	got := make([]byte, len(sent))
	if n, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("received %d of %d bytes, %v, or others", n, len(sent), err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// TestNetnsTAPCarriesTheStacksTCP: superframes and open checksums of the
// switch's own TCP arrive through Ethernet, and the container's at the stack.
func TestNetnsTAPCarriesTheStacksTCP(t *testing.T) {
	p := newPair(t, kinds["TAPtoTUN"])
	for _, addr := range p.addrs[0] {
		ln := nstest.Listen(t, p.ns[0], "tcp", netip.AddrPortFrom(addr, 0).String())
		conn, err := p.s.DialContext(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, conn, server, 8<<20)
		exchange(t, server, conn, 8<<20)
		conn.Close()
		server.Close()
	}
}

// TestNetnsTAPSpeed prints what a flow between two containers reaches.
func TestNetnsTAPSpeed(t *testing.T) {
	requireTools(t, "iperf3")
	for name, devices := range kinds {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, devices)
			to := p.addrs[1][0].String()
			server := exec.Command("iperf3", "-s", "-1", "-B", to)
			nstest.Start(t, p.ns[1], server)
			nstest.WaitFor(t, testTimeout, func() bool {
				return strings.Contains(nstest.Exec(t, p.ns[1], "ss", "-Hltn"), ":5201")
			})
			out, err := nstest.TryExec(t, p.ns[0], "iperf3", "-J", "-c", to, "-t", "1")
			var result struct {
				End struct {
					Received struct {
						BitsPerSecond float64 `json:"bits_per_second"`
					} `json:"sum_received"`
				}
				Error string
			}
			if jsonErr := json.Unmarshal([]byte(out), &result); err != nil || jsonErr != nil || result.Error != "" {
				t.Fatalf("iperf3: %v, %v, %s", err, jsonErr, result.Error)
			}
			t.Logf("%s: %.1f Gbit/s", name, result.End.Received.BitsPerSecond/1e9)
			if result.End.Received.BitsPerSecond < 100e6 {
				t.Error("less than 100 Mbit/s")
			}
		})
	}
}
