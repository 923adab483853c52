package plugin

import (
	"encoding/json"
	"maps"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
)

// dropIn returns a configuration for one of the executable's names in the bed's
// network: more is added to the keys that runtimes give to all plugins of a
// list.
func (b *bed) dropIn(name string, more map[string]any) string {
	keys := map[string]any{"cniVersion": "1.0.0", "name": "web", "type": name, "socket": b.socket, "autostart": false, "podman_x": 1}
	maps.Copy(keys, more)
	text, err := json.Marshal(keys)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// hostLocal is the key ipam as podman writes it.
var hostLocal = map[string]any{
	"type":   "host-local",
	"ranges": []any{[]any{map[string]any{"subnet": "10.88.0.0/24"}}, []any{map[string]any{"subnet": "fd88::/64"}}},
	"routes": []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}},
}

// inside is the first interface of a result that is in a container.
func inside(r *types100.Result) *types100.Interface {
	for _, f := range r.Interfaces {
		if f.Sandbox != "" {
			return f
		}
	}
	return &types100.Interface{}
}

// TestNetnsBridge: under the reference's name the plugin does what a list for
// the reference asks for, and DEL leaves nothing.
func TestNetnsBridge(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	before := b.world("")
	conf := map[string]any{"isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": hostLocal}
	r, err := b.runAs(nameBridge, cmdAdd, b.dropIn(nameBridge, conf), nil)
	if err != nil {
		t.Fatal(err)
	}
	link := containerLink(t, b.ctr)
	if got := link.Attrs().HardwareAddr.String(); deviceKind(link) != "tap" || got != inside(r).Mac {
		t.Errorf("a %s with MAC address %s, reported %s", deviceKind(link), got, inside(r).Mac)
	}
	if len(r.IPs) != 2 || r.IPs[0].Gateway.String() != "10.88.0.1" || r.IPs[1].Gateway.String() != "fd88::1" || len(r.Routes) != 2 {
		t.Errorf("addresses %v, routes %v", r.IPs, r.Routes)
	}
	if !r.DNS.IsEmpty() {
		t.Errorf("DNS %+v: the runtime would use it instead of the host's", r.DNS)
	}
	conf["prevResult"] = r
	if _, err := b.runAs(nameBridge, cmdCheck, b.dropIn(nameBridge, conf), nil); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if _, err := b.runAs(nameBridge, cmdDel, b.dropIn(nameBridge, conf), nil); err != nil {
		t.Errorf("DEL: %v", err)
	}
	if diff := cmp.Diff(before, b.world("")); diff != "" {
		t.Errorf("DEL left something (-before +after)\n%s", diff)
	}
}

// TestNetnsBridgeInternal: without ipMasq there is no way out, and no default
// route that nobody asked for.
func TestNetnsBridgeInternal(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	ipam := maps.Clone(hostLocal)
	delete(ipam, "routes")
	r, err := b.runAs(nameBridge, cmdAdd, b.dropIn(nameBridge, map[string]any{"ipam": ipam}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Routes) != 0 {
		t.Errorf("routes %v", r.Routes)
	}
	n, err := b.client.Network(t.Context(), "web")
	if err != nil || !n.Internal {
		t.Errorf("internal %v, %v", n.Internal, err)
	}
}

// TestNetnsBridgeWithoutIPAM: an interface without addresses comes up, is told
// of as it is, and goes.
func TestNetnsBridgeWithoutIPAM(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	before := b.world("")
	conf := map[string]any{"mtu": 1400}
	r, err := b.runAs(nameBridge, cmdAdd, b.dropIn(nameBridge, conf), nil)
	if err != nil {
		t.Fatal(err)
	}
	a := containerLink(t, b.ctr).Attrs()
	if len(r.IPs) > 0 || len(r.Routes) > 0 || r.Interfaces[0].Mac != a.HardwareAddr.String() || a.MTU != 1400 || a.OperState.String() == "down" {
		t.Errorf("%+v: %+v", r, a)
	}
	conf["prevResult"] = r
	for _, verb := range []string{cmdCheck, cmdDel} {
		if _, err := b.runAs(nameBridge, verb, b.dropIn(nameBridge, conf), nil); err != nil {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if diff := cmp.Diff(before, b.world("")); diff != "" {
		t.Errorf("DEL left something (-before +after)\n%s", diff)
	}
	delete(conf, "prevResult")
	_, err = b.runAs(nameBridge, cmdAdd, b.dropIn(nameBridge, conf), nil, "CNI_ARGS=IP=10.1.2.3")
	wantError(t, err, types.ErrInvalidNetworkConfig, "10.1.2.3", "ipam")
}

// TestNetnsBridgeDelOfWhatNeverWorked: a DEL says why when neither it nor an ADD
// can have had anything to do, and only then.
func TestNetnsBridgeDelOfWhatNeverWorked(t *testing.T) {
	b := newBed(t)
	small := map[string]any{"ipam": map[string]any{"type": "host-local", "ranges": []any{[]any{map[string]any{"subnet": "192.168.1.0/31"}}}}}
	for _, verb := range []string{cmdAdd, cmdDel} {
		_, err := b.runAs(nameBridge, verb, b.dropIn(nameBridge, small), nil)
		wantError(t, err, types.ErrInvalidNetworkConfig, "Network 192.168.1.0/31 too small to allocate from")
	}
	b.startDaemon()
	_, err := b.runAs(nameBridge, cmdDel, b.dropIn(nameBridge, small), nil)
	wantError(t, err, types.ErrInvalidNetworkConfig, "too small")
	if _, err := b.runAs(nameBridge, cmdAdd, b.dropIn(nameBridge, map[string]any{"ipam": hostLocal}), nil); err != nil {
		t.Fatal(err)
	}
	// The configuration was edited meanwhile.
	if _, err := b.runAs(nameBridge, cmdDel, b.dropIn(nameBridge, small), nil); err != nil {
		t.Error(err)
	}
	if links, err := b.client.Links(t.Context(), ""); err != nil || len(links) > 0 {
		t.Errorf("%v, %v", links, err)
	}
}
