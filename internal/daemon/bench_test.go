package daemon

import (
	"fmt"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/control"
)

// BenchmarkAttach is the daemon's share of an ADD and a DEL: attach, commit and
// detach through the socket, with every commit on disk.
func BenchmarkAttach(b *testing.B) {
	r := start(b, testConfig(b))
	tun, _ := tunFile(b)
	var attach, commit, detach time.Duration
	for i := 0; b.Loop(); i++ {
		req := request(fmt.Sprint("box", i))
		t0 := time.Now()
		a, err := r.Attach(b.Context(), req, tun)
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := a.Commit(b.Context()); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		a.Close()
		if _, err := r.Detach(b.Context(), control.LinkKey{Network: "net", Container: req.Container, IfName: "eth0"}); err != nil {
			b.Fatal(err)
		}
		attach, commit, detach = attach+t1.Sub(t0), commit+t2.Sub(t1), detach+time.Since(t2)
	}
	n := float64(b.N)
	b.ReportMetric(float64(attach.Microseconds())/n, "attach-µs/op")
	b.ReportMetric(float64(commit.Microseconds())/n, "commit-µs/op")
	b.ReportMetric(float64(detach.Microseconds())/n, "detach-µs/op")
}
