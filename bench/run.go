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
}

// check refuses what cannot be measured, before anything is made.
func (b *Bench) check() error {
	switch {
	case b.rounds < 1:
		return fmt.Errorf("--rounds %d: want at least 1", b.rounds)
	case b.duration < time.Second || b.duration%time.Second != 0:
		return fmt.Errorf("--time %s: iperf3 wants whole seconds, at least 1s", b.duration)
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
	err := b.measure(ctx, b.usable(all))
	b.report.finish(err == nil)
	if out != "" {
		err = errors.Join(err, b.report.write(trimJSON(out)))
	}
	return errors.Join(err, b.report.WriteTable(os.Stdout))
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

// measure takes the backends through the rounds in turns, then through the
// scenarios that one measurement is enough for.
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
		for _, backend := range usable {
			if err := b.turn(ctx, fmt.Sprintf("round %d of %d", round+1, b.rounds), backend, b.chosen(backend, false)); err != nil {
				return err
			}
		}
	}
	for _, backend := range usable {
		for _, s := range b.chosen(backend, true) {
			if err := b.turn(ctx, s.Name, backend, []Scenario{s}); err != nil {
				return err
			}
		}
	}
	return nil
}

// chosen are the scenarios that were asked for, suit the backend and have their
// tools.
func (b *Bench) chosen(backend Backend, once bool) []Scenario {
	var chosen []Scenario
	for _, s := range Scenarios {
		if s.Once != once || !b.scenarios.MatchString(s.Name) || !s.Applies(backend) {
			continue
		}
		if why := s.missing(); why != "" {
			b.skip(s.Tool, why)
			continue
		}
		chosen = append(chosen, s)
	}
	return chosen
}

// turn takes a backend that is started for it through some scenarios once. What
// the backend cannot do is noted in its rows; only the end of the run is an
// error.
func (b *Bench) turn(ctx context.Context, label string, backend Backend, scenarios []Scenario) (err error) {
	if len(scenarios) == 0 {
		return nil
	}
	begin := time.Now()
	defer func() {
		if down := errors.Join(backend.Down(b.topo), b.topo.KeepContainers(0)); down != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", backend.Name(), down))
		}
		fmt.Fprintf(os.Stderr, "%s: %-17s %3.0f s\n", label, backend.Name(), time.Since(begin).Seconds())
	}()
	if err := b.topo.AddContainers(ctx, 2); err != nil {
		return err
	}
	upErr := backend.Up(ctx, b.topo)
	for _, s := range scenarios {
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
