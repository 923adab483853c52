package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// element is one plugin of a list.
type element struct {
	name string
	conf map[string]any
}

var theLink = control.LinkKey{Network: "web", Container: "c1", IfName: "eth0"}

// podmanChain is a list as podman writes it, with what its capabilities say, and
// the two plugins besides that stand in lists of others.
func podmanChain(tuningDir string) []element {
	return []element{
		{nameBridge, map[string]any{"isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": hostLocal}},
		{namePortmap, map[string]any{"snat": true, "runtimeConfig": map[string]any{"portMappings": []any{
			map[string]any{"hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
			map[string]any{"HostPort": 5353, "ContainerPort": 53, "Protocol": "udp", "HostIP": "127.0.0.1"},
		}}}},
		{nameFirewall, map[string]any{"backend": ""}},
		{nameTuning, map[string]any{"dataDir": tuningDir, "mtu": 1400, "mac": "02:00:00:00:00:42", "allmulti": true, "txQLen": 77,
			"promisc": true, "sysctl": map[string]any{"net.ipv4.ip_default_ttl": "99"}}},
		{nameBandwidth, map[string]any{"ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 9000000, "egressBurst": 900000}},
		{nameDNSName, map[string]any{"domainName": "dns.podman", "runtimeConfig": map[string]any{"aliases": map[string]any{"web": []any{"db", "c1short"}}}}},
	}
}

// chain runs ADD of all elements, and of the last one with the hook.
func (b *bed) chain(list []element, hook func(string) error) (*types100.Result, error) {
	b.t.Helper()
	var prev *types100.Result
	for n, e := range list {
		conf := maps.Clone(e.conf)
		if prev != nil {
			conf["prevResult"] = prev
		}
		var h func(string) error
		if n == len(list)-1 {
			h = hook
		}
		r, err := b.runAs(e.name, cmdAdd, b.dropIn(e.name, conf), h)
		if err != nil {
			return prev, fmt.Errorf("%s: %w", e.name, err)
		}
		prev = r
	}
	return prev, nil
}

// each runs a verb of all elements, the last one first.
func (b *bed) each(verb string, list []element, prev *types100.Result) {
	b.t.Helper()
	for _, e := range slices.Backward(list) {
		conf := maps.Clone(e.conf)
		conf["prevResult"] = prev
		if _, err := b.runAs(e.name, verb, b.dropIn(e.name, conf), nil); err != nil {
			b.t.Errorf("%s of %s: %v", verb, e.name, err)
		}
	}
}

// TestNetnsChain: the whole list gives what each of its plugins promises, CHECK
// sees when it is missing, and DEL leaves nothing.
func TestNetnsChain(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	before, dir := b.world(""), filepath.Join(t.TempDir(), "tuning")
	list := podmanChain(dir)
	r, err := b.chain(list, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := b.client.Link(t.Context(), theLink)
	if err != nil {
		t.Fatal(err)
	}
	var ports []string
	for _, p := range l.Publications {
		ports = append(ports, fmt.Sprintf("%v:%d/%s>%d", p.HostIP, p.HostPort, p.Proto, p.Port))
	}
	if diff := cmp.Diff([]string{"127.0.0.1:5353/udp>53", "0.0.0.0:8080/tcp>80", ":::8080/tcp>80"}, ports); diff != "" {
		t.Errorf("publications (-want +got)\n%s", diff)
	}
	limits := &control.Bandwidth{
		FromContainer: control.Rate{BitsPerSecond: 9000000, BurstBits: 900000}, ToContainer: control.Rate{BitsPerSecond: 8000000, BurstBits: 800000},
	}
	if diff := cmp.Diff(limits, l.Bandwidth); diff != "" {
		t.Errorf("bandwidth (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"db", "db.dns.podman", "c1short", "c1short.dns.podman"}, l.Aliases); diff != "" {
		t.Errorf("aliases (-want +got)\n%s", diff)
	}
	want := types.DNS{Nameservers: []string{"10.88.0.1", "fd88::1"}, Search: []string{"dns.podman"}}
	if diff := cmp.Diff(want, r.DNS); diff != "" {
		t.Errorf("DNS (-want +got)\n%s", diff)
	}
	a := containerLink(t, b.ctr).Attrs()
	if a.MTU != 1400 || a.HardwareAddr.String() != "02:00:00:00:00:42" || a.TxQLen != 77 || a.Promisc != 1 || a.Allmulti != 1 {
		t.Errorf("the interface has %+v", a)
	}
	if f := inside(r); f.Mac != "02:00:00:00:00:42" || f.Mtu != 1400 {
		t.Errorf("the result has %+v", f)
	}
	b.reach(t)
	b.each(cmdCheck, list, r)
	b.each(cmdDel, list, r)
	b.each(cmdDel, list, r)                                                                                  // again
	after := slices.DeleteFunc(b.world(""), func(s string) bool { return strings.HasSuffix(s, "state 06") }) // TIME_WAIT
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("DEL left something (-before +after)\n%s", diff)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("tuning left %v", left)
	}
}

// reach talks to the container through its ports, by IPv4 and IPv6, and asks
// the network for its name.
func (b *bed) reach(t *testing.T) {
	t.Helper()
	for _, network := range []string{"tcp4", "tcp6"} {
		server := nstest.Listen(t, b.ctr, network, ":80")
		go func() {
			if c, err := server.Accept(); err == nil {
				io.WriteString(c, "hello")
				c.Close()
			}
		}()
		host := map[string]string{"tcp4": "127.0.0.1:8080", "tcp6": "[::1]:8080"}[network]
		c, err := nstest.Dial(t, b.host, network, host)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(c); err != nil || string(text) != "hello" {
			t.Errorf("%s: got %q, %v", network, text, err)
		}
		c.Close()
		server.Close()
	}
	server := nstest.ListenPacket(t, b.ctr, "udp4", ":53")
	defer server.Close()
	go func() {
		buf := make([]byte, 64)
		if n, from, err := server.ReadFrom(buf); err == nil {
			server.WriteTo(buf[:n], from)
		}
	}()
	c, err := nstest.Dial(t, b.host, "udp4", "127.0.0.1:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "echo")
	buf := make([]byte, 64)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "echo" {
		t.Errorf("udp: got %q, %v", buf[:n], err)
	}
	server.Close()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return nstest.DialContext(ctx, b.ctr, network, "10.88.0.1:53")
	}}
	for _, name := range []string{"db.dns.podman.", "c1short."} {
		addrs, err := resolver.LookupHost(t.Context(), name)
		if slices.Sort(addrs); err != nil || !slices.Equal(addrs, []string{"10.88.0.2", "fd88::2"}) {
			t.Errorf("%s is %v, %v", name, addrs, err)
		}
	}
}

// TestNetnsChainUndoesEachStep: a plugin of the list that fails leaves what the
// ones before it made as they made it.
func TestNetnsChainUndoesEachStep(t *testing.T) {
	steps := map[string][]string{
		namePortmap:   {"listen", "publish"},
		nameTuning:    {"sysctl ipv4/ip_default_ttl", "MAC address 02:00:00:00:00:42", "promisc true", "MTU 1400", "allmulti true", "txQLen 77"},
		nameBandwidth: {"limit", "queue"}, nameFirewall: {"policy"},
		nameDNSName: {"names"},
	}
	dir := filepath.Join(t.TempDir(), "tuning")
	for n, e := range podmanChain(dir) {
		if steps[e.name] == nil {
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			b := newBed(t)
			b.startDaemon()
			made := podmanChain(dir)[:1]
			r, err := b.chain(made, nil)
			if err != nil {
				t.Fatal(err)
			}
			this := podmanChain(dir)[n]
			this.conf["prevResult"] = r
			before := b.linkState(t)
			for _, step := range append(steps[e.name], "print") {
				reached := false
				hook := func(done string) error {
					if done == step {
						reached = true
						return errInjected
					}
					return nil
				}
				if step == "print" {
					b.unheard(t, this)
				} else if _, err := b.runAs(this.name, cmdAdd, b.dropIn(this.name, this.conf), hook); err == nil || !reached {
					t.Errorf("step %s: reached %v, %v", step, reached, err)
				}
				if diff := cmp.Diff(before, b.linkState(t)); diff != "" {
					t.Errorf("after a failure at %q (-before +after)\n%s", step, diff)
				}
			}
		})
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("tuning left %v", left)
	}
}

// unheard runs an ADD whose result nobody reads.
func (b *bed) unheard(t *testing.T, e element) {
	t.Helper()
	var stderr strings.Builder
	inv := &invocation{Process: Process{
		Name: e.name, Env: []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=" + b.ctrPath},
		Stdin: strings.NewReader(b.dropIn(e.name, e.conf)), Stdout: brokenPipe{}, Stderr: &stderr, Caller: calledBy("test", 0),
	}, version: newestVersion}
	if err := b.host.Do(func() error { return inv.run(t.Context()) }); err == nil {
		t.Error("no error although nobody read the result")
	}
	if stderr.Len() > 0 {
		t.Error(stderr.String())
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// linkState is everything that a chained plugin may change.
func (b *bed) linkState(t *testing.T) []string {
	t.Helper()
	l, err := b.client.Link(t.Context(), theLink)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	n, err := b.client.Network(t.Context(), theLink.Network)
	if err != nil {
		t.Fatal(err)
	}
	a := containerLink(t, b.ctr).Attrs()
	ttl := ""
	nstest.In(t, b.ctr, func() (err error) { ttl, err = netns.Sysctl("ipv4/ip_default_ttl"); return err })
	return append(b.world(""), string(text), n.IngressPolicy, ttl,
		fmt.Sprint(a.MTU, a.HardwareAddr, a.TxQLen, a.Promisc, a.Allmulti))
}

// TestNetnsChainRefusesForeign: what has no effect on another plugin's interface
// is refused, and says what to do.
func TestNetnsChainRefusesForeign(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	// Of the network there is, with links of others.
	if _, err := b.client.CreateNetwork(t.Context(), control.CreateNetworkRequest{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	nstest.In(t, b.ctr, func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}})
	})
	prev := &types100.Result{
		CNIVersion: "1.0.0", Interfaces: []*types100.Interface{{Name: "cni0"}, {Name: "eth0", Sandbox: b.ctrPath}},
		IPs: []*types100.IPConfig{{Interface: new(1), Address: net.IPNet{IP: net.IPv4(10, 1, 0, 2).To4(), Mask: net.CIDRMask(24, 32)}}},
	}
	before := b.world("")
	for _, e := range podmanChain(t.TempDir())[1:] {
		if e.name == nameTuning {
			continue // it works on any interface
		}
		_, err := b.runAs(e.name, cmdAdd, b.dropIn(e.name, e.conf), nil)
		if e.name != nameBandwidth { // it asks the daemon first
			wantError(t, err, types.ErrInvalidNetworkConfig, "prevResult", e.name)
		}
		conf := maps.Clone(e.conf)
		conf["prevResult"] = prev
		_, err = b.runAs(e.name, cmdAdd, b.dropIn(e.name, conf), nil)
		wantError(t, err, types.ErrInvalidNetworkConfig, e.name, "eth0", "web", "usernet's bridge")
		if _, err := b.runAs(e.name, cmdDel, b.dropIn(e.name, conf), nil); err != nil {
			t.Errorf("DEL of %s: %v", e.name, err)
		}
	}
	if diff := cmp.Diff(before, b.world("")); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
}

// TestNetnsChainAfterNative: the names also amend what a plugin of type usernet
// made, and their DEL takes it back by itself.
func TestNetnsChainAfterNative(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	prev, err := b.run(cmdAdd, b.config(map[string]any{
		"ingressPolicy": "open", // firewall's default, which is the network's and stays
		"runtimeConfig": map[string]any{"aliases": []string{"own"}},
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	before := b.linkState(t)
	for _, e := range podmanChain(t.TempDir()) {
		if e.name == nameBridge || e.name == nameTuning { // a TUN has no MAC address
			continue
		}
		e.conf["prevResult"] = prev
		if _, err := b.runAs(e.name, cmdAdd, b.dropIn(e.name, e.conf), nil); err != nil {
			t.Errorf("%s: %v", e.name, err)
			continue
		}
		if _, err := b.runAs(e.name, cmdDel, b.dropIn(e.name, e.conf), nil); err != nil {
			t.Errorf("DEL of %s: %v", e.name, err)
		}
		if diff := cmp.Diff(before, b.linkState(t)); diff != "" {
			t.Errorf("DEL of %s left something (-before +after)\n%s", e.name, diff)
		}
	}
}

// TestNetnsLoopback brings lo up and down.
func TestNetnsLoopback(t *testing.T) {
	b := newBed(t)
	nstest.In(t, b.ctr, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(lo)
	})
	conf := `{"cniVersion":"0.3.1","name":"cni-loopback","type":"loopback"}`
	lo := func(verb string) (*types100.Result, error) {
		return b.runAs(nameLoopback, verb, conf, nil, "CNI_IFNAME=lo")
	}
	r, err := lo(cmdAdd)
	if err != nil || len(r.IPs) != 2 || r.IPs[0].Address.String() != "127.0.0.1/8" || r.IPs[1].Address.String() != "::1/128" || r.Interfaces[0].Name != "lo" {
		t.Fatalf("%+v, %v", r, err)
	}
	conf = `{"cniVersion":"1.0.0","name":"cni-loopback","type":"loopback"}`
	if _, err := lo(cmdCheck); err != nil {
		t.Error(err)
	}
	for range 2 {
		if _, err := lo(cmdDel); err != nil {
			t.Error(err)
		}
	}
	_, err = lo(cmdCheck)
	wantError(t, err, ErrAttachment, "lo", "down")
}
