package plugin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/control"
)

// podmanBridge is what podman 4.3 writes for a network of two families, with
// the keys that it and nerdctl leave in.
const podmanBridge = `{"cniVersion":"0.4.0","name":"podman1","type":"bridge","bridge":"cni-podman1","isGateway":true,
	"ipMasq":true,"hairpinMode":true,"podman_labels":{"a":"b"},"nerdctlID":"x","forceAddress":true,"ipMasqBackend":"nftables",
	"enabledad":true,"macspoofchk":true,"preserveDefaultVlan":false,
	"ipam":{"type":"host-local","dataDir":"/nowhere","nerdctl":1,
		"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],
		"ranges":[[{"subnet":"10.89.0.0/24","gateway":"10.89.0.1"}],[{"subnet":"fd89::/64","gateway":"fd89::1"}]]},
	"capabilities":{"ips":true}}`

func TestBridgeTakesWhatRuntimesWrite(t *testing.T) {
	c, err := bridgeSchema().parse([]byte(podmanBridge), strict)
	if err != nil {
		t.Fatal(err)
	}
	if c.Device != control.DeviceTAP || c.Internal || c.IPAM.Type != nativeIPAM || len(c.IPAM.Sets) != 2 || len(c.IPAM.Routes) != 2 {
		t.Errorf("%+v", c)
	}
	if got := c.routing(); got != routeNever {
		t.Errorf("routing %v: the default routes are ipam's", got)
	}
}

func TestBridgeKeys(t *testing.T) {
	for _, test := range []struct {
		name, keys string
		want       func(*config) bool
	}{
		{"no way out", `"isGateway":true`, func(c *config) bool { return c.Internal }},
		{"a way out", `"ipMasq":true`, func(c *config) bool { return !c.Internal }},
		{"default gateway", `"isDefaultGateway":true`, func(c *config) bool { return c.routing() == routeAlways }},
		{"no ipam", `"mtu":1400`, func(c *config) bool { return c.IPAM.Type == noIPAM && !c.IPAM.delegated() && c.MTU == 1400 }},
		{"empty ipam", `"ipam":{}`, func(c *config) bool { return c.IPAM.Type == noIPAM }},
		{"another ipam", `"ipam":{"type":"static","addresses":[]}`, func(c *config) bool { return c.IPAM.Type == "static" && c.IPAM.delegated() }},
		{"a TUN", `"device":"tun"`, func(c *config) bool { return !c.tap() }},
		{"no VLAN", `"vlan":0,"vlanTrunk":[]`, func(c *config) bool { return true }},
		{"promiscuous", `"promiscMode":true`, func(c *config) bool { return true }},
		{"hairpin unsaid", `"mtu":1400`, func(c *config) bool { return !c.Bridge.noOwnPorts() }},
		{"hairpin", `"hairpinMode":true`, func(c *config) bool { return !c.Bridge.noOwnPorts() }},
		{"no hairpin", `"hairpinMode":false`, func(c *config) bool { return c.Bridge.noOwnPorts() }},
		{"isolated ports", `"portIsolation":true`, func(c *config) bool { return *c.Policy.PortIsolation }},
		{"dns", `"dns":{"nameservers":["192.0.2.53"],"what":1}`, func(c *config) bool { return len(c.DNS.Nameservers) == 1 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := bridgeSchema().parse([]byte(`{"name":"n",`+test.keys+`}`), strict)
			if err != nil || !test.want(c) {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}

func TestBridgeRefusesWhatCannotWork(t *testing.T) {
	for _, test := range []struct {
		keys string
		code uint
		want []string
	}{
		{`"vlanTrunk":[{"minID":1,"maxID":9}]`, types.ErrUnsupportedField, []string{"vlanTrunk", "minID"}},
		{`"vlan":42`, types.ErrUnsupportedField, []string{"vlan", "42", "remove the key"}},
		{`"hairpinMode":"veth"`, types.ErrInvalidNetworkConfig, []string{"hairpinMode", "veth"}},
		{`"device":"tun","promiscMode":true`, types.ErrUnsupportedField, []string{"promiscMode", "tap"}},
		{`"vlan":4095`, types.ErrInvalidNetworkConfig, []string{"vlan", "4095"}},
		{`"disableContainerInterface":true`, types.ErrUnsupportedField, []string{"disableContainerInterface"}},
		{`"isGateway":"yes"`, types.ErrInvalidNetworkConfig, []string{"isGateway", "yes"}},
		{`"ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/31"}]]}`, types.ErrInvalidNetworkConfig, []string{"10.0.0.0/31"}},
		{`"dns":{"nameservers":["ns1"]}`, types.ErrInvalidNetworkConfig, []string{"dns.nameservers", "ns1"}},
	} {
		_, err := bridgeSchema().parse([]byte(`{"name":"n",`+test.keys+`}`), strict)
		wantError(t, err, test.code, test.want...)
	}
}

// TestBridgeKnowsTheReferencesKeys: every key of the reference plugin bridge
// (v1.9.1, type NetConf) has an effect, is refused, or has a reason to have none.
func TestBridgeKnowsTheReferencesKeys(t *testing.T) {
	s := bridgeSchema()
	for _, key := range []string{
		"bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "mtu", "hairpinMode", "promiscMode",
		"vlan", "vlanTrunk", "preserveDefaultVlan", "macspoofchk", "enabledad", "disableContainerInterface", "portIsolation",
		"args", "runtimeConfig", "cniVersion", "name", "type", "capabilities", "ipam", "dns", "prevResult",
	} {
		if _, known := s.fields[key]; !known {
			t.Errorf("key %q is ignored", key)
		}
	}
}

func TestReadResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# nameserver 192.0.2.1\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver junk\nsearch a.example b.example\noptions ndots:2\ndomain example\n;x y\nnameserver\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readResolvConf(path)
	want := types.DNS{Nameservers: []string{"192.0.2.53", "fe80::1%eth0"}, Domain: "example", Search: []string{"a.example", "b.example"}, Options: []string{"ndots:2"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v, (-want +got)\n%s", err, diff)
	}
}

// TestAbout: runtimes parse the first line that a plugin prints without
// CNI_COMMAND.
func TestAbout(t *testing.T) {
	for name, want := range map[string]string{
		"/opt/cni/bin/usernet":    "CNI usernet plugin v0.1.2\n",
		"usernet-cni":             "CNI usernet plugin v0.1.2\n",
		"/usr/libexec/cni/bridge": "CNI bridge plugin v1.9.1\n",
	} {
		var stdout, stderr strings.Builder
		status := Run(t.Context(), Process{Name: name, Stdout: &stdout, Stderr: &stderr, Stdin: strings.NewReader(""), Release: "v0.1.2"})
		if status != 0 || !strings.HasPrefix(stderr.String(), want) || stdout.Len() > 0 {
			t.Errorf("%s: status %d, stdout %q, stderr %q", name, status, stdout.String(), stderr.String())
		}
	}
}
