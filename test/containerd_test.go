//go:build runtimes

package test

import (
	"strings"
	"testing"
)

// TestContainerd is containerd 1.6, started once: "ctr run --cni", and its CRI
// service as kubelet uses it.
func TestContainerd(t *testing.T) {
	b := newBed(t)
	serveHTTP(t, b.outside, ":8000")
	c := b.startContainerd()
	c.usePods()
	for _, test := range []struct {
		name string
		run  func(*containerd)
	}{
		{"ctr", testCtr},
		{"pods", testPods},
		{"refused pod", testRefusedPod},
		{"many pods", testManyPods},
		{"killed pause process", testKilledPause},
		{"restart", testRestart},
		{"bandwidth", testBandwidthAnnotations},
		{"daemon away", testDaemonAway},
		{"two networks", testTwoNetworks},
		{"drop-in", testDropIn},
		{"services", testServices},
		{"host access", testHostAccess},
		{"conditions", testConditions},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.t = t
			t.Cleanup(func() {
				c.empty()
				b.t = c.all
			})
			test.run(c)
		})
	}
}

// testCtr: a container of ctr has the outside and DNS, and is deleted with no
// namespace to name.
func testCtr(c *containerd) {
	const script = `get 203.0.113.2 8000; get 2001:db8::2 8000; ip route
		for gateway in 10.88.0.1 fd88::1; do nslookup default-one $gateway; done`
	out := c.exec("ctr", "run", "--rm", "--cni", "--cgroup", c.cgroup+"/one", "--snapshotter", "native", image, "one", "sh", "-c", script)
	for _, want := range []string{"203.0.113.1", "2001:db8::1", "default via 10.88.0.1", "10.88.0.2", "fd88::2"} {
		if !strings.Contains(out, want) {
			c.t.Errorf("want %s in:\n%s", want, out)
		}
	}
	if strings.Contains(out, "fail") || strings.Contains(out, "level=") {
		c.t.Errorf("ctr complains:\n%s", out)
	}
}
