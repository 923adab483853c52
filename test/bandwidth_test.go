//go:build runtimes

package test

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/nstest"
)

// TestCNIBandwidth: a container gets the rate that the runtime allows it, with
// the burst that containerd sends, and sends what the configuration allows.
func TestCNIBandwidth(t *testing.T) {
	need(t, "iperf3", "ss")
	b := newBed(t)
	b.startDaemon()
	b.network("web", "1.0.0", nil)
	free, slow := b.container(), b.container()
	const args = `CAP_ARGS={"bandwidth":{"ingressRate":20000000,"ingressBurst":4294967295,"egressRate":40000000,"egressBurst":1000000}}`
	b.add("web", free)
	to := b.add("web", slow, args).ip(1)
	b.must("check", "web", slow, args)
	for _, reverse := range []bool{false, true} {
		server := exec.Command("iperf3", "-s", "-1")
		nstest.Start(t, slow.ns, server)
		nstest.WaitFor(t, 10*time.Second, func() bool {
			return strings.Contains(nstest.Exec(t, slow.ns, "ss", "-Hltn"), ":5201")
		})
		argv, want := []string{"iperf3", "-J", "-c", to, "-O", "1", "-t", "2"}, 20e6
		if reverse {
			argv, want = append(argv, "-R"), 40e6
		}
		got := iperfRate(t, nstest.Exec(t, free.ns, argv...))
		_ = server.Wait() // -1: it ends with its client
		t.Logf("%.1f Mbit/s of %.0f", got/1e6, want/1e6)
		if got < 0.9*want || got > 1.1*want {
			t.Errorf("%.1f Mbit/s, want %.0f within a tenth", got/1e6, want/1e6)
		}
	}
}

// iperfRate reads the received bits per second of iperf3 -J.
func iperfRate(t *testing.T, report string) float64 {
	t.Helper()
	var result struct {
		End struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(report), &result); err != nil {
		t.Fatalf("%v in %s", err, report)
	}
	return result.End.Received.BitsPerSecond
}
