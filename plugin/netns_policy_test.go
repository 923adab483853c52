package plugin

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

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
	ns := nstest.NewNS(b.t)
	r, err := b.run(cmdAdd, config, nil, "CNI_CONTAINERID="+id, "CNI_NETNS="+nstest.Path(b.t, ns))
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
