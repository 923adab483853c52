//go:build runtimes

package test

import (
	"strings"

	"github.com/usernet/usernet/internal/nstest"
)

// services are what kube-proxy writes for Services of two families: DNAT in the
// chains of local and of forwarded connections. An address of the first is that
// of an endpoint outside of the node, of the second, of one on the node itself,
// as an API server is to the pods beside it.
const services = `
table inet kube {
	chain services {
		ip daddr 10.96.0.1 tcp dport 443 dnat ip to 203.0.113.2:8000
		ip6 daddr fd96::1 tcp dport 443 dnat ip6 to [2001:db8::2]:8000
		ip daddr 10.96.0.2 tcp dport 443 dnat ip to 203.0.113.1:6443
		ip6 daddr fd96::2 tcp dport 443 dnat ip6 to [2001:db8::1]:6443
		ip daddr 10.96.0.10 udp dport 53 dnat ip to 203.0.113.2:5353
	}
	chain output { type nat hook output priority -100; jump services; }
	chain prerouting { type nat hook prerouting priority -100; jump services; }
}
`

// testServices: pods reach Services, since what leaves them are sockets of the
// node, which kube-proxy's rules are for as well; the node's own addresses stay
// refused to them.
func testServices(c *containerd) {
	need(c.t, "nft")
	nstest.Exec(c.t, c.host, "sh", "-c", "nft -f - <<'END'\n"+services+"END")
	c.t.Cleanup(func() { nstest.Exec(c.t, c.host, "nft", "delete", "table", "inet", "kube") })
	c.serviceRoutes()
	serveHTTP(c.t, c.host, ":6443")
	echo(c.t, c.outside, "dns", "203.0.113.2:5353")
	pod := c.run("client", nil)
	for _, service := range []string{"10.96.0.1", "fd96::1", "10.96.0.2", "fd96::2"} {
		if out := pod.exec("get", service, "443"); !strings.Contains(out, "200 OK") {
			c.t.Errorf("service %s answered %q", service, out)
		}
	}
	out := pod.inNetns("sh", "-c", "echo hello | timeout 10 socat -T2 - UDP:10.96.0.10:53")
	if !strings.HasPrefix(out, "dns ") {
		c.t.Errorf("the service of UDP answered %q", out)
	}
	for _, node := range []string{"203.0.113.1", "2001:db8::1"} {
		if out, err := pod.try("get", node, "6443"); err == nil && strings.Contains(out, "200 OK") {
			c.t.Errorf("the node answers the pod at %s: %q", node, out)
		}
	}
}

// serviceRoutes gives the addresses of Services a route, as the node's default
// route does: a socket needs one before any rule sees its packets.
func (c *containerd) serviceRoutes() {
	c.t.Helper()
	nstest.Exec(c.t, c.host, "ip", "route", "replace", "10.96.0.0/16", "via", "203.0.113.2")
	nstest.Exec(c.t, c.host, "ip", "-6", "route", "replace", "fd96::/64", "via", "2001:db8::2")
}
