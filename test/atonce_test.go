//go:build runtimes

package test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/nstest"
)

// TestCNIAtOnce: 50 DELs and 50 ADDs at once, of containers on two networks
// each, both of which bring default routes, while the daemon is left alone, is
// restarted in order, or is killed. Whatever happens to it, an ADD succeeds or
// fails as a whole, a DEL succeeds, and nothing is duplicated or left over.
func TestCNIAtOnce(t *testing.T) {
	networks := map[string]keys{
		"web":  {"ipam": ranges("10.88.0.0/24", "fd88::/64")},
		"deep": {"device": "tap", "ipam": ranges("10.87.0.0/24", "fd87::/64")},
	}
	const half = 50
	for name, disturb := range map[string]func(*chaos){
		"undisturbed": nil, "SIGTERM": (*chaos).stop, "SIGKILL": (*chaos).kill,
	} {
		t.Run(name, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			c := newChaos(t, networks, 2*half, seed)
			c.start()
			old, fresh := c.workers[:half], c.workers[half:]
			each := func(do func(*chaosWorker), workers ...*chaosWorker) {
				var wg sync.WaitGroup
				for _, w := range workers {
					wg.Go(func() { do(w) })
				}
				wg.Wait()
			}
			for _, all := range [][]*chaosWorker{old, fresh} {
				for n := 0; n < half; n += 2 {
					if err := all[n].create(); err != nil {
						t.Fatal(err)
					}
					all[n+1].join(all[n])
				}
			}
			each((*chaosWorker).add, old...)
			if c.counts["ADD: succeeded"] != half {
				t.Errorf("of %d ADDs at once: %v", half, c.counts)
			}
			c.reconcile()
			var wg sync.WaitGroup
			wg.Go(func() { each((*chaosWorker).del, old...) })
			wg.Go(func() { each((*chaosWorker).add, fresh...) })
			if disturb != nil {
				<-time.After(time.Duration(rand.IntN(400)) * time.Millisecond) // the moment
				disturb(c)
				c.start()
			}
			wg.Wait()
			c.reconcile()
			if disturb == nil {
				if c.counts["ADD: succeeded"] != 2*half {
					t.Errorf("of %d ADDs: %v", 2*half, c.counts)
				}
				for _, w := range fresh[:2] {
					nstest.Exec(t, w.ns, "ping", "-c1", "-W5", map[string]string{"web": "10.88.0.1", "deep": "10.87.0.1"}[w.key.Network])
				}
			}
			if c.counts["DEL: succeeded"] != half {
				t.Errorf("of %d DELs: %v", half, c.counts)
			}
			c.end()
			c.report()
			t.Log(c.counts)
		})
	}
}
