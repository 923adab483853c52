package plugin

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
)

// tuned parses a configuration of tuning.
func tuned(t *testing.T, keys string, env ...string) (tuningConf, error) {
	t.Helper()
	p := tuningProgram()
	c, err := p.schema.parse([]byte(`{"name":"n",`+keys+`}`), strict)
	if err != nil {
		return tuningConf{}, err
	}
	i := &invocation{program: p, conf: c}
	for _, e := range env {
		i.params.Args = e
	}
	return i.tuning()
}

func TestTuningPrecedence(t *testing.T) {
	got, err := tuned(t, `"mac":"02:00:00:00:00:01","mtu":1300,"promisc":false,"sysctl":{"net.core.somaxconn":"1","net/ipv4/x":"a"},
		"args":{"cni":{"mac":"02:00:00:00:00:03","mtu":1400,"promisc":true,"allmulti":true,"txQLen":5,"sysctl":{"net.core.somaxconn":"2"},"ips":["10.0.0.1"]}}`,
		"IgnoreUnknown=1;MAC=02:00:00:00:00:02")
	want := tuningConf{MAC: "02:00:00:00:00:03", MTU: 1400, Promisc: new(true), Allmulti: new(true), TxQLen: new(5),
		Sysctl: map[string]string{"core/somaxconn": "2", "ipv4/x": "a"}, DataDir: tuningDir}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v, (-want +got)\n%s", err, diff)
	}
	got, err = tuned(t, `"args":{"cni":{"mac":"02:00:00:00:00:03"}},"runtimeConfig":{"mac":"02:00:00:00:00:04"}`)
	if err != nil || got.MAC != "02:00:00:00:00:04" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err = tuned(t, `"podman_x":1`); err != nil || !got.none() {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTuningRefuses(t *testing.T) {
	for _, test := range []struct{ keys, word string }{
		{`"sysctl":{"kernel.core_pattern":"|x"}`, "kernel.core_pattern"},
		{`"sysctl":{"net/../kernel/x":"1"}`, "net/../kernel/x"},
		{`"sysctl":{"net/ipv4/../../../kernel/x":"1"}`, "kernel"},
		{`"mac":"01:00:00:00:00:01"`, "01:00:00:00:00:01"},
		{`"mtu":70000`, "70000"},
		{`"txQLen":-1`, "-1"},
	} {
		_, err := tuned(t, test.keys)
		wantError(t, err, types.ErrInvalidNetworkConfig, test.word)
	}
}

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.conf.eth0.forwarding":     "net/ipv4/conf/eth0/forwarding",
		"net/ipv4/conf/eth0.100/forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"net.ipv4.conf.eth0/100.forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"net":                               "net",
	} {
		if got := sysctlPath(key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
}

func TestTuningAllowlist(t *testing.T) {
	list := filepath.Join(t.TempDir(), "allowlist.conf")
	c := tuningConf{Sysctl: map[string]string{"ipv4/conf/eth0/arp_filter": "1"}}
	if err := c.allowed(list); err != nil {
		t.Errorf("no list: %v", err)
	}
	write := func(text string) {
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("^net\\.core\\..*$\n\n  ^net\\.ipv4\\.conf\\.[a-z0-9]+\\.arp_filter$\n")
	if err := c.allowed(list); err != nil {
		t.Error(err)
	}
	write("^net\\.core\\..*$\n")
	wantError(t, c.allowed(list), types.ErrInvalidNetworkConfig, "net.ipv4.conf.eth0.arp_filter", list)
	write("[\n")
	wantError(t, c.allowed(list), types.ErrIOFailure, list)
}
