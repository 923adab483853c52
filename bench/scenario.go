package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
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
	// Applies reports whether a backend can carry the load at all.
	Applies func(Backend) bool
	// Run drives the load once and returns a number for each figure.
	Run func(context.Context, *Bench, Backend) ([]float64, error)
}

// Scenarios are the named loads, in the order of reports.
var Scenarios = scenarios()

func scenarios() []Scenario {
	var all []Scenario
	for _, streams := range []int{1, 4, 16} {
		all = append(all, egress(serverV4, streams, false), egress(serverV4, streams, true))
	}
	for _, streams := range []int{1, 4} {
		all = append(all, egress(serverV6, streams, false), egress(serverV6, streams, true))
	}
	return append(all,
		peer(1), peer(4), published(false), published(true), udpStream(),
		roundTrip("tcp"), roundTrip("udp"), connect(1), connect(16), resolve(),
		cniLatency(), runLatency(), idle(), memory(), growth())
}

func egresses(b Backend) bool { return b.Traits().Egress }

// egress is TCP between a container and the outside server.
func egress(server string, streams int, down bool) Scenario {
	family, direction := "4", "up"
	applies := egresses
	if server == serverV6 {
		family = "6"
		applies = func(b Backend) bool { return b.Traits().Egress && b.Traits().V6 }
	}
	if down {
		direction = "down"
	}
	return stream(fmt.Sprintf("egress-tcp%s-%s-%d", family, direction, streams), applies,
		func(ctx context.Context, b *Bench, _ Backend) (iperfResult, error) {
			return b.iperf(ctx, load{server: b.topo.Server, client: b.topo.Containers[0], addr: server, streams: streams, down: down})
		})
}

// peer is TCP from one container to another.
func peer(streams int) Scenario {
	return stream(fmt.Sprintf("peer-tcp4-%d", streams), func(b Backend) bool { return b.Traits().Peers != nil },
		func(ctx context.Context, b *Bench, backend Backend) (iperfResult, error) {
			return b.iperf(ctx, load{server: b.topo.Containers[1], client: b.topo.Containers[0], addr: backend.Traits().Peers[1], streams: streams})
		})
}

// published is TCP from outside to a published port, or back over it.
func published(out bool) Scenario {
	direction := "in"
	if out {
		direction = "out"
	}
	return stream("published-tcp4-"+direction+"-1", func(b Backend) bool { return b.Traits().Publish },
		func(ctx context.Context, b *Bench, _ Backend) (iperfResult, error) {
			return b.iperf(ctx, load{server: b.topo.Containers[0], client: b.topo.Server, addr: hostV4, port: publishedPort, streams: 1, down: out})
		})
}

// stream is a scenario that one run of iperf3 over TCP makes.
func stream(name string, applies func(Backend) bool, run func(context.Context, *Bench, Backend) (iperfResult, error)) Scenario {
	return Scenario{
		Name: name, Applies: applies,
		Figures: []Figure{{Unit: "Gbit/s", HigherIsBetter: true}, {Name: "cpu", Unit: "CPU s/GB"}},
		Run: func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
			r, err := run(ctx, b, backend)
			return []float64{r.gbits, r.cpuPerGB}, err
		},
	}
}

// udpStream offers as many datagrams as the sender can make.
func udpStream() Scenario {
	return Scenario{
		Name: "egress-udp4-up", Applies: egresses,
		Figures: []Figure{{Name: "received", Unit: "Gbit/s", HigherIsBetter: true}, {Name: "lost", Unit: "%"}},
		Run: func(ctx context.Context, b *Bench, _ Backend) ([]float64, error) {
			r, err := b.iperf(ctx, load{server: b.topo.Server, client: b.topo.Containers[0], addr: serverV4, streams: 1, udp: true})
			return []float64{r.gbits, r.lostPercent}, err
		},
	}
}

// roundTrip is one byte there and back.
func roundTrip(network string) Scenario {
	return Scenario{
		Name: network + "-rr", Applies: egresses,
		Figures: []Figure{{Name: "p50", Unit: "µs"}, {Name: "p99", Unit: "µs"}},
		Run: func(ctx context.Context, b *Bench, _ Backend) ([]float64, error) {
			r, err := b.probe(ctx, "rr", "-net", network, "-addr", fmt.Sprintf("%s:%d", serverV4, probePort))
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
			r, err := b.probe(ctx, "crr", "-clients", strconv.Itoa(clients), "-addr", fmt.Sprintf("%s:%d", serverV4, probePort))
			return []float64{r.PerSec}, failing(err, r)
		},
	}
}

// resolve asks the backend's resolver for names that the outside server knows.
func resolve() Scenario {
	return Scenario{
		Name: "dns", Applies: func(b Backend) bool { return b.Traits().DNS != "" },
		Figures: []Figure{{Unit: "1/s", HigherIsBetter: true}},
		Run: func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
			r, err := b.probe(ctx, "dns", "-clients", "8", "-addr", backend.Traits().DNS+":53")
			return []float64{r.PerSec}, failing(err, r)
		},
	}
}

// failing makes errors of more than a hundredth of the requests one.
func failing(err error, r probeResult) error {
	if err == nil && float64(r.Errors) > r.PerSec/100+1 {
		err = fmt.Errorf("%d requests failed, %.0f a second worked", r.Errors, r.PerSec)
	}
	return err
}

// probe runs the probe's client in container 0 against its server outside.
func (b *Bench) probe(ctx context.Context, role string, args ...string) (probeResult, error) {
	var r probeResult
	server, err := start(in(b.topo.Server, b.self, "probe", "server")...)
	if err != nil {
		return r, err
	}
	defer server.stop()
	if err := server.await(ctx, "server", func() bool { return listens(b.topo.Server, probePort) }); err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.duration+20*time.Second)
	defer cancel()
	argv := append([]string{b.self, "probe", role, "-time", b.duration.String()}, args...)
	out, err := output(ctx, in(b.topo.Containers[0], argv...)...)
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(out, &r)
}

// load is one run of iperf3.
type load struct {
	server, client string // namespaces
	addr           string
	port           int // 0: iperf3's own
	streams        int
	down, udp      bool
}

// warmUp is how many seconds of a TCP stream are not counted.
const warmUp = 1

type iperfResult struct{ gbits, lostPercent, cpuPerGB float64 }

// iperf runs one iperf3 test and returns what the receiver got.
func (b *Bench) iperf(ctx context.Context, l load) (iperfResult, error) {
	ctx, cancel := context.WithTimeout(ctx, b.duration+20*time.Second)
	defer cancel()
	if l.port == 0 {
		l.port = 5201
	}
	port := strconv.Itoa(l.port)
	srv, err := start(in(l.server, "iperf3", "-s", "-1", "-p", port, "--forceflush")...)
	if err != nil {
		return iperfResult{}, err
	}
	defer srv.stop()
	if err := srv.await(ctx, "listener", func() bool { return listens(l.server, l.port) }); err != nil {
		return iperfResult{}, err
	}
	argv := []string{"iperf3", "-c", l.addr, "-p", port, "-J", "--connect-timeout", "5000",
		"-t", strconv.Itoa(int(b.duration.Seconds())), "-P", strconv.Itoa(l.streams)}
	if l.down {
		argv = append(argv, "-R")
	}
	if l.udp {
		argv = append(argv, "-u", "-b", "0", "-l", "1400") // its warm-up would count as lost
	} else {
		argv = append(argv, "-O", strconv.Itoa(warmUp))
	}
	before := busySeconds()
	out, err := output(ctx, in(l.client, argv...)...)
	busy := busySeconds() - before
	return parseIperf(out, err, busy)
}

var errRefused = errors.New("it gave no figure")

// parseIperf reads iperf3's report; busy is the CPU time of the whole machine.
func parseIperf(out []byte, err error, busy float64) (iperfResult, error) {
	var result struct {
		Error string `json:"error"`
		End   struct {
			Sum struct {
				LostPercent float64 `json:"lost_percent"`
			} `json:"sum"`
			SumSent struct {
				Bytes float64 `json:"bytes"`
			} `json:"sum_sent"`
			SumReceived struct {
				BitsPerSecond float64 `json:"bits_per_second"`
				Seconds       float64 `json:"seconds"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if jsonErr := json.Unmarshal(out, &result); jsonErr != nil || result.Error != "" || err != nil {
		return iperfResult{}, fmt.Errorf("iperf3: %s: %w", result.Error, cmp.Or(err, jsonErr, errRefused))
	}
	r := iperfResult{gbits: result.End.SumReceived.BitsPerSecond / 1e9, lostPercent: result.End.Sum.LostPercent}
	if gb := r.gbits / 8 * (result.End.SumReceived.Seconds + warmUp); gb > 0 {
		r.cpuPerGB = busy / gb
	}
	if r.gbits < 0.005 {
		return r, fmt.Errorf("iperf3: stalled at %.4f Gbit/s", r.gbits)
	}
	return r, nil
}

// busySeconds is how long the machine's CPUs have worked since the boot.
func busySeconds() float64 {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	fields := strings.Fields(firstLine(string(stat)))
	var busy float64
	for i, f := range fields[1:] {
		n, _ := strconv.ParseFloat(f, 64)
		if i != 3 && i != 4 && i < 8 { // idle, iowait; guests are in user time already
			busy += n
		}
	}
	return busy / 100 // USER_HZ
}
