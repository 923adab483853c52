package conform

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// TextOptions say how a report is written for people.
type TextOptions struct {
	// Colour uses the escape sequences of terminals.
	Colour bool
	// Calls shows the invocations of each case that failed.
	Calls bool
}

// marks are what stands in the table for a verdict.
var marks = map[Verdict]string{Passed: "ok", Failed: "FAIL", NotSupported: "n/a", NotRun: "?"}

// colours of the marks: green, red, grey, yellow.
var colours = map[Verdict]string{Passed: "32", Failed: "31", NotSupported: "90", NotRun: "33"}

// textReport is one writing of a report.
type textReport struct {
	*Report
	TextOptions
	b strings.Builder
}

// WriteText writes the report as a table of cases by versions, then what failed,
// then a count.
func (r *Report) WriteText(w io.Writer, o TextOptions) error {
	t := &textReport{Report: r, TextOptions: o}
	t.header()
	t.table()
	t.failures()
	t.unsupported()
	t.totals()
	_, err := io.WriteString(w, t.b.String())
	return err
}

// paint colours text, if so wanted.
func (t *textReport) paint(text, colour string) string {
	if !t.Colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (t *textReport) header() {
	fmt.Fprintf(&t.b, "plugin   %s\nnetwork  %s\nVERSION  %s\ntested   %s\nseed     %d\n\n", t.Plugin, t.Network,
		strings.Join(t.Supported, " "), strings.Join(t.Versions, " "), t.Seed)
}

// table prints one row for each case and one column for each version.
func (t *textReport) table() {
	width := len("case")
	for i := range t.Results {
		width = max(width, len(t.Results[i].Name))
	}
	fmt.Fprintf(&t.b, "%-*s  level ", width, "case")
	for _, v := range t.Versions {
		fmt.Fprintf(&t.b, "  %5s", v)
	}
	t.b.WriteByte('\n')
	for i := 0; i < len(t.Results); {
		first := &t.Results[i]
		row := make(map[string]Verdict)
		for ; i < len(t.Results) && t.Results[i].Name == first.Name; i++ {
			row[t.Results[i].Version] = t.Results[i].Verdict
		}
		fmt.Fprintf(&t.b, "%-*s  %-6s%s\n", width, first.Name, first.Level, t.cells(row, first))
	}
	t.b.WriteByte('\n')
}

// cells returns the verdicts of a row. That of a version that is not tested
// stands in the first column.
func (t *textReport) cells(row map[string]Verdict, first *Result) string {
	if !slices.Contains(t.Versions, first.Version) {
		return "  " + t.mark(first.Verdict)
	}
	var line strings.Builder
	for _, v := range t.Versions {
		line.WriteString("  " + t.mark(row[v]))
	}
	return strings.TrimRight(line.String(), " ")
}

// mark is a verdict's five columns.
func (t *textReport) mark(v Verdict) string {
	padded := fmt.Sprintf("%5s", marks[v])
	if v == "" {
		return padded
	}
	return t.paint(padded, colours[v])
}

// failures prints what was wrong, with the reason for the case.
func (t *textReport) failures() {
	for _, r := range t.Failures() {
		fmt.Fprintf(&t.b, "%s  %s\n    %s\n    %s\n", t.paint("FAIL", colours[Failed]), r.ID(), r.about(),
			indent(plain(r.Message)))
		if t.Calls && len(r.Calls) > 0 {
			fmt.Fprintf(&t.b, "    %s\n", indent(plain(transcript(r.Calls))))
		}
		t.b.WriteByte('\n')
	}
}

// unsupported prints each reason once.
func (t *textReport) unsupported() {
	seen := make(map[string]int)
	var order []string
	for i := range t.Results {
		if r := &t.Results[i]; r.Verdict == NotSupported {
			if seen[r.Message] == 0 {
				order = append(order, r.Message)
			}
			seen[r.Message]++
		}
	}
	for _, why := range order {
		fmt.Fprintf(&t.b, "%s  %d cases: %s\n", t.paint("n/a ", colours[NotSupported]), seen[why], why)
	}
	if len(order) > 0 {
		t.b.WriteByte('\n')
	}
}

func (t *textReport) totals() {
	for _, l := range []Level{Must, Should, May} {
		fmt.Fprintf(&t.b, "%-6s  %4d passed  %4d failed  %4d not supported", l,
			t.Count(l, Passed), t.Count(l, Failed), t.Count(l, NotSupported))
		if n := t.Count(l, NotRun); n > 0 {
			fmt.Fprintf(&t.b, "  %4d not run", n)
		}
		t.b.WriteByte('\n')
	}
	verdict := t.paint("conforms", colours[Passed])
	if !t.Conforms() {
		verdict = t.paint("does not conform", colours[Failed])
	}
	fmt.Fprintf(&t.b, "%s; %d cases in %v\n", verdict, len(t.Results), t.Took.Round(time.Millisecond))
}
