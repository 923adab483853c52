package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"text/tabwriter"
)

// errWorse says that a figure got worse by more than noise explains.
var errWorse = errors.New("a figure got worse by more than both spreads")

// compareFiles compares usernet's figures of two result files.
func compareFiles(w io.Writer, oldPath, newPath string) error {
	older, err := readReport(oldPath)
	if err != nil {
		return err
	}
	newer, err := readReport(newPath)
	if err != nil {
		return err
	}
	for path, r := range map[string]*Report{oldPath: older, newPath: newer} {
		if !r.Complete {
			return fmt.Errorf("%s: %w", path, errIncomplete)
		}
	}
	if err := older.sameMachine(newer); err != nil {
		return fmt.Errorf("%s and %s: %w", oldPath, newPath, err)
	}
	if older.Seconds != newer.Seconds {
		return fmt.Errorf("%s and %s: loads of %g and of %g s", oldPath, newPath, older.Seconds, newer.Seconds)
	}
	return compare(w, older, newer)
}

var errIncomplete = errors.New("the run was interrupted, or a backend or tool was missing: not to be compared")

// sameMachine says how the machines of two results differ.
func (r *Report) sameMachine(other *Report) error {
	if r.CPU == other.CPU && r.CPUs == other.CPUs && r.Kernel == other.Kernel {
		return nil
	}
	return fmt.Errorf("of different machines: %d × %s, Linux %s and %d × %s, Linux %s",
		r.CPUs, r.CPU, r.Kernel, other.CPUs, other.CPU, other.Kernel)
}

// compare prints each figure of usernet that the older result has, if the newer
// one has it or failed to give it.
func compare(w io.Writer, older, newer *Report) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "SCENARIO\tBACKEND\tOLD\tNEW\tUNIT\tNEW IS\t")
	worse, lines := false, 0
	for i := range newer.Rows {
		row := &newer.Rows[i]
		before := older.find(row.Scenario, row.Backend)
		if before == nil || len(before.Samples) == 0 || !ours(row.Backend) {
			continue
		}
		lines++
		if len(row.Samples) == 0 {
			fmt.Fprintf(tw, "%s\t%s\t%s\tno figure\t%s\t\tworse\n", row.Scenario, row.Backend, number(before.Median), row.Unit)
			worse = true
			continue
		}
		verdict := judge(before, row)
		worse = worse || verdict == "worse"
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%.2f×\t%s\n", row.Scenario, row.Backend,
			number(before.Median), number(row.Median), row.Unit, row.better(row.Median, before.Median), verdict)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	switch {
	case lines == 0:
		return errors.New("the results have no figure of usernet in common")
	case worse:
		return errWorse
	}
	return nil
}

func ours(backend string) bool { return backend == "usernet" || backend == "usernet-run" }

// smallChange is what a figure may change by without a verdict, however little
// the rounds differ among themselves.
const smallChange = 0.05

// judge says whether a figure changed by more than the rounds of both results
// differ among themselves, taken together. One sample has no such difference,
// and gets no verdict.
func judge(before, after *Row) string {
	change := math.Abs(after.Median - before.Median)
	if len(before.Samples) < 2 || len(after.Samples) < 2 ||
		change <= before.Max-before.Min+after.Max-after.Min || change <= smallChange*before.Median {
		return ""
	}
	if after.better(after.Median, before.Median) > 1 {
		return "better"
	}
	return "worse"
}
