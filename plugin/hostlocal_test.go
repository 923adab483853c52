package plugin

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// TestHostLocalConfig: the configuration is another plugin's, of which only what
// concerns addresses is read.
func TestHostLocalConfig(t *testing.T) {
	const ipam = `"ipam":{"type":"host-local","subnet":"10.0.0.0/24","unknown":1}`
	for _, test := range []struct {
		name, conf string
		want       func(*config) bool
	}{
		{"another plugin's keys", `"type":"ptp","device":7,"mtu":"x","socket":["theirs"],"autostart":"no","runtimeConfig":{"bandwidth":"theirs","what":1},` + ipam,
			func(c *config) bool { return c.Socket == "" && c.Autostart && len(c.sets()) == 1 }},
		{"another plugin's socket", `"type":"ovs","socket":"/run/ovs.sock","autostart":false,` + ipam,
			func(c *config) bool { return c.Socket == "" && c.Autostart }},
		{"usernet's socket", `"type":"usernet","socket":"/run/u.sock","autostart":false,` + ipam,
			func(c *config) bool { return c.Socket == "/run/u.sock" && !c.Autostart }},
		{"of the drop-in bridge", `"type":"bridge","socket":"/run/u.sock",` + ipam,
			func(c *config) bool { return c.Socket == "/run/u.sock" && c.Autostart }},
		{"its own", `"type":"usernet","socket":"/run/u.sock","autostart":false,"ipam":{"type":"host-local","socket":"/run/own.sock","autostart":true}`,
			func(c *config) bool { return c.Socket == "/run/own.sock" && c.Autostart }},
		{"ranges of the runtime first", `"runtimeConfig":{"ipRanges":[[{"subnet":"fd00::/64"}]],"ips":["10.0.0.9"]},` + ipam,
			func(c *config) bool {
				return len(c.sets()) == 2 && c.sets()[0][0].Subnet.Addr().Is6() && len(c.Runtime.IPs) == 1
			}},
		{"no ipam", `"type":"ptp"`, func(c *config) bool { return len(c.sets()) == 0 && !c.IPAM.delegated() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := hostLocalProgram().schema.parse([]byte(`{"name":"n",`+test.conf+`}`), strict)
			if err != nil || !test.want(c) {
				t.Errorf("%+v %+v, %v", c, c.HostLocal, err)
			}
		})
	}
}

// TestHostLocalErrors: what cannot be is told before any daemon is asked, by key
// and value.
func TestHostLocalErrors(t *testing.T) {
	for _, test := range []struct {
		name, conf, args string
		code             uint
		says             []string
	}{
		{"no ranges", `"ipam":{"type":"host-local"}`, "", types.ErrInvalidNetworkConfig, []string{"ipam", "ranges"}},
		{"no ipam", `"type":"ptp"`, "", types.ErrInvalidNetworkConfig, []string{"ipam", "ranges"}},
		{"small", `"ipam":{"subnet":"10.0.0.0/31"}`, "", types.ErrInvalidNetworkConfig, []string{"10.0.0.0/31", "too small"}},
		{"socket", `"ipam":{"subnet":"10.0.0.0/24","socket":"run/u.sock"}`, "", types.ErrInvalidNetworkConfig, []string{"ipam.socket", "run/u.sock", "absolute"}},
		{"ips", `"ipam":{"subnet":"10.0.0.0/24"},"runtimeConfig":{"ips":["x"]}`, "", types.ErrInvalidNetworkConfig, []string{"runtimeConfig.ips", "x"}},
		{"ipRanges", `"ipam":{"subnet":"10.0.0.0/24"},"runtimeConfig":{"ipRanges":[[{"subnet":"10.1.0.0/32"}]]}`, "", types.ErrInvalidNetworkConfig, []string{"runtimeConfig.ipRanges", "10.1.0.0/32"}},
		{"IP", `"ipam":{"subnet":"10.0.0.0/24"}`, "IP=nonsense", types.ErrInvalidNetworkConfig, []string{"CNI_ARGS IP", "nonsense"}},
		{"unknown argument", `"ipam":{"subnet":"10.0.0.0/24"}`, "WHAT=1", types.ErrInvalidEnvironmentVariables, []string{"WHAT"}},
		{"resolvConf", `"ipam":{"subnet":"10.0.0.0/24","resolvConf":"/nowhere"}`, "", types.ErrInvalidNetworkConfig, []string{"ipam.resolvConf", "/nowhere"}},
		{"no daemon", `"ipam":{"subnet":"10.0.0.0/24","autostart":false,"socket":"/nowhere/u.sock"}`, "", types.ErrTryAgainLater, []string{"/nowhere/u.sock", "usernet daemon"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			status := Run(t.Context(), Process{
				Name: "/opt/cni/bin/host-local", Stdin: strings.NewReader(`{"cniVersion":"1.0.0","name":"n",` + test.conf + `}`), Stdout: &out, Stderr: &out,
				Env: []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=c", "CNI_IFNAME=eth0", "CNI_NETNS=/nowhere", "CNI_ARGS=" + test.args},
			})
			var got types.Error
			decode(t, out.String(), &got)
			if status != 1 || got.Code != test.code {
				t.Errorf("status %d, code %d, want %d: %s", status, got.Code, test.code, out.String())
			}
			for _, s := range test.says {
				if !strings.Contains(got.Msg, s) {
					t.Errorf("%q does not say %q", got.Msg, s)
				}
			}
		})
	}
}
