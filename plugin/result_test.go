package plugin

import (
	"bytes"
	"encoding/json"
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/netns"
)

var update = flag.Bool("update", false, "write the golden results anew")

// dualStack is the outcome of an ADD with an address of each family.
func dualStack() *outcome {
	addrs := []netip.Prefix{netip.MustParsePrefix("10.1.0.5/24"), netip.MustParsePrefix("fd01::5/64")}
	gateways := []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd01::1")}
	return &outcome{
		ifName: "eth0", sandbox: "/run/netns/c1", mac: "02:00:00:00:00:05", mtu: 1400,
		addrs: addrs, gateways: gateways, routes: routes(nil, addrs, gateways, routeUnlessConfigured),
		dns: types.DNS{Nameservers: []string{"10.1.0.1"}, Domain: "web", Search: []string{"web"}},
	}
}

// TestResultGolden holds the result of one ADD in every version of the
// specification against a file that was compared with SPEC.md by eye.
func TestResultGolden(t *testing.T) {
	for _, version := range SupportedVersions {
		t.Run(version, func(t *testing.T) {
			var got bytes.Buffer
			if err := printResult(&got, dualStack().result(nil), version); err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", "result-"+version+".json")
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestResultRoundTrip: what an ADD printed, a CHECK of the same version reads
// as the same interface.
func TestResultRoundTrip(t *testing.T) {
	made := dualStack()
	want, err := kernelInterface(made.ifName, made.mtu, made.addrs, made.routes)
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		var printed bytes.Buffer
		if err := printResult(&printed, made.result(nil), version); err != nil {
			t.Fatal(err)
		}
		inv := &invocation{conf: &config{}, params: parameters{IfName: "eth0"}}
		prev, err := parseResult(printed.Bytes(), version)
		if err != nil {
			t.Fatal(err)
		}
		got, err := inv.expected(prev)
		if err != nil {
			t.Fatal(err)
		}
		exp := want
		if version == "0.4.0" {
			exp.MTU = 0 // the version has no such key
		}
		if diff := cmp.Diff(exp, got, ipDiff); diff != "" {
			t.Errorf("%s: %s", version, diff)
		}
	}
}

// TestResultKeepsPrevious: what the plugin before returned is passed on, and
// our addresses point at our interface behind it.
func TestResultKeepsPrevious(t *testing.T) {
	prev, err := parseResult(json.RawMessage(`{"interfaces":[{"name":"host0"},{"name":"net0","sandbox":"/n"}],
		"ips":[{"version":"4","interface":1,"address":"10.9.0.2/24","gateway":"10.9.0.1"}],
		"routes":[{"dst":"10.9.9.0/24","gw":"10.9.0.1"}],"dns":{"nameservers":["9.9.9.9"]}}`), "0.4.0")
	if err != nil {
		t.Fatal(err)
	}
	r := dualStack().result(prev)
	if len(r.Interfaces) != 3 || r.Interfaces[2].Name != "eth0" || len(r.IPs) != 3 || *r.IPs[0].Interface != 1 || *r.IPs[1].Interface != 2 || *r.IPs[2].Interface != 2 {
		t.Errorf("got %+v %+v", r.Interfaces, r.IPs)
	}
	if len(r.Routes) != 3 || r.DNS.Nameservers[0] != "10.1.0.1" {
		t.Errorf("got %v %+v", r.Routes, r.DNS)
	}
	// A CHECK looks at its own interface only.
	inv := &invocation{conf: &config{}, params: parameters{IfName: "eth0"}}
	got, err := inv.expected(r)
	if err != nil || len(got.Addrs) != 2 || len(got.Routes) != 2 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestParseResultFaults(t *testing.T) {
	for _, text := range []string{`7`, `{"cniVersion":"8.0.0"}`, `{"cniVersion":"1.0.0","ips":[{"address":"x"}]}`, `{"cniVersion":1}`} {
		_, err := parseResult(json.RawMessage(text), "1.0.0")
		wantError(t, err, types.ErrDecodingFailure, "prevResult")
	}
}

func TestExpectedFaults(t *testing.T) {
	for text, word := range map[string]string{
		`{"interfaces":[{"name":"eth0"}]}`:                                                                "no interface eth0 inside",
		`{"interfaces":[{"name":"eth0","sandbox":"/n"}]}`:                                                 "no address",
		`{"interfaces":[{"name":"eth1","sandbox":"/n"}],"ips":[{"interface":0,"address":"10.0.0.2/24"}]}`: "no interface eth0",
	} {
		prev, err := parseResult(json.RawMessage(text), "1.0.0")
		if err != nil {
			t.Fatal(err)
		}
		inv := &invocation{conf: &config{IPAM: ipamConfig{Type: nativeIPAM}}, params: parameters{IfName: "eth0"}}
		_, err = inv.expected(prev)
		wantError(t, err, types.ErrInvalidNetworkConfig, "prevResult", word)
	}
}

func TestRoutes(t *testing.T) {
	made := dualStack()
	none := []netip.Addr{made.gateways[0], {}}
	configured := []*types.Route{{Dst: ipNet(netip.MustParsePrefix("172.16.0.0/12"))}, {Dst: ipNet(netip.MustParsePrefix("fd02::/16")), GW: netip.MustParseAddr("fd01::9").AsSlice()}}
	for _, test := range []struct {
		name string
		got  []*types.Route
		want []netns.Route
	}{
		{"default", made.routes, []netns.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.1.0.1")},
			{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd01::1")}}},
		{"one family has no gateway", routes(nil, made.addrs, none, routeUnlessConfigured), []netns.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.1.0.1")}}},
		{"internal", routes(nil, made.addrs, made.gateways, routeNever), nil},
		{"configured", routes(configured, made.addrs, made.gateways, routeUnlessConfigured), []netns.Route{
			{Dst: netip.MustParsePrefix("172.16.0.0/12"), Gateway: netip.MustParseAddr("10.1.0.1")},
			{Dst: netip.MustParsePrefix("fd02::/16"), Gateway: netip.MustParseAddr("fd01::9")}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := kernelInterface("eth0", 0, nil, test.got)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got.Routes, ipDiff); diff != "" {
				t.Error(diff)
			}
		})
	}
	if configured[0].GW != nil {
		t.Error("the configuration's route was changed")
	}
}

func TestRandomMAC(t *testing.T) {
	a, b := randomMAC(), randomMAC()
	if slices.Equal(a, b) {
		t.Errorf("two are the same: %s", a)
	}
	for _, mac := range []net.HardwareAddr{a, b} {
		hw, err := parseMAC("x", mac.String())
		if err != nil || hw[0]&2 == 0 {
			t.Errorf("%s is not locally administered, or %v", mac, err)
		}
	}
}
