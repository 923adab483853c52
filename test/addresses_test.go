//go:build runtimes

package test

import (
	"strings"
	"testing"

	"github.com/usernet/usernet/internal/nstest"
)

// addRaw runs ADD of a container by its name and returns the result.
func (b *bed) addRaw(id, config string, c container, env ...string) *result {
	b.t.Helper()
	status, out := b.raw("ADD", config, append(env, "CNI_CONTAINERID="+id, "CNI_IFNAME=eth0", "CNI_NETNS="+c.path)...)
	if status != 0 {
		b.t.Fatalf("ADD %s: %s", id, out)
	}
	return b.parse(out)
}

func (b *bed) delRaw(id, config string) {
	b.t.Helper()
	if status, out := b.raw("DEL", config, "CNI_CONTAINERID="+id, "CNI_IFNAME=eth0"); status != 0 {
		b.t.Fatalf("DEL %s: %s", id, out)
	}
}

// TestCNISticky: the next container of a name has the addresses of the last,
// also when the daemon was killed between the two.
func TestCNISticky(t *testing.T) {
	b := newBed(t)
	daemon := b.startDaemon()
	ipam := ranges("10.88.0.0/24", "fd88::/64")
	ipam["sticky"] = true
	config := b.rawConfig("web", "1.0.0", keys{"ipam": ipam})
	names := map[string]string{
		"pod": "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db", "podman": "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=db",
		"nerdctl": "CNI_ARGS=IgnoreUnknown=1;NERDCTL_CNI_DHCP_HOSTNAME=db",
	}
	had := map[string]*result{}
	for who, args := range names {
		had[who] = b.addRaw(who+"1", config, b.container(), args)
		b.delRaw(who+"1", config)
	}
	b.kill(daemon)
	b.startDaemon()
	other := b.addRaw("other", config, b.container())
	for who, args := range names {
		r := b.addRaw(who+"2", config, b.container(), args)
		for n := range r.IPs {
			if r.ip(n) != had[who].ip(n) {
				t.Errorf("%s: has %s, had %s", who, r.ip(n), had[who].ip(n))
			}
			if r.ip(n) == other.ip(n) {
				t.Errorf("%s: %s is another's", who, r.ip(n))
			}
		}
	}
	// The name is in use, so that a second container of it gets what is free.
	if r := b.addRaw("pod3", config, b.container(), names["pod"]); r.ip(0) == had["pod"].ip(0) || r.ip(1) == had["pod"].ip(1) {
		t.Errorf("two containers have %v", r.IPs)
	}
}

// TestCNITwoSubnets: containers of two subnets of one network reach each other
// and both gateways.
func TestCNITwoSubnets(t *testing.T) {
	need(t, "ping", "dig")
	for _, device := range []string{"tun", "tap"} {
		t.Run(device, func(t *testing.T) {
			b := newBed(t)
			b.startDaemon()
			config := b.rawConfig("web", "1.0.0", keys{"device": device, "ipam": keys{"ranges": [][]keys{
				{{"subnet": "10.60.0.0/24", "rangeStart": "10.60.0.2", "rangeEnd": "10.60.0.2", "gateway": "10.60.0.254"}, {"subnet": "10.61.0.0/24"}},
				{{"subnet": "fd60::/64", "rangeEnd": "fd60::2"}, {"subnet": "fd61::/64"}},
			}}})
			one, two := b.container(), b.container()
			r1, r2 := b.addRaw("one", config, one), b.addRaw("two", config, two)
			if r1.ip(0) != "10.60.0.2" || r2.ip(0) != "10.61.0.2" || r2.IPs[0].Gateway != "10.61.0.1" || r2.ip(1) != "fd61::2" {
				t.Fatalf("addresses %+v and %+v", r1.IPs, r2.IPs)
			}
			if got := strings.Join(r2.DNS.Nameservers, " "); got != "10.61.0.1 fd61::1" {
				t.Errorf("name servers %s", got)
			}
			for _, c := range []container{one, two} {
				for _, to := range []string{r1.ip(0), r2.ip(0), r1.ip(1), r2.ip(1), "10.60.0.254", "10.61.0.1", "fd60::1", "fd61::1"} {
					nstest.Exec(t, c.ns, "ping", "-c1", "-W5", to)
				}
				for _, ip := range r2.IPs {
					nstest.Exec(t, c.ns, "dig", "+time=5", "@"+ip.Gateway, "gateway", "+short")
				}
			}
			b.delRaw("one", config)
			b.delRaw("two", config)
		})
	}
}

// TestCNIAddressErrors: an address that cannot be had is refused with the key
// that asked for it, its value, who has it, and what to do.
func TestCNIAddressErrors(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	small := keys{"ipam": keys{"ranges": [][]keys{{{"subnet": "10.86.0.0/24", "rangeStart": "10.86.0.10", "rangeEnd": "10.86.0.11"}}, {{"subnet": "fd86::/64"}}}}}
	config := b.rawConfig("small", "1.1.0", small)
	b.addRaw("holder", config, b.container(), "CNI_ARGS=IP=10.86.0.10")
	ask := func(ips ...string) string {
		more := keys{"ipam": small["ipam"], "runtimeConfig": keys{"ips": ips}}
		return b.rawConfig("small", "1.1.0", more)
	}
	refused := func(id, config, args string, code uint, words ...string) {
		t.Helper()
		status, out := b.raw("ADD", config, "CNI_CONTAINERID="+id, "CNI_IFNAME=eth0", "CNI_NETNS="+b.container().path, "CNI_ARGS="+args)
		got, err := errCode(out)
		if status == 0 || err != nil || got != code {
			t.Errorf("ADD %s: status %d, %v, code %d of %s, want %d", id, status, err, got, out, code)
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("ADD %s: %s lacks %q", id, out, w)
			}
		}
	}
	refused("taken", config, "IP=10.86.0.10", 101, `CNI_ARGS IP`, "10.86.0.10", "small/holder/eth0", "DEL its holder")
	refused("taken6", ask("fd86::2"), "", 101, "runtimeConfig.ips", "fd86::2", "small/holder/eth0", "another address")
	refused("outside", ask("10.86.0.12"), "", 7, "runtimeConfig.ips", "10.86.0.12", "10.86.0.10-10.86.0.11", "of the ranges")
	refused("gateway", ask("10.86.0.1"), "", 7, "runtimeConfig.ips", "10.86.0.1", "it is a gateway", "that is no gateway")
	b.addRaw("second", config, b.container())
	refused("exhausted", config, "", 102, "ipam.ranges", "10.86.0.10-10.86.0.11", "2 of 2", "GC")
	b.wantLeased("small", 4)
}
