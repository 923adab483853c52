package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func isDaemon(b Backend) bool { _, ok := b.(*usernet); return ok }

// idle is what a daemon costs that has nothing to do: its memory, what each
// container and each proxied connection adds, and how often it wakes.
func idle() Scenario {
	const few, many, connections = 100, 1000, 10000
	return Scenario{
		Name: "idle", Once: true, Applies: isDaemon,
		Figures: []Figure{
			{Name: "daemon", Unit: "MiB"},
			{Name: fmt.Sprintf("container-of-%d", few), Unit: "KiB"}, {Name: fmt.Sprintf("container-of-%d", many), Unit: "KiB"},
			{Name: "connection", Unit: "KiB"},
			{Name: fmt.Sprintf("wakeups-%d", few), Unit: "1/s"}, {Name: fmt.Sprintf("wakeups-%d", many), Unit: "1/s"},
		},
		Run: func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
			u := backend.(*usernet)
			pid, err := u.daemonPID()
			if err != nil {
				return nil, err
			}
			own := float64(len(b.topo.Containers))
			alone, _, err := rest(ctx, pid)
			if err != nil {
				return nil, err
			}
			if err := u.grow(ctx, b.topo, few); err != nil {
				return nil, err
			}
			atFew, wakesFew, err := rest(ctx, pid)
			if err != nil {
				return nil, err
			}
			if err := u.grow(ctx, b.topo, many); err != nil {
				return nil, err
			}
			atMany, wakesMany, err := rest(ctx, pid)
			if err != nil {
				return nil, err
			}
			stop, err := b.hold(ctx, connections)
			defer stop()
			if err != nil {
				return nil, err
			}
			connected, _, err := rest(ctx, pid)
			return []float64{
				alone / 1024, (atFew - alone) / (few - own), (atMany - alone) / (many - own), (connected - atMany) / connections,
				wakesFew, wakesMany,
			}, err
		},
	}
}

// rest lets a process come to rest, and returns its resident memory in KiB and
// how often a second its threads wake.
func rest(ctx context.Context, pid int) (resident, wakes float64, err error) {
	const settle, watch = 4 * time.Second, 4 * time.Second
	if err := sleep(ctx, settle); err != nil {
		return 0, 0, err
	}
	before := switches(pid)
	err = sleep(ctx, watch)
	return residentKiB(pid), float64(switches(pid)-before) / watch.Seconds(), err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// hold keeps idle connections to the outside open until stop, which is never
// nil. The first two containers share them: a link may have 8,192.
func (b *Bench) hold(ctx context.Context, n int) (stop func(), err error) {
	var procs []*process
	stop = func() { stopAll(procs) }
	server, err := b.serve(ctx)
	procs = append(procs, server)
	if err != nil {
		return stop, err
	}
	for _, container := range b.topo.Containers[:2] {
		client, err := start(in(container, b.self, "probe", "hold", "-time", "60s", "-clients", strconv.Itoa(n/2), "-addr", outside)...)
		if err != nil {
			return stop, err
		}
		procs = append(procs, client)
		if err := client.await(ctx, "connections", func() bool { return strings.Contains(client.output.String(), "held") }); err != nil {
			return stop, err
		}
	}
	return stop, nil
}

// growthSizes are the numbers of containers at which growth measures.
var growthSizes = []int{1, 10, 100, 1000}

// growth is throughput, latency and connection rate of one container beside
// ever more that are idle. The sizes are gone through up and down again: what
// the machine does meanwhile shows as a difference of the two samples.
func growth() Scenario {
	s := Scenario{Name: "growth", Once: true, Tool: "iperf3", Applies: isDaemon}
	for _, n := range growthSizes {
		at := strconv.Itoa(n)
		s.Figures = append(s.Figures,
			Figure{Name: at + "-up", Unit: "Gbit/s", HigherIsBetter: true},
			Figure{Name: at + "-rr-p50", Unit: "µs"}, Figure{Name: at + "-rr-p99", Unit: "µs"},
			Figure{Name: at + "-crr", Unit: "1/s", HigherIsBetter: true})
	}
	s.Run = func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
		u := backend.(*usernet)
		var up, down []float64
		for _, n := range growthSizes {
			if err := u.resize(ctx, b.topo, n); err != nil {
				return nil, err
			}
			figures, err := b.beside(ctx)
			if err != nil {
				return nil, fmt.Errorf("with %d containers: %w", n, err)
			}
			up = append(up, figures...)
		}
		b.report.add(s, backend.Name(), up, nil)
		for i := len(growthSizes) - 1; i >= 0; i-- {
			if err := u.resize(ctx, b.topo, growthSizes[i]); err != nil {
				return nil, err
			}
			figures, err := b.beside(ctx)
			if err != nil {
				return nil, fmt.Errorf("with %d containers again: %w", growthSizes[i], err)
			}
			down = append(figures, down...)
		}
		return down, nil
	}
	return s
}

// beside measures what container 0 gets beside the others.
func (b *Bench) beside(ctx context.Context) ([]float64, error) {
	// What the kernel has still to do for containers that came or went.
	if err := sleep(ctx, 3*time.Second); err != nil {
		return nil, err
	}
	tcp, err := b.iperf(ctx, load{server: b.topo.Server, client: b.topo.Containers[0], addr: serverV4, streams: 1})
	if err != nil {
		return nil, err
	}
	rr, err := b.probe(ctx, "rr", "-addr", outside)
	if err != nil {
		return nil, err
	}
	crr, err := b.probe(ctx, "crr", "-addr", outside)
	return []float64{tcp.gbits, rr.P50, rr.P99, crr.PerSec}, err
}

// resize makes or deletes containers until there are n.
func (u *usernet) resize(ctx context.Context, t *Topology, n int) error {
	if n < len(t.Containers) {
		return u.shrink(ctx, t, n)
	}
	return u.grow(ctx, t, n)
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
