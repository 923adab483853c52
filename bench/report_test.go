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
	r := &Report{Date: time.Unix(0, 0), CPU: "x", CPUs: 2, Kernel: "6", Rounds: len(samples)}
	s := Scenario{Name: "tcp-rr", Figures: []Figure{{Name: "p50", Unit: "µs"}}}
	for _, v := range samples {
		r.add(s, "usernet", []float64{v}, nil)
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
	for path, want := range map[string]string{cut: "interrupted", lacking: "missing", other: "different machines"} {
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
