package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

// Bench is one run.
type Bench struct {
	topo     *Topology
	duration time.Duration
	rounds   int
	only     *regexp.Regexp
	report   *Report
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := benchmark(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// benchmark parses the flags, runs and reports.
func benchmark(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	rounds := flags.Int("rounds", 3, "interleaved rounds; the median is reported")
	duration := flags.Duration("time", 3*time.Second, "of each load, after one second of warm-up")
	only := flags.String("run", ".", "run only the scenarios that match this expression")
	through := flags.String("backend", ".", "run only the backends that match this expression")
	bin := flags.String("bin", "bin", "directory with usernet and usernet-cni")
	out := flags.String("o", "", "write the result as JSON to this file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	expr, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	backendExpr, err := regexp.Compile(*through)
	if err != nil {
		return fmt.Errorf("-backend: %w", err)
	}
	abs, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	b := &Bench{duration: *duration, rounds: *rounds, only: expr, report: newReport(*rounds, *duration)}
	all := []Backend{&usernet{bin: abs}, &slirp{}, &bridge{}}
	chosen := slices.DeleteFunc(all, func(x Backend) bool { return !backendExpr.MatchString(x.Name()) })
	err = b.run(ctx, chosen)
	b.report.finish(err == nil)
	if *out != "" {
		err = errors.Join(err, b.write(*out))
	}
	return errors.Join(err, b.report.WriteTable(os.Stdout))
}

func (b *Bench) write(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(b.report.WriteJSON(f), f.Close())
}

// run makes the topology and takes the backends through every round.
func (b *Bench) run(ctx context.Context, backends []Backend) (err error) {
	if b.topo, err = NewTopology(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.topo.Close()) }()
	var usable []Backend
	for _, backend := range backends {
		if why := backend.Missing(); why != "" {
			b.report.Skipped[backend.Name()] = why
			continue
		}
		b.report.MTU[backend.Name()] = backend.MTU()
		usable = append(usable, backend)
	}
	for round := range b.rounds {
		for _, backend := range usable {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, b.rounds, backend.Name())
			if err := b.round(ctx, backend); err != nil {
				return fmt.Errorf("%s: %w", backend.Name(), err)
			}
		}
	}
	return nil
}

// round takes one backend through every scenario once.
func (b *Bench) round(ctx context.Context, backend Backend) (err error) {
	defer func() { err = errors.Join(err, backend.Down(b.topo), b.topo.RemoveContainers()) }()
	if err := b.topo.AddContainers(ctx, 2); err != nil {
		return err
	}
	if err := backend.Up(ctx, b.topo); err != nil {
		return err
	}
	for _, s := range Scenarios {
		if !b.only.MatchString(s.Name) || !s.Applies(backend) {
			continue
		}
		row := b.report.row(s, backend.Name())
		value, err := s.Run(ctx, b, backend)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			row.Errors = append(row.Errors, err.Error())
			continue
		}
		row.Samples = append(row.Samples, value)
	}
	return nil
}
