package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// Figure is one number that a scenario gives.
type Figure struct {
	Name string // in results "scenario/name"; empty: the scenario's own
	Unit string
	// HigherIsBetter tells readers and comparisons which way is good.
	HigherIsBetter bool
}

// Scenario is one load.
type Scenario struct {
	Name    string
	Figures []Figure
	// Tool is the program that makes the load, which is also its Debian
	// package; empty: the probe.
	Tool string
	// Once is for what takes long: it is measured once a run, and not in every
	// round, on a backend just started.
	Once bool
	// Applies reports whether a backend can carry the load at all.
	Applies func(Backend) bool
	// Run drives the load once and returns a number for each figure.
	Run func(context.Context, *Bench, Backend) ([]float64, error)
}

// missing says what to install when the scenario's tool is not there.
func (s *Scenario) missing() string {
	if s.Tool == "" {
		return ""
	}
	return missing(s.Tool, s.Tool)
}

// Scenarios are the named loads, in the order of reports.
var Scenarios = scenarios()

func scenarios() []Scenario {
	var all []Scenario
	for _, server := range []string{serverV4, serverV6} {
		for _, mtu := range mtus {
			for _, streams := range []int{1, 4, 16} {
				all = append(all, egress(server, mtu, streams, false), egress(server, mtu, streams, true))
			}
		}
	}
	for _, mtu := range mtus {
		all = append(all, peer(mtu, 1), peer(mtu, 4))
	}
	return append(all,
		published(false), published(true), udpStream(), datagramStreams(),
		roundTrip("tcp"), roundTrip("udp"), connect(1), connect(16), resolve(),
		cniLatency(), runLatency(), idle(), growth())
}

func egresses(b Backend) bool { return b.Traits().Egress }

// roundTrip is one byte there and back.
func roundTrip(network string) Scenario {
	return Scenario{
		Name: network + "-rr", Applies: egresses,
		Figures: []Figure{{Name: "p50", Unit: "µs"}, {Name: "p99", Unit: "µs"}},
		Run: func(ctx context.Context, b *Bench, _ Backend) ([]float64, error) {
			r, err := b.probe(ctx, "rr", "-net", network, "-addr", outside)
			return []float64{r.P50, r.P99}, err
		},
	}
}

// connect is connect, one byte there and back, close.
func connect(clients int) Scenario {
	return Scenario{
		Name: fmt.Sprintf("crr-%d", clients), Applies: egresses,
		Figures: []Figure{{Unit: "1/s", HigherIsBetter: true}},
		Run: func(ctx context.Context, b *Bench, _ Backend) ([]float64, error) {
			r, err := b.probe(ctx, "crr", "-clients", strconv.Itoa(clients), "-addr", outside)
			return []float64{r.PerSec}, err
		},
	}
}

// resolve asks the backend's resolver for names that the outside server knows.
// Queries above what a resolver allows a container are refused.
func resolve() Scenario {
	return Scenario{
		Name: "dns", Applies: func(b Backend) bool { return b.Traits().DNS != "" },
		Figures: []Figure{{Unit: "1/s", HigherIsBetter: true}, {Name: "refused", Unit: "%"}},
		Run: func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
			r, err := b.probe(ctx, "dns", "-clients", "8", "-addr", backend.Traits().DNS+":53")
			if err != nil {
				return nil, err
			}
			answered, refused := r.PerSec*b.duration.Seconds(), float64(r.Refused)
			return []float64{r.PerSec, 100 * refused / (answered + refused)}, nil
		},
	}
}

// outside is where the probe's server answers.
var outside = fmt.Sprintf("%s:%d", serverV4, probePort)

// serve starts the probe's server outside. The caller stops it, also on error.
func (b *Bench) serve(ctx context.Context) (*process, error) {
	server, err := start(in(b.topo.Server, b.self, "probe", "server")...)
	if err != nil {
		return nil, err
	}
	return server, server.await(ctx, "server", func() bool { return listens(b.topo.Server, "tcp", probePort) })
}

// probe runs the probe's client in container 0 against its server outside.
// Failures of more than a hundredth of the requests are an error.
func (b *Bench) probe(ctx context.Context, role string, args ...string) (probeResult, error) {
	var r probeResult
	server, err := b.serve(ctx)
	defer server.stop()
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.duration+20*time.Second)
	defer cancel()
	argv := append([]string{b.self, "probe", role, "-time", b.duration.String()}, args...)
	out, err := output(ctx, in(b.topo.Containers[0], argv...)...)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, err
	}
	if float64(r.Errors) > r.PerSec/100+1 {
		err = fmt.Errorf("%d requests failed, %.0f a second worked", r.Errors, r.PerSec)
	}
	return r, err
}
