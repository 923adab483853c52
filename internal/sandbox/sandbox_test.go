package sandbox

import (
	"bytes"
	"context"
	"os/exec"
	"testing"

	"github.com/usernet/usernet/internal/nstest"
)

func newPrivate(t *testing.T, cfg PrivateConfig) *Private {
	t.Helper()
	n, err := NewPrivate(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close the network: %v", err)
		}
	})
	return n
}

func TestNetnsLooks(t *testing.T) {
	nstest.Require(t)
	n := newPrivate(t, PrivateConfig{})
	cmd := exec.Command("sh", "-c", "ip addr; ip route; ip -6 route; cat /etc/resolv.conf /etc/hosts; cat /proc/self/status | grep Cap; id; cat /proc/sys/net/ipv4/ping_group_range; ping -c1 10.83.0.1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := Start(context.Background(), cmd, Config{Network: n, Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(p.Wait(), p.Warnings(), out.String())
}
