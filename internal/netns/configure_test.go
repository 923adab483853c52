package netns_test

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
)

func TestNetnsFirstDefaultRouteStays(t *testing.T) {
	ns := nstest.NewNS(t)
	newTUN(t, ns, "eth0")
	newTUN(t, ns, "eth1")
	first, second := containerInterface(), containerInterface()
	second.Name, second.Addrs = "eth1", prefixes("10.89.0.5/16", "fd89::5/64")
	second.Routes = []netns.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.89.0.1")},
		{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd89::1")},
	}
	nstest.In(t, ns, func() error { return netns.Configure(first) })
	nstest.In(t, ns, func() error { return netns.Configure(second) })
	nstest.In(t, ns, func() error { return errors.Join(netns.Verify(first), netns.Verify(second)) })
	for _, family := range []string{"-4", "-6"} {
		if have := nstest.Exec(t, ns, "ip", family, "route", "show", "default"); !strings.Contains(have, "dev eth0") || strings.Contains(have, "dev eth1") {
			t.Errorf("ip %s route show default:\n%s", family, have)
		}
	}
}

// TestNetnsRoutesOutsideHaveEthernetsMTU: what leaves the network is cut to
// 1,500 bytes by the container, unless a route says otherwise.
func TestNetnsRoutesOutsideHaveEthernetsMTU(t *testing.T) {
	ns := nstest.NewNS(t)
	newTUN(t, ns, "eth0")
	cfg := containerInterface()
	gateway4, gateway6 := netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("fd88::1")
	cfg.MTU = 9000
	cfg.Routes = []netns.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: gateway4},
		{Dst: netip.MustParsePrefix("::/0"), Gateway: gateway6},
		{Dst: netip.MustParsePrefix("198.51.100.0/24"), Gateway: gateway4, MTU: 9000},
	}
	nstest.In(t, ns, func() error { return netns.Configure(cfg) })
	for dst, mtu := range map[string]string{
		"203.0.113.1": "mtu 1500", "2001:db8::1": "mtu 1500", // by the default routes
		"198.51.100.1": "mtu 9000",
		"10.88.0.9":    "", "fd88::9": "", // neighbours: the interface's
	} {
		have := nstest.Exec(t, ns, "ip", "route", "get", dst)
		if !strings.Contains(have, mtu) || mtu == "" && strings.Contains(have, "mtu") {
			t.Errorf("ip route get %s: want %q in\n%s", dst, mtu, have)
		}
	}
}

func TestNetnsVerifyNamesWhatIsMissing(t *testing.T) {
	ns := nstest.NewNS(t)
	newTUN(t, ns, "eth0")
	cfg := containerInterface()
	verify := func() error { return ns.Do(func() error { return netns.Verify(cfg) }) }
	nstest.In(t, ns, func() error { return netns.Configure(cfg) })
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	nstest.Exec(t, ns, "ip", "route", "del", "default")
	nstest.Exec(t, ns, "ip", "-6", "addr", "del", "fd88::5/64", "dev", "eth0")
	nstest.Exec(t, ns, "ip", "link", "set", "eth0", "mtu", "1300")
	err := verify()
	if !errors.Is(err, netns.ErrDiffers) {
		t.Fatalf("Verify = %v, want ErrDiffers", err)
	}
	for _, want := range []string{"route 0.0.0.0/0 via 10.88.0.1 is missing", "address fd88::5/64 is missing", "MTU is 1300, not 1400"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Verify = %v, want it to say %q", err, want)
		}
	}
	nstest.Exec(t, ns, "ip", "link", "del", "eth0")
	if err := verify(); !errors.Is(err, netns.ErrDiffers) || !strings.Contains(err.Error(), "no interface eth0") {
		t.Errorf("Verify = %v, want ErrDiffers that says there is no eth0", err)
	}
}

func TestValidateNamesEveryFault(t *testing.T) {
	cfg := netns.Interface{
		Name: "eth%d", MTU: 1000,
		Addrs: prefixes("fd00::1/64", "0.0.0.0/0", "224.0.0.1/24"),
		Routes: []netns.Route{
			{Dst: netip.MustParsePrefix("10.0.0.1/8")},
			{Dst: netip.MustParsePrefix("10.0.0.0/8"), Gateway: netip.MustParseAddr("fd00::9")},
			{},
		},
	}
	err := cfg.Validate()
	if !errors.Is(err, netns.ErrInvalid) {
		t.Fatalf("Validate = %v, want ErrInvalid", err)
	}
	for _, want := range []string{`"eth%d"`, "MTU 1000", "0.0.0.0/0", "224.0.0.1/24", "10.0.0.1/8", "fd00::9", "invalid Prefix"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Validate = %v, want it to name %s", err, want)
		}
	}
	for name, ok := range map[string]bool{"": false, ".": false, "a/b": false, "a b": false, "sixteen-letters!": false, "fifteen-letters": true, "eth0.100": true, "a:b": false} {
		if err := (netns.Interface{Name: name}).Validate(); (err == nil) != ok {
			t.Errorf("Validate with name %q = %v, want valid %v", name, err, ok)
		}
	}
}

func TestNetnsDeleteLink(t *testing.T) {
	ns := nstest.NewNS(t)
	newTUN(t, ns, "eth0")
	for range 2 { // the second time there is none
		nstest.In(t, ns, func() error { return netns.DeleteLink("eth0") })
	}
	if out, err := nstest.TryExec(t, ns, "ip", "link", "show", "eth0"); err == nil {
		t.Errorf("eth0 is still there:\n%s", out)
	}
}

// TestNetnsSysctlBelongsToThread: /proc/sys/net shows the namespace of the
// thread that opens a file in it, which is what Configure relies on.
func TestNetnsSysctlBelongsToThread(t *testing.T) {
	a, b := nstest.NewNS(t), nstest.NewNS(t)
	const key = "ipv4/ping_group_range"
	nstest.In(t, a, func() error { return netns.SetPingGroupRange(0, 0) })
	read := func(ns *netns.Handle) (value string) {
		nstest.In(t, ns, func() (err error) {
			value, err = netns.Sysctl(key)
			return err
		})
		return value
	}
	if got := strings.Fields(read(a)); !slices.Equal(got, []string{"0", "0"}) {
		t.Errorf("a has %q after writing 0 0", got)
	}
	if got := strings.Fields(read(b)); slices.Equal(got, []string{"0", "0"}) {
		t.Errorf("b has %q, which was written in a", got)
	}
	runtime.Gosched()
	if err := b.Do(func() error { return netns.SetSysctl("ipv4/no_such_key", "1") }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("SetSysctl of an unknown key = %v, want fs.ErrNotExist", err)
	}
}

// TestNetnsConfiguredInterfaceIsSilent: an interface with IPv6 addresses sends
// nothing by itself, so the first frame is the one asked for.
func TestNetnsConfiguredInterfaceIsSilent(t *testing.T) {
	ns := nstest.NewNS(t)
	dev := nstest.TUN(t, ns, containerInterface())
	frames := make(chan []byte)
	go func() {
		defer close(frames)
		for {
			b := make([]byte, tunnel.MaxFrame)
			n, err := dev.ReadFrame([][]byte{b})
			if err != nil {
				return
			}
			frames <- b[:n]
		}
	}()
	// Router solicitations begin within a second of the interface's start
	// (RFC 4861 §10), multicast listener reports at once.
	select {
	case f := <-frames:
		t.Errorf("an idle interface sent % x", f)
	case <-time.After(1500 * time.Millisecond):
	}
	dev.Close()
	for range frames {
	}
}
