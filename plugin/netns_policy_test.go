package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// box is a container that an ADD has attached.
type box struct {
	ns *netns.Handle
	*types100.Result
}

// addBox attaches a container in a namespace of its own.
func (b *bed) addBox(id, config string) box {
	b.t.Helper()
	return b.addBoxAs(nameNative, id, config)
}

// addBoxAs is addBox by one of the executable's names.
func (b *bed) addBoxAs(name, id, config string) box {
	b.t.Helper()
	ns := nstest.NewNS(b.t)
	r, err := b.runAs(name, cmdAdd, config, nil, "CNI_CONTAINERID="+id, "CNI_NETNS="+nstest.Path(b.t, ns))
	if err != nil {
		b.t.Fatal(err)
	}
	return box{ns, r}
}

// pings reports whether one container's ping of another is answered, by both
// families or none, and what the refusals said.
func (b *bed) pings(from, to box) (answered bool, refusal string) {
	b.t.Helper()
	ok := 0
	for _, ip := range to.IPs {
		out, err := nstest.TryExec(b.t, from.ns, "ping", "-n", "-c1", "-W5", ip.Address.IP.String())
		if err == nil {
			ok++
		}
		refusal += out
	}
	if ok != 0 && ok != len(to.IPs) {
		b.t.Errorf("%d of %d families are answered", ok, len(to.IPs))
	}
	return ok > 0, refusal
}

// TestNetnsPolicy: the keys of a configuration join networks and keep
// containers apart; the last ADD's word counts.
func TestNetnsPolicy(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	config := func(name string, third int, more map[string]any) string {
		more["name"] = name
		more["ipam"] = map[string]any{"type": "usernet", "ranges": []any{
			[]any{map[string]any{"subnet": fmt.Sprintf("10.%d.0.0/24", third)}}, []any{map[string]any{"subnet": fmt.Sprintf("fd%d::/64", third)}}}}
		return b.config(more)
	}
	x := b.addBox("x", config("x", 81, map[string]any{"ingressPolicy": "open"}))
	y := b.addBox("y", config("y", 82, map[string]any{}))
	if ok, said := b.pings(x, y); ok || !strings.Contains(said, "Packet filtered") || !strings.Contains(said, "Administratively prohibited") {
		t.Errorf("open to same-bridge: answered %v, said %s", ok, said)
	}
	y2 := b.addBox("y2", config("y", 82, map[string]any{"ingressPolicy": "open"}))
	for _, pair := range [][2]box{{x, y}, {y, x}, {y2, x}, {y, y2}} {
		if ok, said := b.pings(pair[0], pair[1]); !ok {
			t.Errorf("open to open: %s", said)
		}
	}
	y3 := b.addBox("y3", config("y", 82, map[string]any{"portIsolation": true}))
	for _, c := range []struct {
		from, to box
		want     bool
	}{{y, y2, false}, {y3, y, false}, {x, y3, true}, {y3, x, true}} {
		if ok, said := b.pings(c.from, c.to); ok != c.want {
			t.Errorf("ports isolated: answered %v, said %s", ok, said)
		}
	}
	n, err := b.client.Network(t.Context(), "y")
	if err != nil || n.IngressPolicy != control.IngressOpen || !n.PortIsolation || !n.Hairpin {
		t.Errorf("%+v, %v", n, err)
	}
	b.addBox("z", config("y", 82, map[string]any{"ingressPolicy": "isolated", "portIsolation": false, "hairpin": false}))
	for _, pair := range [][2]box{{x, y}, {y, x}, {y, y2}} {
		if ok, _ := b.pings(pair[0], pair[1]); ok {
			t.Error("isolated: answered")
		}
	}
	drops := map[string]uint64{}
	stats, err := b.client.Stats(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stats.Networks {
		for reason, count := range s.Drops {
			drops[reason] += count
		}
	}
	if drops["policy_port_isolation"] == 0 || drops["policy_other_network"] == 0 {
		t.Errorf("drops %v", drops)
	}
	wantRefusedFlow(t, b, "port_isolation")
	wantRefusedFlow(t, b, "other_network")
}

// wantRefusedFlow looks for a refusal among the flows.
func wantRefusedFlow(t *testing.T, b *bed, reason string) {
	t.Helper()
	flows, err := b.client.Flows(t.Context(), control.FlowQuery{})
	if err != nil {
		t.Fatal(err)
	}
	families := map[bool]bool{}
	for _, f := range flows {
		if f.Verdict == "DROPPED" && f.Reason == reason {
			families[f.Destination.Addr().Is4()] = true
		}
	}
	if len(families) != 2 {
		t.Errorf("flows refused for %s: families %v of %+v", reason, families, flows)
	}
}

// TestNetnsFirewall: a list without isolation opens its network, one with it
// closes it, CHECK sees the difference, and what an ADD did not make it leaves
// alone.
func TestNetnsFirewall(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	prev, err := b.run(cmdAdd, b.config(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	firewall := func(verb, policy string) error {
		conf := map[string]any{"prevResult": prev}
		if policy != "" {
			conf["ingressPolicy"] = policy
		}
		_, err := b.runAs(nameFirewall, verb, b.dropIn(nameFirewall, conf), nil)
		return err
	}
	for policy, want := range map[string]string{"": "open", "open": "open", "same-bridge": "same-bridge", "isolated": "isolated"} {
		if err := firewall(cmdAdd, policy); err != nil {
			t.Fatal(err)
		}
		n, err := b.client.Network(t.Context(), "web")
		if err != nil || n.IngressPolicy != want {
			t.Errorf("%q: %s, want %s, %v", policy, n.IngressPolicy, want, err)
		}
		if err := firewall(cmdCheck, policy); err != nil {
			t.Errorf("CHECK of %q: %v", policy, err)
		}
	}
	if err := firewall(cmdAdd, "same-bridge"); err != nil {
		t.Fatal(err)
	}
	wantError(t, firewall(cmdCheck, "open"), ErrAttachment, "web", "same-bridge", "open")
	wantError(t, firewall(cmdAdd, "closed"), types.ErrUnsupportedField, "ingressPolicy", "closed")
	if _, err := b.run(cmdDel, b.config(nil), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.client.RemoveNetwork(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	_, err = b.client.CreateNetwork(t.Context(), control.CreateNetworkRequest{
		Name: "web", Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24"), netip.MustParsePrefix("fd88::/64")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if prev, err = b.run(cmdAdd, b.config(nil), nil); err != nil {
		t.Fatal(err)
	}
	if err := firewall(cmdAdd, ""); err != nil {
		t.Error(err)
	}
	if n, err := b.client.Network(t.Context(), "web"); err != nil || n.IngressPolicy != control.IngressSameBridge {
		t.Errorf("a network that nobody opened is %s, %v", n.IngressPolicy, err)
	}
	wantError(t, firewall(cmdAdd, "open"), types.ErrInvalidNetworkConfig, "ingressPolicy", "open", "same-bridge")
}

// TestNetnsHairpin: kernels of containers reach published ports at the host's
// addresses by TCP and UDP, their own among them, and nothing else of the host.
func TestNetnsHairpin(t *testing.T) {
	b := newBed(t)
	outside := nstest.NewNS(t)
	nstest.Veth(t, b.host, outside, "192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "2001:db8::2/64")
	b.startDaemon()
	ports := map[string]any{"portMappings": []any{
		map[string]any{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
		map[string]any{"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
	}}
	server := b.addBox("server", b.config(map[string]any{"runtimeConfig": ports}))
	client := b.addBox("client", b.config(nil))
	other := b.addBox("other", b.config(map[string]any{"name": "other", "ipam": map[string]any{"type": "usernet", "ranges": []any{
		[]any{map[string]any{"subnet": "10.87.0.0/24"}}, []any{map[string]any{"subnet": "fd87::/64"}}}}}))
	go echoTCP(nstest.Listen(t, server.ns, "tcp", "[::]:80"))
	go echoUDP(nstest.ListenPacket(t, server.ns, "udp", "[::]:80"))
	nstest.Listen(t, b.host, "tcp", "[::]:9090") // a service of the host's
	for _, host := range []string{"192.0.2.1", "[2001:db8::1]"} {
		for _, from := range []box{client, server, other} {
			for _, network := range []string{"tcp", "udp"} {
				if err := echoes(t, from.ns, network, host+":8080", 200_000); err != nil {
					t.Errorf("%s to %s: %v", network, host, err)
				}
			}
			if err := echoes(t, from.ns, "tcp", host+":9090", 1); err == nil {
				t.Errorf("the host's own service at %s is reached", host)
			}
		}
	}
	if _, err := b.client.AmendNetwork(t.Context(), "web", control.AmendNetworkRequest{PolicyWishes: control.PolicyWishes{Hairpin: new(false)}}); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"192.0.2.1", "[2001:db8::1]"} {
		if err := echoes(t, client.ns, "tcp", host+":8080", 1); err == nil {
			t.Errorf("hairpin false: %s is reached", host)
		}
	}
	wantRefusedFlow(t, b, "hairpin")
}

// TestNetnsHairpinMode: behind a bridge whose hairpinMode is false a container
// does not reach its own published ports, and all others do, as with the
// reference plugins bridge and portmap where the kernel has bridge netfilter.
func TestNetnsHairpinMode(t *testing.T) {
	b := newBed(t)
	outside := nstest.NewNS(t)
	nstest.Veth(t, b.host, outside, "192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "2001:db8::2/64")
	b.startDaemon()
	boxes := map[bool]box{}
	for name, hairpin := range map[string]bool{"with": true, "without": false} {
		port := hairpinModePort(hairpin)
		x := b.addBoxAs(nameBridge, name, b.config(map[string]any{
			"type": nameBridge, "isDefaultGateway": true, "ipMasq": true, "hairpinMode": hairpin,
			"ipam": map[string]any{"type": "host-local", "ranges": []any{
				[]any{map[string]any{"subnet": "10.88.0.0/24"}}, []any{map[string]any{"subnet": "fd88::/64"}}}},
			"runtimeConfig": map[string]any{"portMappings": []any{
				map[string]any{"hostPort": port, "containerPort": 80, "protocol": "tcp"},
				map[string]any{"hostPort": port, "containerPort": 80, "protocol": "udp"},
			}},
		}))
		boxes[hairpin] = x
		go echoTCP(nstest.Listen(t, x.ns, "tcp", "[::]:80"))
		go echoUDP(nstest.ListenPacket(t, x.ns, "udp", "[::]:80"))
	}
	for _, host := range []string{"192.0.2.1", "[2001:db8::1]", "10.88.0.1", "[fd88::1]"} {
		for _, network := range []string{"tcp", "udp"} {
			for from, x := range boxes {
				for _, to := range []bool{true, false} {
					address := fmt.Sprintf("%s:%d", host, hairpinModePort(to))
					own := from == to && !from
					if err := echoes(t, x.ns, network, address, 1000); (err != nil) != own {
						t.Errorf("from hairpinMode %v to hairpinMode %v, %s %s: %v", from, to, network, address, err)
					}
				}
			}
		}
	}
	wantRefusedFlow(t, b, "hairpin")
}

// hairpinModePort is where the container with a hairpinMode is published.
func hairpinModePort(hairpin bool) int {
	if hairpin {
		return 8080
	}
	return 8081
}

// echoTCP and echoUDP send back what they get, until their sockets close.
func echoTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // the client judges what comes back
		}()
	}
}

func echoUDP(c net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(buf[:n], from) // likewise
	}
}

// echoes sends size bytes, by UDP at most 1,000, and reads them back.
func echoes(t *testing.T, ns *netns.Handle, network, address string, size int) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := nstest.DialContext(ctx, ns, network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if network == "udp" {
		size = min(size, 1000)
	}
	sent := bytes.Repeat([]byte("usernet "), size/8+1)[:size]
	written := make(chan error, 1)
	go func() { _, err := c.Write(sent); written <- err }()
	got := make([]byte, size)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return errors.New("other bytes came back")
	}
	return <-written
}
