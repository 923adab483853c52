package plugin

import (
	"slices"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	tests := []struct {
		conf string
		want []string // parts of the error; none: no error
	}{
		{`{"name":"a","cniVersion":"1.0.0","type":"usernet","mtu":1400,"cni.dev/x":1}`, nil},
		{`{"name":"a","cniVersion":"1.0.0","runtimeConfig":{"ips":["10.0.0.9/24"]}}`, nil},
		{`{"name":"a","cniVersion":"1.0.0","mtuu":1400,"mtu":40}`, []string{"mtuu", "1400", "40"}},
		{`{"name":"a","cniVersion":"7.0.0"}`, []string{"7.0.0"}},
		{`{"cniVersion":"1.0.0"}`, []string{`"name"`}},
		{`{"name":"a","cniVersion":"1.0.0","type":"bridge","isGateway":true,"vlan":4095,"x":1}`, []string{"vlan", "4095"}},
		{`{"name":"a","cniVersion":"1.0.0","type":"firewall","ingressPolicy":"open","x":1}`, nil},
		{`{"name":"a","cniVersion":"1.0.0","type":"firewall","ingressPolicy":"what"}`, []string{"ingressPolicy", "what"}},
		{`[]`, []string{"decode"}},
	}
	for _, tt := range tests {
		err := Judge([]byte(tt.conf))
		if (err == nil) != (tt.want == nil) {
			t.Errorf("Judge(%s) = %v", tt.conf, err)
			continue
		}
		for _, part := range tt.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("Judge(%s) = %v, which lacks %q", tt.conf, err, part)
			}
		}
	}
}

func TestKeys(t *testing.T) {
	keys := Keys()
	for _, k := range []string{"cniVersion", "ipam", "name", "type"} {
		if !slices.Contains(keys, k) {
			t.Errorf("%q is missing of %q", k, keys)
		}
	}
	if !slices.IsSorted(keys) {
		t.Errorf("not sorted: %q", keys)
	}
}
