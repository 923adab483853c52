package plugin

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/usernet/usernet/internal/control"
)

var ipDiff = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}

func TestParseConfigFull(t *testing.T) {
	c, err := nativeSchema.parse([]byte(`{
		"cniVersion": "1.1.0", "name": "web", "type": "usernet", "disableCheck": true, "disableGC": false,
		"cniVersions": ["0.4.0"], "loadOnlyInlinedPlugins": false, "cni.dev/something": {"new": 1},
		"socket": "/run/x.sock", "device": "tap", "mtu": 1400, "internal": true, "autostart": false,
		"ingressPolicy": "isolated", "portIsolation": true, "hairpin": false,
		"capabilities": {"portMappings": true, "ips": true},
		"ipam": {"type": "usernet",
			"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20", "gateway": "10.1.0.1"},
				{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.30"}], [{"subnet": "fd01::/64"}]],
			"routes": [{"dst": "192.168.0.0/16", "gw": "10.1.0.1", "mtu": 1300, "table": 7}]},
		"dns": {"nameservers": ["10.1.0.1", "fd01::1"], "domain": "d", "search": ["s"], "options": ["ndots:1"]},
		"args": {"cni": {"ips": ["10.1.0.12"], "mac": "02:00:00:00:00:01", "labels": [{"key": "a", "value": "b"}]}, "other": [1]},
		"prevResult": {"cniVersion": "1.1.0"},
		"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}],
		"cni.dev/attachments": [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]
	}`), strict)
	if err != nil {
		t.Fatal(err)
	}
	table := 7
	want := &config{
		CNIVersion: "1.1.0", Name: "web", Socket: "/run/x.sock", Device: "tap", MTU: 1400, Internal: true,
		Policy: control.PolicyWishes{IngressPolicy: "isolated", PortIsolation: new(true), Hairpin: new(false)},
		IPAM: ipamConfig{Type: "usernet",
			Sets: [][]control.Range{{
				{Subnet: netip.MustParsePrefix("10.1.0.0/24"), RangeStart: netip.MustParseAddr("10.1.0.10"), RangeEnd: netip.MustParseAddr("10.1.0.20"), Gateway: netip.MustParseAddr("10.1.0.1")},
				{Subnet: netip.MustParsePrefix("10.1.0.0/24"), RangeStart: netip.MustParseAddr("10.1.0.30")},
			}, {{Subnet: netip.MustParsePrefix("fd01::/64")}}},
			Routes: []*types.Route{{Dst: ipNet(netip.MustParsePrefix("192.168.0.0/16")), GW: netip.MustParseAddr("10.1.0.1").AsSlice(), MTU: 1300, Table: &table}},
		},
		DNS:        types.DNS{Nameservers: []string{"10.1.0.1", "fd01::1"}, Domain: "d", Search: []string{"s"}, Options: []string{"ndots:1"}},
		ArgsCNI:    argsCNI{IPs: []string{"10.1.0.12"}, MAC: "02:00:00:00:00:01"},
		PrevResult: json.RawMessage(`{"cniVersion": "1.1.0"}`),
		Valid:      []types.GCAttachment{{ContainerID: "a", IfName: "eth0"}, {ContainerID: "b", IfName: "eth1"}},
	}
	if got, exp := c.IPAM.Routes[0].String(), want.IPAM.Routes[0].String(); got != exp {
		t.Errorf("route %s, want %s", got, exp)
	}
	c.IPAM.Routes, want.IPAM.Routes = nil, nil // compared above: net.IP has two forms
	if diff := cmp.Diff(want, c, ipDiff); diff != "" {
		t.Error(diff)
	}
}

func TestParseConfigDefaults(t *testing.T) {
	for _, text := range []string{`{"name":"n"}`, `{"name":"n","ipam":{},"dns":null,"runtimeConfig":null,"args":null,"mtu":0,"cni.dev/valid-attachments":null}`} {
		c, err := nativeSchema.parse([]byte(text), strict)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if diff := cmp.Diff(&config{Device: "tun", Name: "n", Autostart: true, IPAM: ipamConfig{Type: "usernet"}}, c, ipDiff); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
	}
}

// TestParseConfigHostLocalForm: the older form without "ranges" is a set.
func TestParseConfigHostLocalForm(t *testing.T) {
	c, err := nativeSchema.parse([]byte(`{"name":"n","ipam":{"type":"usernet","subnet":"10.1.0.0/24","gateway":"10.1.0.9","ranges":[[{"subnet":"fd01::/64"}]]}}`), strict)
	if err != nil {
		t.Fatal(err)
	}
	want := [][]control.Range{
		{{Subnet: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.9")}},
		{{Subnet: netip.MustParsePrefix("fd01::/64")}},
	}
	if diff := cmp.Diff(want, c.IPAM.Sets, ipDiff); diff != "" {
		t.Error(diff)
	}
}

// TestParseConfigDelegated: what another IPAM plugin is told is its own.
func TestParseConfigDelegated(t *testing.T) {
	c, err := nativeSchema.parse([]byte(`{"name":"n","ipam":{"type":"host-local","dataDir":"/d","anything":[]}}`), strict)
	if err != nil || c.IPAM.Type != "host-local" || !c.IPAM.delegated() {
		t.Errorf("got %+v, %v", c, err)
	}
}

// TestParseConfigDHCP: the ranges make the network, the rest is the IPAM
// plugin's own, whatever it looks like.
func TestParseConfigDHCP(t *testing.T) {
	c, err := nativeSchema.parse([]byte(`{"name":"n","device":"tap","ipam":{"type":"dhcp","daemonSocketPath":"/s","routes":[{"dst":"x"}],
		"request":[{"skipDefault":true}],"ranges":[[{"subnet":"10.1.0.0/24"}]]}}`), strict)
	if err != nil || !c.IPAM.dhcp() || !c.IPAM.delegated() || !c.IPAM.leasedByDaemon() || len(c.IPAM.Sets) != 1 || c.IPAM.Routes != nil {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestParseConfigFaults(t *testing.T) {
	for _, test := range []struct {
		text  string
		code  uint
		words []string
	}{
		{`{"name":"n","bridge":"cni0"}`, 2, []string{`"bridge"`, `"cni0"`, "unknown key", "socket"}},
		{`{"name":"n","MTU":1400}`, 2, []string{`"MTU"`, "1400", `did you mean "mtu"`}},
		{`{"name":"n","a":1,"b":2}`, 2, []string{`"a"`, `"b"`}},
		{`{"name":"n","device":"veth"}`, 2, []string{`"device"`, `"veth"`, `"tun"`, `"tap"`}},
		{`{"name":"n","ipam":{"type":"dhcp"}}`, 7, []string{`"ipam.type"`, `"dhcp"`, `"device": "tap"`}},
		{`{"name":"n","device":"tap","ipam":{"type":"dhcp","ranges":[[{"subnet":"10.0.0.0/31"}]]}}`, 7, []string{"ipam.ranges", "10.0.0.0/31"}},
		{`{"name":"n","device":3}`, 7, []string{`"device"`, "3"}},
		{`{"name":"n","mtu":"1400"}`, 7, []string{`"mtu"`, `"1400"`}},
		{`{"name":"n","mtu":67}`, 7, []string{`"mtu"`, "67"}},
		{`{"name":"n","mtu":65536}`, 7, []string{`"mtu"`, "65536"}},
		{`{"name":"n","mtu":1279,"ipam":{"subnet":"fd01::/64"}}`, 7, []string{`"mtu"`, "1279", "1280"}},
		{`{"name":"n","socket":"x.sock"}`, 7, []string{`"socket"`, "x.sock", "absolute"}},
		{`{"name":"n","socket":"@abstract"}`, 7, []string{`"socket"`}},
		{`{"name":"n","socket":"/` + strings.Repeat("x", 107) + `"}`, 7, []string{`"socket"`, "108"}},
		{`{"name":"n","ingressPolicy":"closed"}`, 2, []string{`"ingressPolicy"`, `"closed"`, "same-bridge"}},
		{`{"name":"n","ingressPolicy":true}`, 7, []string{`"ingressPolicy"`, "true"}},
		{`{"name":"n","portIsolation":"yes"}`, 7, []string{`"portIsolation"`, `"yes"`}},
		{`{"name":"n","hairpin":1}`, 7, []string{`"hairpin"`, "1"}},
		{`{"name":"n","hairpinMode":true}`, 2, []string{`"hairpinMode"`}},
		{`{"name":"n","autostart":"no"}`, 7, []string{`"autostart"`, `"no"`}},
		{`{"name":"n","dns":{"nameserver":["1.1.1.1"]}}`, 7, []string{`"dns"`, "nameserver"}},
		{`{"name":"n","dns":{"nameservers":["one.one"]}}`, 7, []string{`"dns.nameservers"`, "one.one"}},
		{`{"name":"n","args":{"cni":{"ips":1}}}`, 7, []string{`"args"`}},
		{`{"name":"n","cni.dev/valid-attachments":[{"containerID":"a"}]}`, 7, []string{"valid-attachments", "ifname"}},
		{`{"name":"n","ipam":{"subnets":"10.0.0.0/8"}}`, 7, []string{`"ipam"`, "subnets"}},
		{`{"name":"n","ipam":{"dataDir":7}}`, 7, []string{`"ipam"`, "dataDir"}},
		{`{"name":"n","ipam":{"sticky":"yes"}}`, 7, []string{`"ipam"`, "sticky"}},
		{`{"name":"n","ipam":{"ranges":[[]]}}`, 7, []string{`"ipam.ranges"`, "empty"}},
		{`{"name":"n","ipam":{"ranges":[[{"rangeStart":"10.0.0.1"}]]}}`, 7, []string{`"ipam.ranges"`, `"subnet" is missing`}},
		{`{"name":"n","ipam":{"subnet":"10.0.0.1/24"}}`, 7, []string{"10.0.0.1/24", "10.0.0.0/24"}},
		{`{"name":"n","ipam":{"subnet":"10.0.0.0/31"}}`, 7, []string{"10.0.0.0/31", "too small"}},
		{`{"name":"n","ipam":{"subnet":"fd01::/127"}}`, 7, []string{"fd01::/127", "too small"}},
		{`{"name":"n","ipam":{"subnet":"::ffff:10.0.0.0/104"}}`, 7, []string{"IPv4 notation"}},
		{`{"name":"n","ipam":{"subnet":"10.0.0.0/24","gateway":"10.0.1.1"}}`, 7, []string{"gateway 10.0.1.1", "not in the subnet"}},
		{`{"name":"n","ipam":{"subnet":"10.0.0.0/24","rangeEnd":"fd01::1"}}`, 7, []string{"rangeEnd fd01::1"}},
		{`{"name":"n","ipam":{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}}`, 7, []string{"before"}},
		{`{"name":"n","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"fd01::/64"}]]}}`, 7, []string{"one family"}},
		{`{"name":"n","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.0.0/16","rangeStart":"10.0.0.200"}]]}}`, 7, []string{"overlaps", "10.0.0.0/24"}},
		{`{"name":"n","ipam":{"routes":[{"gw":"10.0.0.1"}]}}`, 7, []string{`"ipam.routes"`, `"dst"`}},
		{`{"name":"n","ipam":{"routes":[{"dst":"10.0.0.0/8","via":"10.0.0.1"}]}}`, 7, []string{`"ipam.routes"`, "via"}},
		{`{"name":"n","ipam":{"routes":[{"dst":"10.0.0.0/8","gw":"fd01::1"}]}}`, 7, []string{`"ipam.routes"`, "families"}},
		{`{"name":"n","runtimeConfig":[]}`, 7, []string{`"runtimeConfig"`}},
		{`{"name":"n","runtimeConfig":{"deviceID":"0000:01"}}`, 105, []string{"runtimeConfig.deviceID", "0000:01", "capabilities"}},
		{`{"name":"n","runtimeConfig":{"bandwidth":{"IngressRate":1000}}}`, 7, []string{"runtimeConfig.bandwidth.ingressRate", "1000", "ingressBurst"}},
		{`{"name":"n","runtimeConfig":{"bandwidth":{"egressBurst":1000}}}`, 7, []string{"runtimeConfig.bandwidth.egressBurst", "1000", "egressRate"}},
		{`{"name":"n","runtimeConfig":{"bandwidth":{"egressRate":1,"egressBurst":34359738360}}}`, 7, []string{"egressBurst", "34359738360", "4 GiB"}},
		{`{"name":"n","runtimeConfig":{"bandwidth":{"egressRate":-1,"egressBurst":1}}}`, 7, []string{"runtimeConfig.bandwidth", "-1"}},
		{`{"name":"n","egressRate":1000}`, 7, []string{`"egressRate"`, "1000", "egressBurst"}},
		{`{"name":"n","ingressRate":"1M"}`, 7, []string{`"ingressRate"`, "1M"}},
		{`{"name":"n","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"sctp"}]}}`, 105, []string{"sctp"}},
		{`{"name":"n","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"icmp"}]}}`, 7, []string{"icmp"}},
		{`{"name":"n","runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":80}]}}`, 7, []string{"hostPort"}},
		{`{"name":"n","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":65536}]}}`, 7, []string{"containerPort"}},
		{`{"name":"n","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"hostIP":"localhost"}]}}`, 7, []string{"hostIP", "localhost"}},
		{`{"name":"n","runtimeConfig":{"dns":{"servers":["x"]}}}`, 7, []string{"runtimeConfig.dns.servers", `"x"`}},
		{`{"name":"n","runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.1/24"}]]}}`, 7, []string{"runtimeConfig.ipRanges"}},
		{`{"name":"n","runtimeConfig":{"aliases":7}}`, 7, []string{"runtimeConfig.aliases", "7"}},
	} {
		_, err := nativeSchema.parse([]byte(test.text), strict)
		t.Run(test.text[:min(len(test.text), 90)], func(t *testing.T) { wantError(t, err, test.code, test.words...) })
		if c, err := nativeSchema.parse([]byte(test.text), lenient); err != nil || c.Name != "n" {
			t.Errorf("%s: a DEL is refused: %v", test.text, err)
		}
	}
}

// TestBandwidth: of capability and keys the stricter holds; bursts that are no choice of
// anybody's are the daemon's affair.
func TestBandwidth(t *testing.T) {
	none := control.Rate{}
	for text, want := range map[string]*control.Bandwidth{
		`{"name":"n"}`: nil,
		`{"name":"n","ingressRate":8000,"ingressBurst":800}`:                                                                              {ToContainer: control.Rate{BitsPerSecond: 8000, BurstBits: 800}, FromContainer: none},
		`{"name":"n","ingressRate":1,"ingressBurst":1,"runtimeConfig":{"bandwidth":{"EgressRate":8000,"EgressBurst":4294967295}}}`:        {FromContainer: control.Rate{BitsPerSecond: 8000}, ToContainer: control.Rate{BitsPerSecond: 1, BurstBits: 1}},
		`{"name":"n","runtimeConfig":{"bandwidth":{"egressRate":7,"egressBurst":34359738359,"ingressRate":9,"ingressBurst":4294967294}}}`: {FromContainer: control.Rate{BitsPerSecond: 7}, ToContainer: control.Rate{BitsPerSecond: 9, BurstBits: 4294967294}},
		`{"name":"n","ingressRate":1,"ingressBurst":1,"runtimeConfig":{"bandwidth":{"IngressRate":0,"EgressRate":0}}}`:                    {ToContainer: control.Rate{BitsPerSecond: 1, BurstBits: 1}},
		`{"name":"n","ingressRate":5,"ingressBurst":6,"runtimeConfig":{"bandwidth":{"ingressRate":3,"ingressBurst":4}}}`:                  {ToContainer: control.Rate{BitsPerSecond: 3, BurstBits: 4}},
		`{"name":"n","ingressRate":3,"ingressBurst":4,"runtimeConfig":{"bandwidth":{"ingressRate":5,"ingressBurst":6}}}`:                  {ToContainer: control.Rate{BitsPerSecond: 3, BurstBits: 4}},
	} {
		c, err := nativeSchema.parse([]byte(text), strict)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, c.bandwidth()); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
	}
}

func TestQueueLen(t *testing.T) {
	for bits, want := range map[uint64]int{0: 0, 1: 8, 1e6: 8, 6e6: 50, 100e6: 833, 10e9: 2000, math.MaxUint64: 2000} {
		if got := queueLen(&control.Bandwidth{FromContainer: control.Rate{BitsPerSecond: bits}}); got != want {
			t.Errorf("%d bit/s: %d frames, want %d", bits, got, want)
		}
	}
	if got := queueLen(nil); got != 0 {
		t.Errorf("no limit: %d frames", got)
	}
}

// TestCapabilitiesOfGoCNI: containerd's library marshals structs without tags.
func TestCapabilitiesOfGoCNI(t *testing.T) {
	c, err := nativeSchema.parse([]byte(`{"name":"n","runtimeConfig":{
		"portMappings":[{"HostPort":8080,"ContainerPort":80,"Protocol":"TCP","HostIP":"127.0.0.1"},{"HostPort":53,"ContainerPort":53,"Protocol":"udp","HostIP":""}],
		"bandwidth":{"IngressRate":0,"IngressBurst":0,"EgressRate":0,"EgressBurst":0},
		"dns":{"Servers":["1.1.1.1"],"Searches":["a"],"Options":["b"]},
		"ipRanges":[[{"Subnet":"10.1.0.0/24","RangeStart":"10.1.0.3","RangeEnd":"","Gateway":""}]],
		"cgroupPath":"/x","io.kubernetes.cri.pod-annotations":{"a":"b"}}}`), strict)
	if err != nil {
		t.Fatal(err)
	}
	want := runtimeConfig{
		PortMappings: []portMapping{
			{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: "127.0.0.1"},
			{HostPort: 53, ContainerPort: 53, Protocol: "udp"},
		},
		DNS:      &runtimeDNS{Servers: []string{"1.1.1.1"}, Searches: []string{"a"}, Options: []string{"b"}},
		IPRanges: [][]control.Range{{{Subnet: netip.MustParsePrefix("10.1.0.0/24"), RangeStart: netip.MustParseAddr("10.1.0.3")}}},
	}
	if diff := cmp.Diff(want, c.Runtime, ipDiff); diff != "" {
		t.Error(diff)
	}
}

func TestAliasesForms(t *testing.T) {
	for _, text := range []string{
		`{"name":"n","runtimeConfig":{"aliases":["a","b"]}}`,
		`{"runtimeConfig":{"aliases":{"n":["a","b"],"other":["c"]}},"name":"n"}`,
	} {
		c, err := nativeSchema.parse([]byte(text), strict)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"a", "b"}, c.Runtime.Aliases); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
	}
}

func TestEmptyCapabilitiesAskForNothing(t *testing.T) {
	c, err := nativeSchema.parse([]byte(`{"name":"n","runtimeConfig":{"portMappings":[],"ips":null,"mac":"","deviceID":"","infinibandGUID":null,"aliases":{}}}`), strict)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(runtimeConfig{}, c.Runtime); diff != "" {
		t.Error(diff)
	}
}

func TestRuntimeBeatsConfig(t *testing.T) {
	c, err := nativeSchema.parse([]byte(`{"name":"n",
		"ipam":{"subnet":"10.1.0.0/24"},
		"dns":{"nameservers":["1.1.1.1"],"domain":"d","search":["s"]},
		"runtimeConfig":{"dns":{"servers":["2.2.2.2"]},"ipRanges":[[{"subnet":"10.2.0.0/24"}]]}}`), strict)
	if err != nil {
		t.Fatal(err)
	}
	want := types.DNS{Nameservers: []string{"2.2.2.2"}, Domain: "d", Search: []string{"s"}}
	if diff := cmp.Diff(want, c.dns()); diff != "" {
		t.Error(diff)
	}
	if s := c.sets(); len(s) != 2 || s[0][0].Subnet.String() != "10.2.0.0/24" || s[1][0].Subnet.String() != "10.1.0.0/24" {
		t.Errorf("sets %v", s)
	}
}

func TestParseArgs(t *testing.T) {
	for _, test := range []struct {
		text  string
		want  cniArgs
		words []string
	}{
		{text: "", want: cniArgs{}},
		{text: "IP=10.0.0.2;MAC=02:00:00:00:00:01;IgnoreUnknown=1;Label=a=b=c", want: cniArgs{IPs: []string{"10.0.0.2"}, MAC: "02:00:00:00:00:01"}},
		{text: "IP=10.0.0.2/24, fd01::2/64;GATEWAY=10.0.0.1;", want: cniArgs{IPs: []string{"10.0.0.2/24", "fd01::2/64"}, Gateway: "10.0.0.1"}},
		{text: "IgnoreUnknown=true;K8S_POD_NAME=pod;K8S_POD_NAMESPACE=ns;NOMAD_REGION=g", want: cniArgs{Hostname: "pod.ns", Sticky: "ns/pod"}},
		{text: "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=" + strings.Repeat("x", 64), want: cniArgs{Sticky: "ns/" + strings.Repeat("x", 64)}},
		{text: "IgnoreUnknown=1;K8S_POD_NAME=web", want: cniArgs{Hostname: "web", Sticky: "/web"}}, // podman
		{text: "NERDCTL_CNI_DHCP_HOSTNAME=host", want: cniArgs{Hostname: "host", Sticky: "host"}},
		{text: "K8S_POD_NAME=pod;NERDCTL_CNI_DHCP_HOSTNAME=host", want: cniArgs{Hostname: "host", Sticky: "/pod"}},
		{text: "NERDCTL_CNI_DHCP_HOSTNAME=host;K8S_POD_NAME=pod", want: cniArgs{Hostname: "host", Sticky: "/pod"}},
		{text: "COLOUR=blue", words: []string{"COLOUR", "IgnoreUnknown"}},
		{text: "IgnoreUnknown=0;COLOUR=blue", words: []string{"COLOUR"}},
		{text: "IP", words: []string{`"IP"`, "KEY=VALUE"}},
		{text: "=x", words: []string{`"=x"`}},
	} {
		got, err := parseArgs(test.text)
		if test.words != nil {
			wantError(t, err, types.ErrInvalidEnvironmentVariables, append(test.words, "CNI_ARGS")...)
		} else if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
			t.Errorf("%q: %v %s", test.text, err, diff)
		}
	}
}

func TestWantedIPs(t *testing.T) {
	for _, test := range []struct {
		name               string
		runtime, cni, args []string
		want, keys         string
		words              []string
	}{
		{name: "none", want: "[]", keys: "[]"},
		{name: "CNI_ARGS", args: []string{"10.0.0.2"}, want: "[10.0.0.2]", keys: `["CNI_ARGS IP" ["10.0.0.2"]]`},
		{name: "args.cni beats CNI_ARGS", cni: []string{"10.0.0.3/24"}, args: []string{"10.0.0.2"}, want: "[10.0.0.3]", keys: `["args.cni.ips" ["10.0.0.3/24"]]`},
		{name: "runtimeConfig beats both", runtime: []string{"10.0.0.4"}, cni: []string{"10.0.0.3"}, args: []string{"10.0.0.2"}, want: "[10.0.0.4]", keys: `["runtimeConfig.ips" ["10.0.0.4"]]`},
		{name: "nerdctl: families apart", runtime: []string{"fd01::4"}, args: []string{"10.0.0.2"}, want: "[fd01::4 10.0.0.2]", keys: `["runtimeConfig.ips" ["fd01::4"] "CNI_ARGS IP" ["10.0.0.2"]]`},
		{name: "several of one source", runtime: []string{"10.0.0.4", "10.1.0.4"}, args: []string{"10.0.0.2"}, want: "[10.0.0.4 10.1.0.4]", keys: `["runtimeConfig.ips" ["10.0.0.4","10.1.0.4"]]`},
		{name: "mapped", args: []string{"::ffff:10.0.0.2"}, want: "[10.0.0.2]", keys: `["CNI_ARGS IP" ["::ffff:10.0.0.2"]]`},
		{name: "bad", runtime: []string{"ten"}, words: []string{"runtimeConfig.ips", "ten"}},
		{name: "bad prefix", cni: []string{"10.0.0.1/33"}, words: []string{"args.cni.ips", "10.0.0.1/33"}},
		{name: "zone", args: []string{"fe80::1%eth0"}, words: []string{"CNI_ARGS IP", "fe80::1%eth0"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &config{Runtime: runtimeConfig{IPs: test.runtime}, ArgsCNI: argsCNI{IPs: test.cni}}
			got, keys, err := c.wantedIPs(cniArgs{IPs: test.args})
			if test.words != nil {
				wantError(t, err, types.ErrInvalidNetworkConfig, test.words...)
				return
			}
			if text := fmt.Sprint(got); err != nil || text != test.want {
				t.Errorf("got %s, %v, want %s", text, err, test.want)
			}
			if text := fmt.Sprint(keys); text != test.keys {
				t.Errorf("keys %s, want %s", text, test.keys)
			}
		})
	}
}

func TestWantedMAC(t *testing.T) {
	for _, test := range []struct {
		device, runtime, cni, args, want string
		words                            []string
	}{
		{args: "02:00:00:00:00:0A", want: "02:00:00:00:00:0a"},
		{cni: "02:00:00:00:00:02", args: "02:00:00:00:00:01", want: "02:00:00:00:00:02"},
		{runtime: "02:00:00:00:00:03", cni: "02:00:00:00:00:02", want: "02:00:00:00:00:03"},
		{},
		{args: "02:00", words: []string{"CNI_ARGS MAC", "02:00"}},
		{args: "03:00:00:00:00:01", words: []string{"multicast"}},
		{args: "00:00:00:00:00:00", words: []string{"zero"}},
		{args: "02:00:00:00:00:00:00:01", words: []string{"six bytes"}},
		{device: "tun", args: "02:75:6e:00:00:01", want: "02:75:6e:00:00:01"},
		{device: "tap", cni: "02:75:6e:00:00:01", words: []string{"args.cni.mac", "02:75:6e:00:00:01", "gateway"}},
		{device: "tap", args: "02:75:6e:00:00:02", want: "02:75:6e:00:00:02"},
	} {
		c := &config{Device: test.device, Runtime: runtimeConfig{MAC: test.runtime}, ArgsCNI: argsCNI{MAC: test.cni}}
		got, err := c.wantedMAC(cniArgs{MAC: test.args})
		if test.words != nil {
			wantError(t, err, types.ErrInvalidNetworkConfig, test.words...)
		} else if err != nil || got.String() != test.want {
			t.Errorf("%+v: got %v, %v", test, got, err)
		}
	}
}

// FuzzParseConfig: whatever comes on the standard input is either understood
// or refused with a code of the specification, and what passes strictly passes
// leniently as the same link.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"name":"n","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`))
	f.Add([]byte(`{"name":"n","runtimeConfig":{"portMappings":[{"HostPort":1,"containerPort":2}],"aliases":{"n":["a"]}},"args":{"cni":{}}}`))
	f.Add([]byte(`{"name":"n","ipam":{"ranges":[[{"subnet":"::/0"},{"subnet":"0.0.0.0/0"}]]},"mtu":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := nativeSchema.parse(data, strict)
		if err != nil {
			switch code := asCNI(err).Code; code {
			case 2, 6, 7, 105:
			default:
				t.Fatalf("code %d: %v", code, err)
			}
			return
		}
		again, err := nativeSchema.parse(data, lenient)
		if err != nil || again.Name != c.Name || again.Socket != c.Socket || again.IPAM.Type != c.IPAM.Type {
			t.Fatalf("leniently %+v, %v; strictly %+v", again, err, c)
		}
		for _, set := range c.sets() {
			for _, r := range set {
				if first, last := bounds(r); !r.Subnet.Contains(first) || !r.Subnet.Contains(last) || last.Less(first) {
					t.Fatalf("range %+v passed", r)
				}
			}
		}
	})
}
