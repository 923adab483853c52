package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// Scenario is one load.
type Scenario struct {
	Name string
	Unit string
	// HigherIsBetter tells readers and comparisons which way is good.
	HigherIsBetter bool
	// Applies reports whether a backend can carry the load at all.
	Applies func(Backend) bool
	// Run drives the load once.
	Run func(context.Context, *Bench, Backend) (float64, error)
}

// Scenarios are the named loads, in the order of reports.
var Scenarios = []Scenario{
	egress("egress-tcp4-up-1", serverV4, 1, false),
	egress("egress-tcp4-down-1", serverV4, 1, true),
	egress("egress-tcp4-up-4", serverV4, 4, false),
	egress("egress-tcp4-down-4", serverV4, 4, true),
	egress("egress-tcp6-up-1", serverV6, 1, false),
	egress("egress-tcp6-down-1", serverV6, 1, true),
	peer("peer-tcp4-1", 1),
	peer("peer-tcp4-4", 4),
}

func everyBackend(Backend) bool { return true }

// egress is a TCP stream between a container and the outside server.
func egress(name, server string, streams int, down bool) Scenario {
	s := Scenario{Name: name, Unit: "Gbit/s", HigherIsBetter: true, Applies: everyBackend}
	if server == serverV6 {
		s.Applies = Backend.V6
	}
	s.Run = func(ctx context.Context, b *Bench, _ Backend) (float64, error) {
		return iperf(ctx, b, b.topo.Server, b.topo.Containers[0], server, streams, down)
	}
	return s
}

// peer is a TCP stream from one container to another.
func peer(name string, streams int) Scenario {
	return Scenario{
		Name: name, Unit: "Gbit/s", HigherIsBetter: true,
		Applies: func(b Backend) bool { return b.Peer(0) != "" },
		Run: func(ctx context.Context, b *Bench, backend Backend) (float64, error) {
			return iperf(ctx, b, b.topo.Containers[1], b.topo.Containers[0], backend.Peer(1), streams, false)
		},
	}
}

// iperf runs one iperf3 test and returns what the receiver got, in Gbit/s.
func iperf(ctx context.Context, b *Bench, server, client, addr string, streams int, down bool) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, b.duration+20*time.Second)
	defer cancel()
	srv, err := start(in(server, "iperf3", "-s", "-1", "-p", "5201", "--forceflush")...)
	if err != nil {
		return 0, err
	}
	defer srv.stop()
	listening := func() bool {
		out, err := exec.Command("ip", in(server, "ss", "-Hltn", "sport = :5201")[1:]...).Output()
		return err == nil && len(out) > 0
	}
	if err := srv.await(ctx, "listening", listening); err != nil {
		return 0, err
	}
	argv := in(client, "iperf3", "-c", addr, "-p", "5201", "-J", "-O", "1",
		"-t", strconv.Itoa(int(b.duration.Seconds())), "-P", strconv.Itoa(streams))
	if down {
		argv = append(argv, "-R")
	}
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	var result struct {
		Error string `json:"error"`
		End   struct {
			SumReceived struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if jsonErr := json.Unmarshal(out, &result); jsonErr != nil || result.Error != "" {
		return 0, fmt.Errorf("iperf3 to %s: %w: %s", addr, orErr(err, jsonErr), result.Error)
	}
	return result.End.SumReceived.BitsPerSecond / 1e9, nil
}

func orErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
