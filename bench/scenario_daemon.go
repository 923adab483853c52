package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func isDaemon(b Backend) bool { _, ok := b.(*usernet); return ok }

// cniLatency is ADD and DEL of one more container, beside the reference plugin.
func cniLatency() Scenario {
	return Scenario{
		Name:    "cni",
		Applies: func(b Backend) bool { _, ok := b.(*bridge); return isDaemon(b) || ok && referencePlugin() },
		Figures: []Figure{{Name: "add", Unit: "ms"}, {Name: "del", Unit: "ms"}},
		Run: func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
			const times = 10
			var add, del []float64
			for range times {
				a, d, err := oneMore(ctx, b.topo, backend)
				if err != nil {
					return nil, err
				}
				add, del = append(add, a), append(del, d)
			}
			return []float64{median(add), median(del)}, nil
		},
	}
}

// pluginDir is where Debian has the reference plugins.
const pluginDir = "/usr/lib/cni"

func referencePlugin() bool {
	_, err := os.Stat(filepath.Join(pluginDir, "bridge"))
	return err == nil
}

// oneMore adds a container, deletes it, and returns the milliseconds of each.
func oneMore(ctx context.Context, t *Topology, backend Backend) (add, del float64, err error) {
	name := t.prefix + "-more"
	if err := run(ctx, "ip", "netns", "add", name); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, cleanup([]string{"ip", "netns", "del", name})) }()
	verb := func(v string) (float64, error) {
		begin := time.Now()
		var err error
		if u, ok := backend.(*usernet); ok {
			err = u.cni(ctx, t.Host, v, name, false)
		} else {
			err = cniVerb(ctx, t.Host, filepath.Join(pluginDir, "bridge"), pluginDir, v, name,
				`{"cniVersion":"1.0.0","name":"bench","type":"bridge","bridge":"br0","isGateway":false,
				  "ipam":{"type":"host-local","dataDir":"/run/`+t.prefix+`","ranges":[[{"subnet":"10.66.9.0/24"}],[{"subnet":"fd66:9::/64"}]]}}`)
		}
		return float64(time.Since(begin)) / float64(time.Millisecond), err
	}
	if add, err = verb("ADD"); err != nil {
		return 0, 0, err
	}
	del, err = verb("DEL")
	return add, del, errors.Join(err, os.RemoveAll("/run/"+t.prefix))
}

// runLatency is how long a sandbox takes from its start to the first byte from
// outside, and to its end with a command that does nothing further.
func runLatency() Scenario {
	return Scenario{
		Name: "run", Figures: []Figure{{Name: "first-byte", Unit: "ms"}, {Name: "end", Unit: "ms"}},
		Applies: func(b Backend) bool { return sandboxArgv(b) != nil },
		Run: func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
			server, err := start(in(b.topo.Server, b.self, "probe", "server")...)
			if err != nil {
				return nil, err
			}
			defer server.stop()
			if err := server.await(ctx, "server", func() bool { return listens(b.topo.Server, probePort) }); err != nil {
				return nil, err
			}
			const times = 10
			var first, end []float64
			for range times {
				f, e, err := b.firstByte(ctx, sandboxArgv(backend))
				if err != nil {
					return nil, err
				}
				first, end = append(first, f), append(end, e)
			}
			return []float64{median(first), median(end)}, nil
		},
	}
}

// firstByte runs a probe in a sandbox and returns the milliseconds until the
// byte that it prints, and until its end. ip netns exec is some 4 of either.
func (b *Bench) firstByte(ctx context.Context, sandbox []string) (first, end float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	argv := append(sandbox, b.self, "probe", "get", "-addr", fmt.Sprintf("%s:%d", serverV4, probePort))
	cmd := bounded(ctx, in(b.topo.Host, argv...))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	since := func() float64 { return float64(time.Since(begin)) / float64(time.Millisecond) }
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	_, readErr := out.Read(make([]byte, 1))
	first = since()
	if err := errors.Join(cmd.Wait(), readErr); err != nil {
		return 0, 0, fmt.Errorf("%s: %w: %s", sandbox[0], err, tail(stderr.String()))
	}
	return first, since(), nil
}

// sandboxArgv starts a command in a network of its own; nil: the backend cannot.
func sandboxArgv(b Backend) []string {
	switch b := b.(type) {
	case *usernetRun:
		return []string{b.bin + "/usernet", "run", "-q", "--"}
	case *pasta:
		return []string{"pasta", "--config-net", "--no-map-gw", "--runas", "0", "-q", "--"}
	}
	return nil
}

// memory is what the daemon keeps resident: alone with two containers, for each
// further one, and for each idle proxied connection.
func memory() Scenario {
	return Scenario{
		Name: "memory", Applies: isDaemon,
		Figures: []Figure{{Name: "daemon", Unit: "MiB"}, {Name: "container", Unit: "KiB"}, {Name: "connection", Unit: "KiB"}},
		Run: func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
			u := backend.(*usernet)
			pid, err := u.daemonPID()
			if err != nil {
				return nil, err
			}
			alone := residentKiB(pid)
			const containers, connections = 100, 5000
			remove, err := b.crowd(ctx, u, containers)
			defer func() { _ = remove() }()
			if err != nil {
				return nil, err
			}
			crowded := residentKiB(pid)
			stop, err := b.hold(ctx, connections)
			defer stop()
			if err != nil {
				return nil, err
			}
			connected := residentKiB(pid)
			return []float64{alone / 1024, (crowded - alone) / containers, (connected - crowded) / connections}, remove()
		},
	}
}

// hold keeps idle connections of container 0 to the outside open until stop,
// which is never nil.
func (b *Bench) hold(ctx context.Context, n int) (stop func(), err error) {
	var server, client *process
	stop = func() { stopAll([]*process{client, server}) }
	if server, err = start(in(b.topo.Server, b.self, "probe", "server")...); err != nil {
		return stop, err
	}
	if err := server.await(ctx, "server", func() bool { return listens(b.topo.Server, probePort) }); err != nil {
		return stop, err
	}
	client, err = start(in(b.topo.Containers[0], b.self, "probe", "hold", "-time", "60s", "-clients", strconv.Itoa(n),
		"-addr", fmt.Sprintf("%s:%d", serverV4, probePort))...)
	if err != nil {
		return stop, err
	}
	err = client.await(ctx, "connections", func() bool { return strings.Contains(client.output.String(), "held") })
	return stop, err
}

// idle is how often the daemon wakes with 100 idle containers, and its memory.
func idle() Scenario {
	return Scenario{
		Name: "idle-100", Applies: isDaemon,
		Figures: []Figure{{Name: "wakeups", Unit: "1/s"}, {Name: "resident", Unit: "MiB"}},
		Run: func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
			u := backend.(*usernet)
			pid, err := u.daemonPID()
			if err != nil {
				return nil, err
			}
			remove, err := b.crowd(ctx, u, 98) // and the topology's two
			defer func() { _ = remove() }()
			if err != nil {
				return nil, err
			}
			const settle, watch = 5 * time.Second, 5 * time.Second
			time.Sleep(settle)
			before := switches(pid)
			time.Sleep(watch)
			woken := float64(switches(pid)-before) / watch.Seconds()
			return []float64{woken, residentKiB(pid) / 1024}, remove()
		},
	}
}

// growthSizes are the numbers of containers at which growth measures.
var growthSizes = []int{1, 10, 100, 1000}

// growth is throughput and latency of one container among many.
func growth() Scenario {
	s := Scenario{Name: "growth", Applies: isDaemon}
	for _, n := range growthSizes {
		s.Figures = append(s.Figures,
			Figure{Name: fmt.Sprintf("%d-up", n), Unit: "Gbit/s", HigherIsBetter: true},
			Figure{Name: fmt.Sprintf("%d-rr-p50", n), Unit: "µs"})
	}
	s.Run = func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
		u := backend.(*usernet)
		var figures []float64
		var removes []func() error
		defer func() {
			for _, remove := range removes {
				_ = remove()
			}
		}()
		have := len(b.topo.Containers)
		for _, n := range growthSizes {
			remove, err := b.crowd(ctx, u, max(0, n-have))
			removes = append(removes, remove)
			if err != nil {
				return nil, err
			}
			have = max(have, n)
			tcp, err := b.iperf(ctx, load{server: b.topo.Server, client: b.topo.Containers[0], addr: serverV4, streams: 1})
			if err != nil {
				return nil, err
			}
			rr, err := b.probe(ctx, "rr", "-addr", fmt.Sprintf("%s:%d", serverV4, probePort))
			if err != nil {
				return nil, err
			}
			figures = append(figures, tcp.gbits, rr.P50)
		}
		return figures, nil
	}
	return s
}

// crowd adds idle containers; the function it returns, never nil, removes them.
func (b *Bench) crowd(ctx context.Context, u *usernet, n int) (remove func() error, err error) {
	var names []string
	remove = func() error {
		var errs []error
		for _, name := range names {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			errs = append(errs, u.cni(ctx, b.topo.Host, "DEL", name, false))
			cancel()
			errs = append(errs, cleanup([]string{"ip", "netns", "del", name}))
		}
		names = nil
		return errors.Join(errs...)
	}
	for range n {
		b.crowded++
		name := fmt.Sprintf("%s-i%d", b.topo.prefix, b.crowded)
		if err := run(ctx, "ip", "netns", "add", name); err != nil {
			return remove, err
		}
		names = append(names, name)
		if err := u.cni(ctx, b.topo.Host, "ADD", name, false); err != nil {
			return remove, err
		}
	}
	return remove, nil
}

// daemonPID is the daemon itself: ip netns exec became it.
func (u *usernet) daemonPID() (int, error) {
	pid := u.daemon.pid()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err == nil && filepath.Base(exe) != "usernet" {
		err = fmt.Errorf("process %d is %s", pid, exe)
	}
	return pid, err
}

// residentKiB is a process's resident memory.
func residentKiB(pid int) float64 {
	return statusField(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:")
}

// switches counts how often the process's threads went to sleep and woke.
func switches(pid int) int {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return 0
	}
	var n float64
	for _, path := range tasks {
		n += statusField(path, "voluntary_ctxt_switches:")
	}
	return int(n)
}

// statusField is a number of a status file of proc(5).
func statusField(path, field string) float64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			n, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return n
		}
	}
	return 0
}
