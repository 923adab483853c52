package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	noSkips := flag.Bool("no-skips", false, "count a skipped test as a failed one")
	flag.Parse()
	r := &report{out: os.Stdout, tests: make(map[testName]*outcome)}
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintf(os.Stderr, "testreport: read events: %v\n", err)
		os.Exit(1)
	}
	if !r.sum(*noSkips) {
		os.Exit(1)
	}
}

// event is one line of go test -json; go doc test2json describes it.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build events
	Test       string
	Elapsed    float64
	Output     string
}

type testName struct{ pkg, test string }

// outcome collects one test's output until its end is known.
type outcome struct {
	output strings.Builder
	action string // "pass", "fail", "skip", or "" while it runs
}

// report is the state of one run.
type report struct {
	out                     io.Writer
	tests                   map[testName]*outcome // of packages that are not done
	passed, failed, skipped int
	broken                  int // packages that failed or were not built
}

// read takes events until the end of in.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		var e event
		switch {
		case strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &e) == nil:
			r.take(e)
		case line != "":
			fmt.Fprint(r.out, line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take handles one event.
func (r *report) take(e event) {
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
		return
	case "build-fail":
		return // the package's own fail event follows
	}
	name := testName{e.Package, e.Test}
	o := r.tests[name]
	if o == nil {
		o = &outcome{}
		r.tests[name] = o
	}
	switch e.Action {
	case "output":
		o.output.WriteString(e.Output)
	case "pass", "fail", "skip":
		o.action = e.Action
		if e.Test == "" {
			r.endPackage(e)
		}
	}
}

// endPackage prints a package's line, after whatever went wrong in it, and
// forgets its tests.
func (r *report) endPackage(e event) {
	var names []string
	count := 0
	for name := range r.tests {
		if name.pkg == e.Package {
			names = append(names, name.test)
		}
	}
	slices.Sort(names) // the package's own output, named "", comes first
	for _, test := range names {
		name := testName{e.Package, test}
		o := r.tests[name]
		delete(r.tests, name)
		switch {
		case test == "":
			if e.Action == "fail" {
				r.print(o)
			}
			continue
		case o.action == "pass", o.ranWell(test, e):
			r.passed++
		case o.action == "skip":
			r.skipped++
			fmt.Fprintf(r.out, "SKIP %s %s: %s\n", e.Package, test, reason(test, o.output.String()))
		default: // failed, or was running when the package came down
			r.failed++
			r.print(o)
		}
		count++
	}
	switch {
	case e.Action == "fail":
		r.broken++
		fmt.Fprintf(r.out, "FAIL %s %.1fs\n", e.Package, e.Elapsed)
	case count > 0:
		fmt.Fprintf(r.out, "ok   %s %.1fs, %d tests\n", e.Package, e.Elapsed, count)
	}
}

// ranWell reports whether it is a benchmark's outcome in a package that passed: only
// the end of one that failed or was skipped is an event.
func (o *outcome) ranWell(name string, end event) bool {
	return o.action == "" && end.Action == "pass" && strings.HasPrefix(name, "Benchmark")
}

// print shows an output without what the report says itself.
func (r *report) print(o *outcome) {
	for line := range strings.Lines(o.output.String()) {
		switch {
		case strings.HasPrefix(line, "=== "), strings.HasPrefix(line, "FAIL\t"), line == "FAIL\n", line == "PASS\n":
		default:
			fmt.Fprint(r.out, line)
		}
	}
}

// reason finds the words of t.Skip in a skipped test's output, where a benchmark's
// begins with its name.
func reason(test, output string) string {
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line != "" && line != test && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			return line
		}
	}
	return "no reason given"
}

// sum prints the sums and reports whether all is well.
func (r *report) sum(noSkips bool) bool {
	for name := range r.tests { // a stream that ended early
		if name.test == "" {
			r.broken++
			fmt.Fprintf(r.out, "FAIL %s: its events end early\n", name.pkg)
		}
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	switch {
	case r.failed+r.broken > 0:
		return false
	case r.passed+r.skipped == 0:
		fmt.Fprintln(r.out, "FAIL: no test ran")
		return false
	case noSkips && r.skipped > 0:
		fmt.Fprintln(r.out, "FAIL: tests were skipped, and CI allows none")
		return false
	}
	return true
}
