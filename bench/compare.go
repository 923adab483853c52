package main

import (
	"errors"
	"fmt"
	"io"
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
			return fmt.Errorf("%s: the run was interrupted or a backend was missing: not to be compared", path)
		}
	}
	if older.CPU != newer.CPU || older.CPUs != newer.CPUs || older.Kernel != newer.Kernel {
		return fmt.Errorf("%s and %s are of different machines: %d × %s, Linux %s and %d × %s, Linux %s", oldPath, newPath,
			older.CPUs, older.CPU, older.Kernel, newer.CPUs, newer.CPU, newer.Kernel)
	}
	return compare(w, older, newer)
}

// compare prints each figure that both have.
func compare(w io.Writer, older, newer *Report) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "SCENARIO\tBACKEND\tOLD\tNEW\tUNIT\tNEW IS\t")
	worse := false
	for i := range newer.Rows {
		row := &newer.Rows[i]
		before := older.find(row.Scenario, row.Backend)
		if before == nil || len(before.Samples) == 0 || len(row.Samples) == 0 || !ours(row.Backend) {
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
	if worse {
		return errWorse
	}
	return nil
}

func ours(backend string) bool { return backend == "usernet" || backend == "usernet-run" }

// judge says whether a figure changed by more than the rounds differ among
// themselves: all of one result's samples lie beyond all of the other's.
func judge(before, after *Row) string {
	if before.Min <= after.Max && after.Min <= before.Max {
		return ""
	}
	if row := after; row.better(after.Median, before.Median) > 1 {
		return "better"
	}
	return "worse"
}
