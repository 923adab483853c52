//go:build runtimes

package test

import (
	"strings"
	"testing"

	"github.com/usernet/usernet/internal/nstest"
)

// TestCNITAP: the runtime's MAC address is on the wire, whose neighbours answer over
// both families.
func TestCNITAP(t *testing.T) {
	need(t, "ping", "ip")
	b := newBed(t)
	b.startDaemon()
	b.network("wire", "1.1.0", keys{"device": "tap"})
	alice, bob := b.container(), b.container()
	const mac = "02:c0:ff:ee:00:0a"
	ra := b.add("wire", alice, "CAP_ARGS="+`{"mac":"`+mac+`"}`)
	b.must("check", "wire", alice, "CAP_ARGS="+`{"mac":"`+mac+`"}`)
	out := nstest.Exec(t, alice.ns, "ip", "link", "show", "eth0")
	if ra.Interfaces[0].Mac != mac || !strings.Contains(out, "link/ether "+mac) {
		t.Errorf("result %+v, interface %s", ra.Interfaces, out)
	}
	rb := b.add("wire", bob)
	if rb.Interfaces[0].Mac == mac || rb.Interfaces[0].Mac == "" {
		t.Errorf("result %+v", rb.Interfaces)
	}
	for n := range 2 {
		nstest.Exec(t, alice.ns, "ping", "-n", "-c1", "-W5", rb.ip(n))
		nstest.Exec(t, bob.ns, "ping", "-n", "-c1", "-W5", ra.IPs[n].Gateway)
	}
	for range 2 {
		b.must("del", "wire", alice)
	}
	if out, err := nstest.TryExec(t, alice.ns, "ip", "link", "show", "eth0"); err == nil {
		t.Errorf("after DEL there is %s", out)
	}
}
