package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"
)

// Bench is one run.
type Bench struct {
	rounds              int
	duration            time.Duration
	scenarios, backends *regexp.Regexp
	self                string // this executable, for probes
	topo                *Topology
	report              *Report
	crowded             int // idle containers made so far
}

// run makes the topology, takes the backends through every round and writes
// the report, also of a run that was interrupted.
func (b *Bench) run(ctx context.Context, all []Backend, out string) error {
	var usable []Backend
	b.report = newReport(b.rounds, b.duration)
	for _, backend := range all {
		if !b.backends.MatchString(backend.Name()) {
			continue
		}
		if why := backend.Missing(); why != "" {
			b.report.Skipped[backend.Name()] = why
			fmt.Fprintf(os.Stderr, "skipped %s: %s\n", backend.Name(), why)
			continue
		}
		b.report.Versions[backend.Name()] = backend.Version()
		b.report.MTU[backend.Name()] = backend.Traits().MTU
		usable = append(usable, backend)
	}
	err := b.measure(ctx, usable)
	b.report.finish(err == nil)
	if out != "" {
		err = errors.Join(err, b.report.write(trimJSON(out)))
	}
	return errors.Join(err, b.report.WriteTable(os.Stdout))
}

func (b *Bench) measure(ctx context.Context, usable []Backend) (err error) {
	if b.topo, err = NewTopology(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.topo.Close()) }()
	for round := range b.rounds {
		for _, backend := range usable {
			if err := b.round(ctx, round, backend); err != nil {
				return fmt.Errorf("%s: %w", backend.Name(), err)
			}
		}
	}
	return nil
}

// round takes one backend through every scenario once. What a backend cannot
// do is noted in its rows; only the end of the run is an error.
func (b *Bench) round(ctx context.Context, round int, backend Backend) (err error) {
	begin := time.Now()
	defer func() {
		err = errors.Join(err, backend.Down(b.topo), b.topo.RemoveContainers())
		fmt.Fprintf(os.Stderr, "round %d of %d: %-17s %3.0f s\n", round+1, b.rounds, backend.Name(), time.Since(begin).Seconds())
	}()
	if err := b.topo.AddContainers(ctx, 2); err != nil {
		return err
	}
	upErr := backend.Up(ctx, b.topo)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, s := range Scenarios {
		if !b.scenarios.MatchString(s.Name) || !s.Applies(backend) {
			continue
		}
		values, err := []float64(nil), upErr
		if err == nil {
			values, err = s.Run(ctx, b, backend)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.report.add(s, backend.Name(), values, err)
	}
	return nil
}

// list prints the scenarios, and for each the backends that it suits.
func list(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "SCENARIO\tFIGURES\tBACKENDS")
	for _, s := range Scenarios {
		var figures, through []string
		for _, f := range s.Figures {
			figures = append(figures, strings.TrimSpace(f.Name+" "+f.Unit))
		}
		for _, b := range backends("", "") {
			if s.Applies(b) {
				through = append(through, b.Name())
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", s.Name, strings.Join(figures, ", "), strings.Join(through, " "))
	}
	return tw.Flush()
}
