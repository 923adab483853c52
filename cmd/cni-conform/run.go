package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/usernet/usernet/conform"
)

// run is the program but for its end.
func run(args []string, stdout, stderr *os.File) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return usageStatus
	}
	status := conforms
	switch {
	case o.list:
		err = o.printList(stdout)
	case os.Getenv(insideVar) != "":
		status, err = o.try(stdout, stderr)
	default:
		status, err = o.outside(args, stdout, stderr)
	}
	if err != nil {
		fmt.Fprintf(stderr, "cni-conform: %v\n", err)
		status = max(status, usageStatus)
	}
	return status
}

// printList prints the cases of all versions, or of those asked for.
func (o *options) printList(w io.Writer) error {
	versions := conform.SpecVersions
	if len(o.Versions) > 0 {
		versions = o.Versions
	}
	for _, c := range conform.List(versions, o.Run) {
		if _, err := fmt.Fprintf(w, "%-52s %-6s %s [%s]\n", c.ID(), c.Level, c.Summary, c.Section); err != nil {
			return err
		}
	}
	return nil
}

// try runs the suite, inside the namespaces that outside made, and writes the
// report.
func (o *options) try(stdout, stderr *os.File) (int, error) {
	if err := o.load(); err != nil {
		return usageStatus, err
	}
	if err := enclose(o.private); err != nil {
		return usageStatus, err
	}
	o.Dir = os.Getenv(insideVar)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.verbose {
		o.Log = stderr
		o.Progress = func(r conform.Result) {
			fmt.Fprintf(stderr, "%-13s %s (%v)\n", r.Verdict, r.ID(), r.Took.Round(time.Millisecond))
		}
	}
	report, err := conform.Run(ctx, o.Config)
	if report == nil {
		return usageStatus, err
	}
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(stderr, "cni-conform: interrupted; the report has what was tried before")
		err = nil
	}
	if werr := o.write(report, stdout); werr != nil {
		return usageStatus, errors.Join(err, fmt.Errorf("write the report: %w", werr))
	}
	if err != nil {
		return usageStatus, err
	}
	if !report.Conforms() {
		return deviates, nil
	}
	return conforms, nil
}

func (o *options) write(report *conform.Report, w *os.File) error {
	switch o.report {
	case "json":
		return report.WriteJSON(w)
	case "junit":
		return report.WriteJUnit(w)
	}
	colour := term.IsTerminal(int(w.Fd())) && os.Getenv("NO_COLOR") == ""
	return report.WriteText(w, conform.TextOptions{Colour: colour, Calls: o.verbose})
}
