package plugin

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// containerLink returns the container's interface.
func containerLink(t *testing.T, ns *netns.Handle) netlink.Link {
	t.Helper()
	var link netlink.Link
	nstest.In(t, ns, func() (err error) {
		link, err = netlink.LinkByName("eth0")
		return err
	})
	return link
}

// TestNetnsTAPHasTheMACThatIsReported: wherever the runtime asks for an address,
// the interface has it, the result reports it, the daemon knows it and CHECK
// misses it. DEL leaves nothing.
func TestNetnsTAPHasTheMACThatIsReported(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	before := b.world("")
	const asked = "02:c0:ff:ee:00:0a"
	var random []string
	for _, test := range []struct {
		name string
		more map[string]any
		env  []string
		want string // empty: any
	}{
		{name: "CNI_ARGS", env: []string{"CNI_ARGS=IgnoreUnknown=1;MAC=02:C0:FF:EE:00:0A"}, want: asked},
		{name: "args.cni", more: map[string]any{"args": map[string]any{"cni": map[string]any{"mac": asked}}}, want: asked},
		{name: "capability", more: map[string]any{"runtimeConfig": map[string]any{"mac": asked}}, want: asked},
		{name: "random"},
		{name: "random again"},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys := map[string]any{"device": "tap"}
			for k, v := range test.more {
				keys[k] = v
			}
			r, err := b.run(cmdAdd, b.config(keys), nil, test.env...)
			if err != nil {
				t.Fatal(err)
			}
			link, reported := containerLink(t, b.ctr), r.Interfaces[0].Mac
			if got := link.Attrs().HardwareAddr.String(); got != reported || test.want != "" && got != test.want || deviceKind(link) != "tap" {
				t.Errorf("a %s with MAC address %s; reported %s, wanted %q", deviceKind(link), got, reported, test.want)
			}
			if test.want == "" {
				random = append(random, reported)
			}
			l, err := b.client.Link(t.Context(), control.LinkKey{Network: "web", Container: "c1", IfName: "eth0"})
			if err != nil || l.Device != control.DeviceTAP || l.MAC != reported {
				t.Errorf("the daemon tells device %q, MAC %q, %v", l.Device, l.MAC, err)
			}
			keys["prevResult"] = r
			check := func() error {
				_, err := b.run(cmdCheck, b.config(keys), nil, test.env...)
				return err
			}
			if err := check(); err != nil {
				t.Errorf("CHECK right after ADD: %v", err)
			}
			setMAC := func(text string) {
				mac, err := net.ParseMAC(text)
				if err != nil {
					t.Fatal(err)
				}
				nstest.In(t, b.ctr, func() error { return netlink.LinkSetHardwareAddr(link, mac) })
			}
			setMAC("02:00:00:00:00:99")
			wantError(t, check(), ErrAttachment, "eth0", "02:00:00:00:00:99", reported)
			setMAC(reported)
			if err := check(); err != nil {
				t.Errorf("changed back: %v", err)
			}
			keys["device"] = "tun"
			wantError(t, check(), ErrAttachment, "eth0", "tap", "tun")
			if _, err := b.run(cmdDel, b.config(nil), nil); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, b.world("")); diff != "" {
				t.Error(diff)
			}
		})
	}
	if len(random) != 2 || random[0] == random[1] {
		t.Errorf("random addresses %v", random)
	}
}

// TestNetnsTAPAndTUNMeet: containers with either kind of device reach each
// other and the gateway over both families, on a network of both.
func TestNetnsTAPAndTUNMeet(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	other := nstest.NewNS(t)
	tap, err := b.run(cmdAdd, b.config(map[string]any{"device": "tap"}), nil)
	if err != nil {
		t.Fatal(err)
	}
	tun, err := b.run(cmdAdd, b.config(nil), nil, "CNI_CONTAINERID=c2", "CNI_NETNS="+nstest.Path(t, other))
	if err != nil {
		t.Fatal(err)
	}
	for n := range tap.IPs {
		nstest.Exec(t, b.ctr, "ping", "-n", "-c1", "-W5", tap.IPs[n].Gateway.String())
		for _, way := range []struct {
			from, to *netns.Handle
			at       net.IP
		}{{b.ctr, other, tun.IPs[n].Address.IP}, {other, b.ctr, tap.IPs[n].Address.IP}} {
			addr, _ := netip.AddrFromSlice(way.at)
			ln := nstest.Listen(t, way.to, "tcp", netip.AddrPortFrom(addr.Unmap(), 0).String())
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			conn, err := nstest.DialContext(ctx, way.from, "tcp", ln.Addr().String())
			cancel()
			if err != nil {
				t.Fatalf("to %v: %v", way.at, err)
			}
			conn.Close()
			ln.Close()
			nstest.Exec(t, way.from, "ping", "-n", "-c1", "-W5", way.at.String())
		}
	}
	// The neighbours that the container has learnt are the switch.
	index := containerLink(t, b.ctr).Attrs().Index
	nstest.In(t, b.ctr, func() error {
		for _, n := range tap.IPs {
			neighbours, err := netlink.NeighList(index, 0) //nolint:forbidigo // nothing else changes this namespace
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(neighbours, func(e netlink.Neigh) bool {
				return e.IP.Equal(n.Gateway) && e.HardwareAddr.String() == "02:75:6e:00:00:01"
			}) {
				t.Errorf("no neighbour %v among %v", n.Gateway, neighbours)
			}
		}
		return nil
	})
	// Kernels announce a TAP's address, to nobody in particular.
	stats, err := b.client.Stats(t.Context(), "web")
	if err != nil || stats.Networks[0].Drops["arp_unanswered"] == 0 {
		t.Errorf("drops %v, %v", stats.Networks, err)
	}
}
