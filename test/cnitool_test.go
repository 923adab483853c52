//go:build runtimes

package test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// TestCNIVerbs runs every verb twice and in orders that no runtime should use
// and some do.
func TestCNIVerbs(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	b.network("web", "1.1.0", nil)
	c := b.container()
	for range 2 {
		b.must("status", "web", c)
		b.must("del", "web", c) // before any ADD
	}
	b.must("gc", "web", c)
	r := b.add("web", c)
	if r.CNIVersion != "1.1.0" || len(r.Interfaces) != 1 || r.Interfaces[0].Name != "eth0" || r.Interfaces[0].Sandbox != c.path || len(r.IPs) != 2 {
		t.Errorf("result %+v", r)
	}
	if _, err := net.ParseMAC(r.Interfaces[0].Mac); err != nil {
		t.Errorf("podman would refuse the result: %v", err)
	}
	for range 2 {
		b.must("check", "web", c)
		b.must("status", "web", c)
	}
	if _, err := b.cnitool("add", "web", c); err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("a second ADD: %v", err)
	}
	b.must("check", "web", c) // the refused ADD has broken nothing
	for range 2 {
		b.must("del", "web", c)
	}
	if _, err := b.cnitool("check", "web", c); err == nil {
		t.Error("CHECK succeeds after DEL")
	}
	if out, err := nstest.TryExec(t, c.ns, "ip", "link", "show", "eth0"); err == nil {
		t.Errorf("eth0 is still there: %s", out)
	}
	again := b.add("web", c)
	if again.ip(0) == r.ip(0) || again.Interfaces[0].Mac == r.Interfaces[0].Mac {
		t.Errorf("a new ADD got the old address or MAC: %v %v", again.IPs, again.Interfaces)
	}
	b.must("gc", "web", c) // cnitool sends no list: nothing is valid
	if got := b.links(); len(got) != 0 {
		t.Errorf("after GC: %v", got)
	}
	b.must("del", "web", c)
}

// echo serves TCP in a namespace, answering with a name, the peer's address
// and a newline, and UDP, answering the same.
func echo(t *testing.T, ns *netns.Handle, name, address string) {
	for _, network := range []string{"tcp", "udp"} {
		nstest.Answer(t, ns, name, network, address)
	}
}

// TestCNITwoContainers: containers of one network reach each other over both
// families with ICMP, TCP and UDP, and answer to their names.
func TestCNITwoContainers(t *testing.T) {
	need(t, "ping", "socat", "dig")
	b := newBed(t)
	b.startDaemon()
	b.network("web", "1.0.0", nil)
	alice, bob := b.container(), b.container()
	ra := b.add("web", alice, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=alice")
	rb := b.add("web", bob, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=bob", `CAP_ARGS={"aliases":{"web":["robert"]}}`)
	echo(t, bob.ns, "bob", ":7000")
	for n := range 2 {
		a, bb := ra.ip(n), rb.ip(n)
		nstest.Exec(t, alice.ns, "ping", "-c1", "-W2", bb)
		nstest.Exec(t, bob.ns, "ping", "-c1", "-W2", a)
		for _, proto := range []string{"TCP", "UDP"} {
			peer := proto + ":" + net.JoinHostPort(bb, "7000")
			if strings.Contains(bb, ":") {
				peer = proto + "6:[" + bb + "]:7000"
			}
			out := nstest.Exec(t, alice.ns, "sh", "-c", "echo hello | timeout 5 socat -T1 - "+peer)
			if !strings.HasPrefix(out, "bob ") || !strings.Contains(out, a) {
				t.Errorf("%s: %q, want it to name bob and %s", peer, out, a)
			}
		}
		// The gateway of either family resolves the names of either.
		for name, record := range map[string]string{"bob": "A", "robert": "AAAA"} {
			out := nstest.Exec(t, alice.ns, "dig", "+short", "+time=2", "+tries=1", "@"+ra.IPs[n].Gateway, name, record)
			want := map[string]string{"A": rb.ip(0), "AAAA": rb.ip(1)}[record]
			if strings.TrimSpace(out) != want {
				t.Errorf("dig %s %s: %q, want %s", name, record, out, want)
			}
		}
	}
}

// TestCNINetworksAreApart: what is on two networks does not meet.
func TestCNINetworksAreApart(t *testing.T) {
	need(t, "ping")
	b := newBed(t)
	b.startDaemon()
	b.network("red", "1.0.0", keys{"ipam": ranges("10.81.0.0/24", "fd81::/64")})
	b.network("blue", "1.0.0", keys{"ipam": ranges("10.82.0.0/24", "fd82::/64")})
	red, blue := b.container(), b.container()
	rr, rb := b.add("red", red), b.add("blue", blue)
	echo(t, blue.ns, "blue", ":7000")
	for n := range 2 {
		nstest.Exec(t, red.ns, "ping", "-c1", "-W2", rr.IPs[n].Gateway) // its own works
		if out, err := nstest.TryExec(t, red.ns, "ping", "-c1", "-W1", rb.ip(n)); err == nil {
			t.Errorf("red reaches blue: %s", out)
		}
		if out, err := nstest.TryExec(t, red.ns, "timeout", "2", "socat", "-u", "TCP:"+net.JoinHostPort(rb.ip(n), "7000"), "-"); err == nil && out != "" {
			t.Errorf("red reaches blue: %s", out)
		}
	}
	// One container on both networks talks to each.
	b.add("blue", red, "CNI_IFNAME=net1")
	for n := range 2 {
		nstest.Exec(t, red.ns, "ping", "-c1", "-W2", rb.ip(n))
	}
	b.must("check", "red", red)
	b.must("check", "blue", red, "CNI_IFNAME=net1")
	b.must("del", "red", red)
	b.must("check", "blue", red, "CNI_IFNAME=net1")
	// The default route of the network that is left takes over.
	for n, outside := range []string{"203.0.113.2", "2001:db8::2"} {
		out := nstest.Exec(t, red.ns, "ip", "route", "get", outside)
		if !strings.Contains(out, "via "+rb.IPs[n].Gateway+" dev net1") {
			t.Errorf("route to %s: %s", outside, out)
		}
	}
}

// TestCNIEgress: a container reaches the outside over both families, and not
// the host's loopback.
func TestCNIEgress(t *testing.T) {
	need(t, "curl", "ping")
	b := newBed(t)
	b.startDaemon()
	b.network("web", "1.0.0", nil)
	c := b.container()
	r := b.add("web", c)
	serveHTTP(t, b.outside, ":8000")
	serveHTTP(t, b.host, "127.0.0.1:8001")
	for host, from := range map[string]string{"203.0.113.2": "203.0.113.1", "[2001:db8::2]": "2001:db8::1"} {
		if out := nstest.Exec(t, c.ns, "curl", "-sS", "-m5", "http://"+host+":8000/"); out != from {
			t.Errorf("%s saw %q, want %s", host, out, from)
		}
	}
	for _, host := range []string{r.IPs[0].Gateway, "127.0.0.1", "203.0.113.1"} {
		if out, err := nstest.TryExec(t, c.ns, "curl", "-sS", "-m2", "http://"+host+":8001/"); err == nil {
			t.Errorf("the host's loopback answers at %s: %s", host, out)
		}
	}
}

// serveHTTP answers every request with the address that it came from.
func serveHTTP(t *testing.T, ns *netns.Handle, address string) {
	l := nstest.Listen(t, ns, "tcp", address)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(w, host)
	})}
	go func() { _ = srv.Serve(l) }() // ends with the listener
}

// TestCNIPortMappings: a published port is reached over loopback, the host's
// own address and from outside, over both families, and the container sees who
// asks.
func TestCNIPortMappings(t *testing.T) {
	need(t, "curl")
	b := newBed(t)
	b.startDaemon()
	b.network("web", "1.0.0", nil)
	c := b.container()
	b.add("web", c, `CAP_ARGS={"portMappings":[
		{"hostPort":80,"containerPort":8080,"protocol":"tcp"},
		{"hostPort":81,"containerPort":8080,"protocol":"tcp","hostIP":"127.0.0.1"},
		{"hostPort":7001,"containerPort":7000,"protocol":"udp"}]}`)
	serveHTTP(t, c.ns, ":8080")
	echo(t, c.ns, "c", ":7000")
	for _, test := range []struct {
		from *netns.Handle
		url  string
		seen string // empty: any
	}{
		{b.host, "http://127.0.0.1/", ""},
		{b.host, "http://[::1]/", ""},
		{b.host, "http://127.0.0.1:81/", ""},
		{b.host, "http://203.0.113.1/", ""},
		{b.outside, "http://203.0.113.1/", "203.0.113.2"},
		{b.outside, "http://[2001:db8::1]/", "2001:db8::2"},
	} {
		out := nstest.Exec(t, test.from, "curl", "-sS", "-m5", test.url)
		if out == "" || test.seen != "" && out != test.seen {
			t.Errorf("%s: the container saw %q, want %q", test.url, out, test.seen)
		}
	}
	if out, err := nstest.TryExec(t, b.outside, "curl", "-sS", "-m2", "http://203.0.113.1:81/"); err == nil {
		t.Errorf("the port on the loopback answers outside: %s", out)
	}
	out := nstest.Exec(t, b.outside, "sh", "-c", "echo hello | timeout 5 socat -T1 - UDP:203.0.113.1:7001")
	if out != "c 203.0.113.2" {
		t.Errorf("UDP: %q", out)
	}
	// CHECK sees the listeners, a second container does not get them.
	args := `CAP_ARGS={"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}]}`
	b.must("check", "web", c, args)
	other := b.container()
	_, err := b.cnitool("add", "web", other, args)
	if err == nil || !strings.Contains(err.Error(), ":80/tcp is in use by usernet (pid ") {
		t.Errorf("a port that is taken: %v", err)
	}
	if got := b.links(); len(got) != 1 {
		t.Errorf("links %v", got)
	}
	b.must("del", "web", c) // cnitool has forgotten the mappings, the daemon has not
	b.add("web", other, args)
}

// TestCNIRequests: ips, ipRanges, mac and dns arrive, by each of their ways.
func TestCNIRequests(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	b.network("web", "1.0.0", keys{"dns": keys{"domain": "web.internal"}, "mtu": 1400})
	c := b.container()
	r := b.add("web", c, `CAP_ARGS={"ips":["10.88.0.77/24","fd88::77"],"mac":"02:11:22:33:44:55","dns":{"servers":["9.9.9.9"],"searches":["example.org"]}}`)
	if r.IPs[0].Address != "10.88.0.77/24" || r.IPs[1].Address != "fd88::77/64" || r.IPs[1].Gateway != "fd88::1" {
		t.Errorf("ips %+v", r.IPs)
	}
	if r.Interfaces[0].Mac != "02:11:22:33:44:55" || r.Interfaces[0].Mtu != 1400 {
		t.Errorf("interface %+v", r.Interfaces[0])
	}
	if d := r.DNS; fmt.Sprintf("%v %v %v", d.Nameservers, d.Domain, d.Search) != "[9.9.9.9] web.internal [example.org]" {
		t.Errorf("dns %+v", d)
	}
	other := b.container()
	if _, err := b.cnitool("add", "web", other, "CNI_ARGS=IP=10.88.0.77"); err == nil || !strings.Contains(err.Error(), "10.88.0.77") {
		t.Errorf("an address that is taken: %v", err)
	}
	if r := b.add("web", other, "CNI_ARGS=IgnoreUnknown=1;IP=10.88.0.78"); r.ip(0) != "10.88.0.78" || len(r.DNS.Nameservers) == 0 || r.DNS.Nameservers[0] != "10.88.0.1" {
		t.Errorf("ips %+v dns %+v", r.IPs, r.DNS)
	}
	b.network("pods", "1.0.0", keys{"ipam": nil})
	pod := b.container()
	r = b.add("pods", pod, `CAP_ARGS={"ipRanges":[[{"subnet":"10.89.0.0/24","rangeStart":"10.89.0.50","rangeEnd":"10.89.0.50","gateway":"10.89.0.254"}]]}`)
	if len(r.IPs) != 1 || r.IPs[0].Address != "10.89.0.50/24" || r.IPs[0].Gateway != "10.89.0.254" {
		t.Errorf("ips %+v", r.IPs)
	}
	if _, err := b.cnitool("add", "web", b.container(), `CAP_ARGS={"bandwidth":{"ingressRate":1000}}`); err == nil || !strings.Contains(err.Error(), "bandwidth") {
		t.Errorf("bandwidth: %v", err)
	}
}

// TestCNIDelegatedIPAM: the addresses of host-local and static are used exactly.
func TestCNIDelegatedIPAM(t *testing.T) {
	need(t, "ping")
	for _, p := range []string{"host-local", "static"} {
		if _, err := os.Stat(refPlugins + "/" + p); err != nil {
			t.Fatalf("%v; install containernetworking-plugins", err)
		}
	}
	b := newBed(t)
	b.startDaemon()
	leases := t.TempDir()
	b.network("local", "1.0.0", keys{"ipam": keys{"type": "host-local", "dataDir": leases,
		"ranges": [][]keys{{{"subnet": "10.90.0.0/24", "rangeStart": "10.90.0.100"}}, {{"subnet": "fd90::/64"}}},
		"routes": []keys{{"dst": "0.0.0.0/0"}}}})
	b.network("fixed", "1.0.0", keys{"ipam": keys{"type": "static", "addresses": []keys{
		{"address": "10.91.0.7/24", "gateway": "10.91.0.1"}, {"address": "fd91::7/64", "gateway": "fd91::1"}}}})
	one, two, fixed := b.container(), b.container(), b.container()
	r1, r2 := b.add("local", one), b.add("local", two)
	if r1.IPs[0].Address != "10.90.0.100/24" || r2.IPs[0].Address != "10.90.0.101/24" || r1.IPs[0].Gateway != "10.90.0.1" || len(r1.IPs) != 2 {
		t.Errorf("host-local: %+v %+v", r1.IPs, r2.IPs)
	}
	if len(r1.Routes) != 1 || r1.Routes[0].Dst != "0.0.0.0/0" {
		t.Errorf("host-local's routes: %+v", r1.Routes)
	}
	for n := range 2 {
		nstest.Exec(t, one.ns, "ping", "-c1", "-W2", r2.ip(n))
	}
	rf := b.add("fixed", fixed)
	if rf.IPs[0].Address != "10.91.0.7/24" || rf.IPs[1].Address != "fd91::7/64" || len(rf.Routes) != 2 {
		t.Errorf("static: %+v %+v", rf.IPs, rf.Routes)
	}
	nstest.Exec(t, fixed.ns, "ping", "-c1", "-W2", "10.91.0.1")
	// A second container of the same fixed address is refused, by the daemon.
	if _, err := b.cnitool("add", "fixed", b.container()); err == nil || !strings.Contains(err.Error(), "10.91.0.7") {
		t.Errorf("the same fixed address twice: %v", err)
	}
	b.must("check", "local", one)
	b.must("check", "fixed", fixed)
	for range 2 {
		b.must("del", "local", one)
		b.must("del", "fixed", fixed)
	}
	entries, err := os.ReadDir(leases + "/local")
	if err != nil {
		t.Fatal(err)
	}
	left := slices.DeleteFunc(entries, func(e os.DirEntry) bool {
		return !strings.HasPrefix(e.Name(), "10.") && !strings.HasPrefix(e.Name(), "fd")
	})
	if len(left) != 2 { // two's
		t.Errorf("leases left: %v", left)
	}
}
