package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
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
}

// check refuses what cannot be measured, before anything is made.
func (b *Bench) check(all []Backend) error {
	switch {
	case b.rounds < 1:
		return fmt.Errorf("--rounds %d: want at least 1", b.rounds)
	case b.duration < time.Second || b.duration%time.Second != 0:
		return fmt.Errorf("--time %s: iperf3 wants whole seconds, at least 1s", b.duration)
	case !slices.ContainsFunc(Scenarios, func(s Scenario) bool { return b.scenarios.MatchString(s.Name) }):
		return fmt.Errorf("--scenario %s: matches none, see bench list", b.scenarios)
	case !slices.ContainsFunc(all, func(x Backend) bool { return b.backends.MatchString(x.Name()) }):
		return fmt.Errorf("--backend %s: matches none, see bench list", b.backends)
	case os.Geteuid() != 0:
		return fmt.Errorf("namespaces and bridges need root: sudo %s", os.Args[0])
	}
	for _, tool := range []string{"ip", "ss"} {
		if why := missing(tool, "iproute2"); why != "" {
			return errors.New(why)
		}
	}
	return nil
}

// run makes the topology, takes the backends through every round and writes
// the report, also of a run that was interrupted.
func (b *Bench) run(ctx context.Context, all []Backend, out string) error {
	b.report = newReport(b.rounds, b.duration)
	usable := b.usable(all)
	err := withScratch(func() error { return b.measure(ctx, usable) })
	b.report.finish(err == nil)
	if out != "" {
		err = errors.Join(err, b.report.write(trimJSON(out)))
	}
	return errors.Join(err, b.report.WriteTable(os.Stdout))
}

// withScratch gives do, and the processes that it starts, a directory for temporary
// files that ends with it: iperf3 leaves one when it is ended at the wrong moment.
func withScratch(do func() error) (err error) {
	const variable = "TMPDIR"
	before := os.Getenv(variable) // to be without it is to have an empty one
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Setenv(variable, before), os.RemoveAll(dir)) }()
	if err := os.Setenv(variable, dir); err != nil {
		return err
	}
	return do()
}

// usable are the backends that were asked for and whose tools are there; the
// report tells of the others.
func (b *Bench) usable(all []Backend) []Backend {
	var usable []Backend
	for _, backend := range all {
		if !b.backends.MatchString(backend.Name()) {
			continue
		}
		if why := backend.Missing(); why != "" {
			b.skip(backend.Name(), why)
			continue
		}
		b.report.Versions[backend.Name()] = backend.Version()
		b.report.MTU[backend.Name()] = backend.Traits().MTU
		usable = append(usable, backend)
	}
	return usable
}

// skip notes once what is not measured.
func (b *Bench) skip(what, why string) {
	if b.report.Skipped[what] == "" {
		fmt.Fprintf(os.Stderr, "skipped %s: %s\n", what, why)
	}
	b.report.Skipped[what] = why
}

// measure takes the backends through the rounds, then through the scenarios that
// one measurement is enough for.
func (b *Bench) measure(ctx context.Context, usable []Backend) (err error) {
	if b.topo, err = NewTopology(ctx); err != nil {
		return err
	}
	defer func() {
		if ctx.Err() != nil {
			fmt.Fprintln(os.Stderr, "interrupted: removing what the run made")
		}
		err = errors.Join(err, b.topo.Close())
	}()
	for round := range b.rounds {
		// Whoever begins has the machine as the scenario before has left it.
		first := round % max(1, len(usable))
		order := slices.Concat(usable[first:], usable[:first])
		if err := b.take(ctx, order, fmt.Sprintf("round %d of %d", round+1, b.rounds), false); err != nil {
			return err
		}
	}
	return b.take(ctx, usable, "once", true)
}

// take takes the backends through the scenarios that are measured once, or through
// all others: one scenario after the other, and in each one backend after the other,
// so that what is compared was measured within a minute. A machine whose neighbours
// come and go may be half as fast in the next.
func (b *Bench) take(ctx context.Context, usable []Backend, label string, once bool) error {
	for _, s := range Scenarios {
		if s.Once != once || !b.scenarios.MatchString(s.Name) {
			continue
		}
		begin, turns := time.Now(), 0
		for _, backend := range usable {
			if !s.Applies(backend) {
				continue
			}
			if why := s.missing(); why != "" {
				b.skip(s.Tool, why)
				break
			}
			if err := b.turn(ctx, backend, s); err != nil {
				return err
			}
			turns++
		}
		if turns > 0 {
			fmt.Fprintf(os.Stderr, "%s: %-26s %3.0f s\n", label, s.Name, time.Since(begin).Seconds())
		}
	}
	return nil
}

// turn takes a backend that is started for it through a scenario once. What the
// backend cannot do is noted in its row; only the end of the run is an error.
func (b *Bench) turn(ctx context.Context, backend Backend, s Scenario) (err error) {
	defer func() {
		if down := errors.Join(backend.Down(b.topo), b.topo.KeepContainers(0)); down != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", backend.Name(), down))
		}
	}()
	if err := b.topo.AddContainers(ctx, 2); err != nil {
		return err
	}
	var values []float64
	runErr := backend.Up(ctx, b.topo)
	if runErr == nil {
		values, runErr = s.Run(ctx, b, backend)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	b.report.add(s, backend.Name(), values, runErr)
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
