//go:build runtimes

package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

const (
	// chaosVar is how many kills a run of TestCNIChaos takes, and chaosKills
	// what an ordinary run of the tests takes.
	chaosVar   = "USERNET_CHAOS_KILLS"
	chaosKills = 60

	chaosWorkers = 8
	// chaosOneIn is of how many plugins one is killed.
	chaosOneIn = 12
)

// chaosNetworks are small, so that addresses come round while others still hold
// theirs.
var chaosNetworks = map[string]keys{
	"web":  {"ipam": ranges("10.88.0.0/27", "fd88::/123")},
	"deep": {"device": "tap", "ipam": ranges("10.87.0.0/27", "fd87::/123")},
}

// chaos is one run: a daemon that is killed and started again, and workers
// whose plugins are killed.
type chaos struct {
	b       *bed
	configs map[string]string
	workers []*chaosWorker
	daemon  *exec.Cmd
	oneIn   int // plugins of which one is killed; 0: none is

	mu     sync.Mutex // guards what follows
	held   map[netip.Addr]control.LinkKey
	counts map[string]int
	faults []string
}

func (c *chaos) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

func (c *chaos) kills() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts["kill: daemon"] + c.counts["kill: plugin"]
}

func (c *chaos) fault(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts["fault"]++
	if len(c.faults) < 20 {
		c.faults = append(c.faults, fmt.Sprintf(format, args...))
	}
}

// hold notes the addresses of an ADD that succeeded. Until its DEL begins they
// must be nobody else's, whatever is killed meanwhile.
func (c *chaos) hold(key control.LinkKey, addrs []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range addrs {
		if other, taken := c.held[a]; taken {
			c.counts["duplicate address"]++
			c.faults = append(c.faults, fmt.Sprintf("%v was given to %v and %v", a, other, key))
		}
		c.held[a] = key
	}
}

func (c *chaos) letGo(addrs []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range addrs {
		delete(c.held, a)
	}
}

// TestCNIChaos kills daemon and plugins with SIGKILL at random moments of ADDs
// and DELs, and lets containers die without a DEL, until USERNET_CHAOS_KILLS
// kills have hit a running process. After every few, and at the end, a daemon is
// started, GC is run, and the world must be what the successful ADDs made of it:
// no address held twice, and no address, device, listener or namespace left
// over.
func TestCNIChaos(t *testing.T) {
	goal := chaosKills
	if s := os.Getenv(chaosVar); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("%s=%q: want how many kills", chaosVar, s)
		}
		goal = n
	}
	seed := uint64(time.Now().UnixNano())
	c := newChaos(t, chaosNetworks, chaosWorkers, seed)
	c.oneIn = chaosOneIn
	rng := rand.New(rand.NewPCG(seed, 1<<32))
	began := time.Now()
	c.start()
	for c.kills() < goal && !t.Failed() {
		c.epoch(rng, min(goal-c.kills(), 25))
		c.reconcile()
		c.report()
	}
	c.end()
	c.report()
	t.Logf("seed %d, %v", seed, time.Since(began).Round(time.Second))
	for _, what := range slices.Sorted(maps.Keys(c.counts)) {
		t.Logf("%6d %s", c.counts[what], what)
	}
	for _, what := range []string{"ADD: succeeded", "DEL: succeeded", "kill: daemon", "kill: plugin", "container died"} {
		if c.counts[what] == 0 {
			t.Errorf("%s: never; the test has seen nothing", what)
		}
	}
}

// newChaos makes a run without a daemon, and workers without containers.
func newChaos(t *testing.T, networks map[string]keys, workers int, seed uint64) *chaos {
	t.Helper()
	c := &chaos{b: newBed(t), configs: map[string]string{}, held: map[netip.Addr]control.LinkKey{}, counts: map[string]int{
		"duplicate address": 0, "leaked or lost address, link, device, listener, namespace": 0, "fault": 0}}
	for name, more := range networks {
		c.configs[name] = c.b.rawConfig(name, "1.1.0", more)
	}
	for n := range workers {
		c.workers = append(c.workers, &chaosWorker{c: c, n: n, rng: rand.New(rand.NewPCG(seed, uint64(n)))})
	}
	t.Cleanup(func() {
		for _, w := range c.workers {
			w.die()
		}
	})
	return c
}

// report makes the faults found so far those of the test.
func (c *chaos) report() {
	c.b.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.faults {
		c.b.t.Error(f)
	}
	c.faults = nil
}

// epoch lets the workers work while the daemon is killed, for a number of
// kills; once in two times it is killed once more when they have stopped.
func (c *chaos) epoch(rng *rand.Rand, kills int) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, w := range c.workers {
		wg.Go(func() { w.run(ctx) })
	}
	for until := c.kills() + kills; c.kills() < until; {
		<-time.After(time.Duration(80+rng.IntN(600)) * time.Millisecond) // the moment of the kill
		if rng.IntN(6) == 0 {
			c.stop()
		} else {
			c.kill()
		}
		<-time.After(time.Duration(rng.IntN(80)) * time.Millisecond) // for which there is none
		c.start()
	}
	cancel()
	wg.Wait()
	if rng.IntN(2) == 0 { // and what the workers hold is lost
		c.kill()
		c.start()
	}
}

// start starts a daemon and waits until it serves.
func (c *chaos) start() {
	b := c.b
	c.daemon = exec.Command(program("usernet"), "daemon", "--socket", b.socket, "--state-dir", b.dir+"/state", "--log-level", "warn")
	var log strings.Builder
	c.daemon.Stdout, c.daemon.Stderr = &log, &log
	nstest.Start(b.t, b.host, c.daemon)
	deadline := time.Now().Add(30 * time.Second)
	for {
		if _, err := b.client.Version(context.Background()); err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.kill()
			b.t.Fatalf("the daemon does not serve; it said:\n%s", log.String())
		}
		<-time.After(2 * time.Millisecond)
	}
}

func (c *chaos) kill() {
	c.b.kill(c.daemon)
	c.count("kill: daemon")
}

// stop ends the daemon in order.
func (c *chaos) stop() {
	if err := c.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		c.b.t.Fatal(err)
	}
	if err := c.daemon.Wait(); err != nil {
		c.fault("daemon at SIGTERM: %v", err)
	}
	c.count("daemon stopped by SIGTERM")
}

// end lets go of everything: every address, device, listener and namespace must
// be gone after one more start and GC.
func (c *chaos) end() {
	for _, w := range c.workers {
		w.die()
	}
	c.kill()
	c.start()
	c.reconcile()
	if stones, err := control.Tombstones(c.b.socket); err != nil || len(stones) > 0 {
		c.fault("tombstones left: %v, %v", stones, err)
	}
	c.stop()
	for _, name := range c.hostDevices() {
		c.fault("left in the host's namespace: %s", name)
	}
}

// collect runs GC on all networks, with what the workers hold as valid.
func (c *chaos) collect() {
	for name, config := range c.configs {
		var valid []keys
		for _, w := range c.workers {
			if w.key.Network == name && w.addrs != nil {
				valid = append(valid, keys{"containerID": w.key.Container, "ifname": w.key.IfName})
			}
		}
		var full keys
		if err := json.Unmarshal([]byte(config), &full); err != nil {
			c.b.t.Fatal(err)
		}
		full["cni.dev/valid-attachments"] = valid
		text, err := json.Marshal(full)
		if err != nil {
			c.b.t.Fatal(err)
		}
		if status, out := c.b.raw("GC", string(text)); status != 0 {
			c.fault("GC of %s: %s", name, out)
		}
		c.count("GC")
	}
}

// errCode is the code of a plugin's error object.
func errCode(out string) (uint, error) {
	var e struct{ Code *uint }
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		return 0, err
	}
	if e.Code == nil {
		return 0, errors.New("no code")
	}
	return *e.Code, nil
}
