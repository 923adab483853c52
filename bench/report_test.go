package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// result makes a complete report with one figure of usernet.
func result(samples ...float64) *Report {
	r := &Report{
		Date: time.Unix(0, 0), CPU: "x", CPUs: 2, Kernel: "6", Rounds: len(samples),
		Versions: map[string]string{"iperf3": "3"}, MTU: map[string]int{},
	}
	s := Scenario{Name: "tcp-rr", Figures: []Figure{{Name: "p50", Unit: "µs"}}}
	for _, v := range samples {
		r.add(s, "usernet", []float64{v}, nil)
	}
	if samples == nil {
		r.add(s, "usernet", nil, errors.New("stalled"))
	}
	r.finish(true)
	return r
}

func TestSummary(t *testing.T) {
	row := result(3, 1, 2, 10).Rows[0]
	if row.Scenario != "tcp-rr/p50" || row.Min != 1 || row.Max != 10 || row.Median != 2.5 {
		t.Errorf("%+v", row)
	}
}

func TestRoundsWithoutFigureAreTold(t *testing.T) {
	r := result(1)
	r.add(Scenario{Name: "tcp-rr", Figures: []Figure{{Name: "p50"}, {Name: "p99"}}}, "pasta", nil, errors.New("stalled: no route"))
	r.finish(true)
	var table, md bytes.Buffer
	if err := errors.Join(r.WriteTable(&table), r.WriteMarkdown(&md)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(table.String(), "no figure: stalled: no route") || !strings.Contains(md.String(), "no figure") {
		t.Errorf("%s\n%s", table.String(), md.String())
	}
}

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		old, new []float64
		verdict  string
		err      error
	}{
		{[]float64{100, 110}, []float64{105, 120}, "", nil}, // within the spread
		{[]float64{100, 110}, []float64{50, 60}, "better", nil},
		{[]float64{100, 110}, []float64{200, 210}, "worse", errWorse},
		{[]float64{100, 110}, []float64{115, 125}, "", nil}, // apart, and not by both spreads
		{[]float64{100, 100}, []float64{104, 104}, "", nil}, // a small change
		{[]float64{100}, []float64{200}, "", nil},           // one sample has no spread
		{[]float64{100, 110}, nil, "no figure", errWorse},
	} {
		var out bytes.Buffer
		err := compare(&out, result(c.old...), result(c.new...))
		if !errors.Is(err, c.err) || !strings.Contains(out.String(), c.verdict) {
			t.Errorf("%v to %v: %v\n%s", c.old, c.new, err, out.String())
		}
	}
}

// TestCompareRefuses: what cannot be compared is no comparison.
func TestCompareRefuses(t *testing.T) {
	dir := t.TempDir()
	save := func(name string, change func(*Report)) string {
		r := result(1, 2)
		change(r)
		path := filepath.Join(dir, name)
		if err := r.write(path); err != nil {
			t.Fatal(err)
		}
		return path + ".json"
	}
	good := save("good", func(*Report) {})
	cut := save("cut", func(r *Report) { r.finish(false) })
	lacking := save("lacking", func(r *Report) { r.Skipped = map[string]string{"pasta": "not installed"}; r.finish(true) })
	other := save("other", func(r *Report) { r.CPU = "y" })
	longer := save("longer", func(r *Report) { r.Seconds = 5 })
	strange := save("strange", func(r *Report) { r.Rows[0].Scenario = "x" })
	for path, want := range map[string]string{
		cut: "interrupted", lacking: "missing", other: "different machines", longer: "5 s", strange: "in common",
	} {
		if err := compareFiles(&bytes.Buffer{}, good, path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := compareFiles(&bytes.Buffer{}, good, good); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "good-latency.png")); err != nil || info.Size() < 1000 {
		t.Errorf("no picture: %v", err)
	}
}

// TestMerge: pieces of one run become one result; what was not measured side by
// side does not.
// TestRunRefuses: what would measure nothing is an error that names the flag.
func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{
		{"--scenario", "no-such"}, {"--backend", "no-such"}, {"--scenario", "("}, {"--backend", "("}, {"--rounds", "0"}, {"--time", "1500ms"},
	} {
		cmd := command()
		cmd.SetArgs(append([]string{"run"}, args...))
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestMerge(t *testing.T) {
	dir := t.TempDir()
	save := func(name string, change func(*Report), samples ...float64) string {
		r := result(samples...)
		change(r)
		path := filepath.Join(dir, name)
		if err := r.write(path); err != nil {
			t.Fatal(err)
		}
		return path + ".json"
	}
	keep := func(*Report) {}
	first, again := save("first", keep, 3), save("again", keep, 1, 2)
	dns := save("dns", func(r *Report) { r.Rows[0].Scenario = "dns" }, 7)
	once := save("once", func(r *Report) { r.Rows[0].Scenario = "growth/1-up" }, 1, 2, 3, 4)
	out := filepath.Join(dir, "out")
	if err := mergeFiles(out, []string{first, again, dns, once}); err != nil {
		t.Fatal(err)
	}
	r, err := readReport(out + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if row := r.find("tcp-rr/p50", "usernet"); row.Median != 2 || row.Min != 1 || row.Max != 3 || r.Rounds != 3 || !r.Complete {
		t.Errorf("%+v, %d rounds, complete %v", row, r.Rounds, r.Complete)
	}
	if row := r.find("dns", "usernet"); row == nil || row.Median != 7 {
		t.Errorf("%+v", row)
	}
	for want, path := range map[string]string{
		"interrupted":        save("cut", func(r *Report) { r.finish(false) }, 1),
		"different machines": save("other", func(r *Report) { r.Kernel = "7" }, 1),
		"commit":             save("commit", func(r *Report) { r.Commit = "f00" }, 1),
		"5 s":                save("longer", func(r *Report) { r.Seconds = 5 }, 1),
		"pasta":              save("pasta", func(r *Report) { r.Rows[0].Backend = "pasta" }, 1),
		"another version":    save("version", func(r *Report) { r.Versions = map[string]string{"iperf3": "another version"} }, 1),
	} {
		if err := mergeFiles(out, []string{first, path}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestHighestRate finds what a backend carries that loses the rest, and under a
// flood carries less.
func TestHighestRate(t *testing.T) {
	for _, carries := range []float64{0.1, 0.3, 0.9, 1.9, 5} {
		tried := 0
		offer := func(gbits float64) (streamResult, error) {
			tried++
			sent := min(gbits, 2)
			if got := carries; got < sent {
				return streamResult{gbits: got / 2, lostPercent: 100 * (1 - got/2/sent)}, nil
			}
			return streamResult{gbits: sent}, nil
		}
		flood, _ := offer(3)
		got, err := highestRate(flood, offer)
		if want := min(carries, 2); err != nil || got > want || got < want*0.8 || tried > 2*rateSteps+1 {
			t.Errorf("carries %v: found %v in %d steps, %v", carries, got, tried, err)
		}
	}
	always := func(gbits float64) (streamResult, error) { return streamResult{gbits: gbits / 2, lostPercent: 50}, nil }
	if got, err := highestRate(streamResult{gbits: 1, lostPercent: 50}, always); err == nil {
		t.Errorf("a backend that always loses half: %v", got)
	}
}

func TestParseIperf(t *testing.T) {
	good := `{"end":{"sum_received":{"bits_per_second":8e9,"seconds":2}}}`
	if r, err := parseIperf([]byte(good), nil, 6); err != nil || r.gbits != 8 || r.cpuPerGB != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	for name, c := range map[string]struct {
		out string
		err error
	}{
		"refused": {`{"error":"unable to connect to server"}`, errors.New("exit status 1")},
		"nothing": {"", errors.New("signal: killed")},
		"stalled": {`{"end":{"sum_received":{"bits_per_second":1000,"seconds":2}}}`, nil},
	} {
		if _, err := parseIperf([]byte(c.out), c.err, 0); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
