package plugin

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// kernelRoutes describes a namespace's routes to some destination.
func kernelRoutes(t *testing.T, ns *netns.Handle, dst string) []string {
	t.Helper()
	n := ipNet(netip.MustParsePrefix(dst))
	family := netlink.FAMILY_V6
	if n.IP.To4() != nil {
		family = netlink.FAMILY_V4
	}
	var all []string
	nstest.In(t, ns, func() error {
		//nolint:forbidigo // nothing else changes this namespace
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: &n, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			link, err := netlink.LinkByIndex(r.LinkIndex)
			if err != nil {
				return err
			}
			all = append(all, fmt.Sprintf("via %v dev %s table %d metric %d scope %d mtu %d advmss %d", r.Gw, link.Attrs().Name, r.Table, r.Priority, r.Scope, r.MTU, r.AdvMSS))
		}
		return err
	})
	return all
}

// TestNetnsRoutes: the routes of ipam and those of the configuration are in the
// kernel with everything that they say, the result tells it in each version, and
// CHECK notices a change.
func TestNetnsRoutes(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	keys := map[string]any{
		"mtu": 1400,
		"routes": []any{
			map[string]any{"dst": "10.9.0.0/16", "gw": "10.88.0.254", "mtu": 1300, "advmss": 1200, "priority": 50},
			map[string]any{"dst": "10.10.0.0/16", "table": 77, "scope": 253},
			map[string]any{"dst": "fd09::/32", "mtu": 1300, "advmss": 1200, "priority": 50},
			map[string]any{"dst": "fd10::/32", "table": 77},
			map[string]any{"dst": "0.0.0.0/0", "gw": "10.88.0.1", "table": 77},
		},
	}
	for _, version := range []string{"1.1.0", "1.0.0", "0.4.0"} {
		keys["cniVersion"] = version
		delete(keys, "prevResult")
		r, err := b.run(cmdAdd, b.config(keys), nil)
		if err != nil {
			t.Fatal(err)
		}
		for dst, want := range map[string]string{
			"10.9.0.0/16":  "[via 10.88.0.254 dev eth0 table 254 metric 50 scope 0 mtu 1300 advmss 1200]",
			"10.10.0.0/16": "[via <nil> dev eth0 table 77 metric 0 scope 253 mtu 0 advmss 0]",
			"fd09::/32":    "[via fd88::1 dev eth0 table 254 metric 50 scope 0 mtu 1300 advmss 1200]",
			"fd10::/32":    "[via fd88::1 dev eth0 table 77 metric 1024 scope 0 mtu 0 advmss 0]",
			"0.0.0.0/0":    "[via 10.88.0.1 dev eth0 table 254 metric 0 scope 0 mtu 0 advmss 0 via 10.88.0.1 dev eth0 table 77 metric 0 scope 0 mtu 0 advmss 0]",
			"::/0":         "[via fd88::1 dev eth0 table 254 metric 1024 scope 0 mtu 0 advmss 0]",
		} {
			if got := fmt.Sprint(kernelRoutes(t, b.ctr, dst)); got != want && !sameWords(got, want) {
				t.Errorf("%s: routes to %s\n%s, want\n%s", version, dst, got, want)
			}
		}
		if len(r.Routes) != 7 {
			t.Errorf("%s: the result has the routes %v", version, r.Routes)
		}
		// The library leaves what 1.1.0 brought in older results, where readers
		// that do not know it pass it by.
		if told := r.Routes[0]; told.MTU != 1300 || told.AdvMSS != 1200 || told.Priority != 50 {
			t.Errorf("%s: the result tells %+v", version, told)
		}
		keys["prevResult"] = r
		check := func() error {
			_, err := b.run(cmdCheck, b.config(keys), nil)
			return err
		}
		if err := check(); err != nil {
			t.Errorf("%s: CHECK right after ADD: %v", version, err)
		}
		nstest.In(t, b.ctr, func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			_, dst, _ := net.ParseCIDR("10.9.0.0/16")
			return netlink.RouteReplace(&netlink.Route{
				LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.IPv4(10, 88, 0, 253), MTU: 1300, AdvMSS: 1200, Priority: 50, Flags: int(netlink.FLAG_ONLINK)})
		})
		wantError(t, check(), ErrAttachment, "10.9.0.0/16", "missing")
		delete(keys, "prevResult")
		if _, err := b.run(cmdDel, b.config(keys), nil); err != nil {
			t.Error(err)
		}
	}
}

// sameWords compares texts whose parts the kernel may list in any order.
func sameWords(a, b string) bool {
	count := func(s string) map[string]int {
		words := map[string]int{}
		for _, w := range strings.Fields(strings.Trim(s, "[]")) {
			words[w]++
		}
		return words
	}
	return cmp.Equal(count(a), count(b))
}

// TestNetnsSecondNetwork: both networks bring default routes by ipam, as
// host-local's configurations do; the container uses the first's and has the
// second's when that one goes, and each network's CHECK is content.
func TestNetnsSecondNetwork(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	defaults := []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}}
	config := func(name, v4, v6 string, more map[string]any) string {
		keys := map[string]any{"name": name, "ipam": map[string]any{"type": "usernet", "routes": defaults,
			"ranges": []any{[]any{map[string]any{"subnet": v4}}, []any{map[string]any{"subnet": v6}}}}}
		for k, v := range more {
			keys[k] = v
		}
		return b.config(keys)
	}
	first := func(more map[string]any) string { return config("one", "10.81.0.0/24", "fd81::/64", more) }
	second := func(more map[string]any) string { return config("two", "10.82.0.0/24", "fd82::/64", more) }
	r1, err := b.run(cmdAdd, first(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	r2, err := b.run(cmdAdd, second(nil), nil, "CNI_IFNAME=net1")
	if err != nil {
		t.Fatal(err)
	}
	for dst, to := range map[string]string{"0.0.0.0/0": "192.0.2.1", "::/0": "2001:db8::1"} {
		if got := kernelRoutes(t, b.ctr, dst); len(got) != 2 {
			t.Errorf("routes to %s: %v", dst, got)
		}
		nstest.In(t, b.ctr, func() error {
			routes, err := netlink.RouteGet(net.ParseIP(to))
			if err != nil {
				return err
			}
			link, err := netlink.LinkByIndex(routes[0].LinkIndex)
			if err == nil && link.Attrs().Name != "eth0" {
				t.Errorf("%s leaves by %s, want eth0", to, link.Attrs().Name)
			}
			return err
		})
	}
	for _, c := range []struct {
		config string
		ifName string
	}{{first(map[string]any{"prevResult": r1}), "eth0"}, {second(map[string]any{"prevResult": r2}), "net1"}} {
		if _, err := b.run(cmdCheck, c.config, nil, "CNI_IFNAME="+c.ifName); err != nil {
			t.Errorf("CHECK of %s: %v", c.ifName, err)
		}
	}
	if _, err := b.run(cmdDel, first(nil), nil); err != nil {
		t.Fatal(err)
	}
	for _, dst := range []string{"0.0.0.0/0", "::/0"} {
		if got := kernelRoutes(t, b.ctr, dst); len(got) != 1 || !strings.Contains(got[0], "dev net1") {
			t.Errorf("after the first network's DEL: routes to %s: %v", dst, got)
		}
	}
}

// TestNetnsSysctl: what the configuration says is set, args.cni beats it, the
// interface's own are found by its mark, and CHECK compares.
func TestNetnsSysctl(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	keys := map[string]any{
		"sysctl": map[string]string{
			"net.ipv4.ip_local_port_range":           "20000 30000",
			"net.ipv4.conf.IFNAME.rp_filter":         "2",
			"net/ipv6/conf/IFNAME/hop_limit":         "9",
			"net.ipv4.tcp_fin_timeout":               "33",
			"net.ipv4.conf.all.accept_local":         "1",
			"net.ipv4.ip_unprivileged_port_start":    "80",
			"net.ipv6.conf.default.accept_redirects": "0",
		},
		"args": map[string]any{"cni": map[string]any{"sysctl": map[string]string{"net.ipv4.tcp_fin_timeout": "44"}}},
	}
	r, err := b.run(cmdAdd, b.config(keys), nil)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"ipv4/ip_local_port_range": "20000\t30000", "ipv4/conf/eth0/rp_filter": "2", "ipv6/conf/eth0/hop_limit": "9", "ipv4/tcp_fin_timeout": "44",
	} {
		nstest.In(t, b.ctr, func() error {
			if got, err := netns.Sysctl(path); err != nil || got != want {
				t.Errorf("%s is %q, %v, want %q", path, got, err, want)
			}
			return nil
		})
	}
	keys["prevResult"] = r
	if _, err := b.run(cmdCheck, b.config(keys), nil); err != nil {
		t.Error(err)
	}
	nstest.In(t, b.ctr, func() error { return netns.SetSysctl("ipv4/tcp_fin_timeout", "45") })
	_, err = b.run(cmdCheck, b.config(keys), nil)
	wantError(t, err, ErrAttachment, "net.ipv4.tcp_fin_timeout", `"45"`, `"44"`)
}

// TestNetnsSettingsRefused: what cannot be is refused, and what was done before
// it is taken back.
func TestNetnsSettingsRefused(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	before := b.world("")
	for _, test := range []struct {
		more  map[string]any
		words []string
	}{
		{map[string]any{"sysctl": map[string]string{"kernel.hostname": "x"}}, []string{"sysctl", "kernel.hostname", "net."}},
		{map[string]any{"sysctl": map[string]string{"net.ipv4.tcp_fin_timeout": "33", "net.ipv4.zzz": "1"}}, []string{"net.ipv4.zzz", "no such sysctl"}},
		{map[string]any{"sysctl": map[string]string{"net.ipv4.tcp_fin_timeout": "33", "net.ipv4.tcp_syncookies": "yes"}}, []string{"tcp_syncookies", "yes", "refuses"}},
		{map[string]any{"sysctl": map[string]string{"net/../kernel/hostname": "x"}}, []string{"net/../kernel"}},
		{map[string]any{"sysctl": map[string]string{"net.ipv4.tcp_fin_timeout": "1\n2"}}, []string{"tcp_fin_timeout", "one line"}},
		{map[string]any{"sysctl": map[string]any{"net.ipv4.tcp_fin_timeout": 33}}, []string{"sysctl", "string"}},
		{map[string]any{"args": map[string]any{"cni": map[string]any{"sysctl": map[string]string{"vm.swappiness": "1"}}}}, []string{"vm.swappiness"}},
		{map[string]any{"routes": []any{map[string]any{"gw": "10.88.0.1"}}}, []string{"routes", "dst"}},
		{map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.1/8"}}}, []string{"routes", "10.0.0.0/8"}},
		{map[string]any{"routes": []any{map[string]any{"dst": "fd00::/8", "gw": "10.88.0.1"}}}, []string{"families"}},
		{map[string]any{"routes": []any{map[string]any{"dst": "fd00::/8", "mtu": 1000}}}, []string{"1280"}},
		{map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8", "priority": -1}}}, []string{"priority"}},
		{map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8", "metric": 1}}}, []string{"metric"}},
		{map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8", "gw": "10.88.0.1", "scope": 253}}}, []string{"scope 253"}},
		{map[string]any{"routes": "10.0.0.0/8"}, []string{"routes"}},
		{map[string]any{"mtu": 1279}, []string{"mtu", "1280"}},
		{map[string]any{"publish": map[string]any{"defaultHostIP": "localhost"}}, []string{"publish.defaultHostIP", "localhost"}},
		{map[string]any{"publish": map[string]any{"modus": "listen"}}, []string{"publish", "modus"}},
	} {
		_, err := b.run(cmdAdd, b.config(test.more), nil)
		wantError(t, err, types.ErrInvalidNetworkConfig, test.words...)
		if diff := cmp.Diff(before, b.world("")); diff != "" {
			t.Errorf("%v: %s", test.more, diff)
		}
	}
	_, err := b.run(cmdAdd, b.config(map[string]any{"publish": map[string]any{"mode": "bind"}}), nil)
	wantError(t, err, types.ErrUnsupportedField, "publish.mode", "bind", "redirect")
	sctp := map[string]any{"portMappings": []any{map[string]any{"hostPort": 80, "containerPort": 80, "protocol": "sctp"}}}
	for _, mode := range []string{"auto", "listen", "redirect", "none"} {
		_, err := b.run(cmdAdd, b.config(map[string]any{"publish": map[string]any{"mode": mode}, "runtimeConfig": sctp}), nil)
		wantError(t, err, ErrCapability, "sctp")
	}
}

// TestNetnsHostIPFamily: a container without IPv6 is reached by a port of the
// host's IPv6, as a mapping or the default names it, and sees the gateway.
func TestNetnsHostIPFamily(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	v4only := map[string]any{"type": "usernet", "ranges": []any{[]any{map[string]any{"subnet": "10.88.0.0/24"}}}}
	serveAll(t, b.ctr, 80)
	for _, mode := range []string{"listen", "redirect"} {
		for _, test := range []struct{ named, byDefault string }{{"::1", "127.0.0.1"}, {"", "::1"}} {
			config := b.config(map[string]any{"publish": map[string]any{"mode": mode, "defaultHostIP": test.byDefault}, "ipam": v4only,
				"runtimeConfig": map[string]any{"portMappings": []any{mapping(8080, "tcp", test.named), mapping(8080, "udp", test.named)}}})
			if _, err := b.run(cmdAdd, config, nil); err != nil {
				t.Fatal(err)
			}
			for _, proto := range []string{"tcp", "udp"} {
				if got := nstest.Ask(t, b.host, proto, "[::1]:8080"); got != "container 10.88.0.1" {
					t.Errorf("%s, hostIP %q, default %q: %s: %q", mode, test.named, test.byDefault, proto, got)
				}
			}
			if _, err := b.run(cmdDel, config, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	config := b.config(map[string]any{"publish": map[string]any{"defaultHostIP": "127.0.0.1"}, "runtimeConfig": map[string]any{
		"portMappings": []any{mapping(8080, "tcp", "")}}})
	if _, err := b.run(cmdAdd, config, nil); err != nil {
		t.Fatal(err)
	}
	if got := nstest.Ask(t, b.host, "tcp", "127.0.0.1:8080"); got != "container 10.88.0.1" {
		t.Errorf("at defaultHostIP: %q", got)
	}
	if got := nstest.Ask(t, b.host, "tcp", "[::1]:8080"); !strings.Contains(got, "refused") {
		t.Errorf("beside defaultHostIP: %q", got)
	}
}

// TestNetnsQueueOfLimitedLinks: what waits for a limited rate does not wait for
// seconds, be the limit the interface's from the beginning or a later plugin's.
func TestNetnsQueueOfLimitedLinks(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	limits := map[string]any{"egressRate": 6000000, "egressBurst": 600000}
	queue := func() int { return containerLink(t, b.ctr).Attrs().TxQLen }
	if _, err := b.run(cmdAdd, b.config(limits), nil); err != nil || queue() != 50 {
		t.Errorf("%v; the queue has %d frames, want 50", err, queue())
	}
	if _, err := b.run(cmdDel, b.config(limits), nil); err != nil {
		t.Fatal(err)
	}
	list := []element{{nameBridge, map[string]any{"isGateway": true, "ipam": hostLocal}}, {nameBandwidth, limits}}
	if _, err := b.chain(list, nil); err != nil || queue() != 50 {
		t.Errorf("%v; after a plugin of the list the queue has %d frames, want 50", err, queue())
	}
	b.each(cmdDel, list, nil)
}

// TestNetnsPacing: TCP of a container is not paced on its way to the switch, but
// where the host forwards for others it is as the host has it.
func TestNetnsPacing(t *testing.T) {
	nstest.RequireBBR(t)
	b := newBed(t)
	b.startDaemon()
	const key = "ipv4/tcp_congestion_control"
	for want, keys := range map[string]map[string]any{
		"reno": {"name": "near"},
		"bbr":  {"name": "far", "hostAccess": map[string]any{"enabled": true, "forward": true}},
	} {
		got := ""
		nstest.In(t, b.ctr, func() error { return netns.SetSysctl(key, "bbr") })
		conf := b.config(keys)
		if _, err := b.run(cmdAdd, conf, nil); err != nil {
			t.Fatal(err)
		}
		nstest.In(t, b.ctr, func() (err error) { got, err = netns.Sysctl(key); return err })
		if got != want {
			t.Errorf("network %s: %q, want %q", keys["name"], got, want)
		}
		if _, err := b.run(cmdDel, conf, nil); err != nil {
			t.Fatal(err)
		}
	}
}
