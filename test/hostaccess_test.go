//go:build runtimes

package test

import (
	"fmt"
	"strings"

	"github.com/usernet/usernet/internal/nstest"
)

// testHostAccess: with "hostAccess" the node reaches its pods, as kubelet's
// probes do; a Service leads to a pod of the node, from the node and from
// another pod; and CRI-O's rules for a hostPort lead a client from outside to
// the pod.
func testHostAccess(c *containerd) {
	need(c.t, "nft", "curl", "ping")
	c.conflists("/etc/cni/net.d", conflist{"10-probed", []keys{c.plugin(keys{
		"hostAccess": keys{"enabled": true, "forward": true}, "ipam": ranges("10.83.0.0/24", "fd83::/64"),
	})}})
	defer c.usePods()
	c.waitNetwork("probed")
	web, client := c.run("web", nil), c.run("client", nil)
	web.serve("80")
	c.probe(web, "10.83.0.1", "fd83::1")

	rules := fmt.Sprintf(`
table inet kube {
	chain services {
		ip daddr { 10.96.0.3, 203.0.113.1 } tcp dport 8090 dnat ip to %s:80
		ip6 daddr { fd96::3, 2001:db8::1 } tcp dport 8090 dnat ip6 to [%s]:80
	}
	chain output { type nat hook output priority -100; jump services; }
	chain prerouting { type nat hook prerouting priority -100; jump services; }
}
`, web.ips[0], web.ips[1])
	nstest.Exec(c.t, c.host, "sh", "-c", "nft -f - <<'END'\n"+rules+"END")
	c.t.Cleanup(func() { nstest.Exec(c.t, c.host, "nft", "delete", "table", "inet", "kube") })
	nstest.Exec(c.t, c.host, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	c.serviceRoutes()
	for n, service := range []string{"10.96.0.3", "fd96::3"} {
		wantReply(c, client.get(service, "8090"), "web", "")
		at := []string{"10.96.0.3", "[fd96::3]"}[n]
		wantReply(c, nstest.Exec(c.t, c.host, "curl", "-sS", "-m10", "http://"+at+":8090/cgi-bin/who"), "web", "")
		node := []string{"203.0.113.1", "[2001:db8::1]"}[n]
		seen := []string{"203.0.113.2", "2001:db8::2"}[n]
		wantReply(c, nstest.Exec(c.t, c.outside, "curl", "-sS", "-m10", "http://"+node+":8090/cgi-bin/who"), "web", seen)
	}
}

// probe has the node ask a pod over both families, as kubelet's probes do; the
// pod sees the gateways.
func (c *containerd) probe(s *sandbox, gateways ...string) {
	c.t.Helper()
	for n, gateway := range gateways {
		at := s.ips[n]
		nstest.Exec(c.t, c.host, "ping", "-n", "-c1", "-W5", at)
		if strings.Contains(at, ":") {
			at = "[" + at + "]"
		}
		out := nstest.Exec(c.t, c.host, "curl", "-sS", "-m10", "http://"+at+"/cgi-bin/who")
		wantReply(c, out, s.name, gateway)
	}
}
