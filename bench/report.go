package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is a result file.
type Report struct {
	Date     time.Time         `json:"date"`
	Commit   string            `json:"commit"`
	Kernel   string            `json:"kernel"`
	CPU      string            `json:"cpu"`
	CPUs     int               `json:"cpus"`
	Go       string            `json:"go"`
	Versions map[string]string `json:"versions"`
	MTU      map[string]int    `json:"mtu"` // of each backend's container devices
	Seconds  float64           `json:"seconds"`
	Rounds   int               `json:"rounds"`
	// Complete is false when the run was interrupted or a backend was
	// missing: such a report is not to be compared with another.
	Complete bool              `json:"complete"`
	Skipped  map[string]string `json:"skipped,omitempty"` // backend to reason
	Rows     []Row             `json:"rows"`
}

// Row is one scenario through one backend.
type Row struct {
	Scenario string    `json:"scenario"`
	Backend  string    `json:"backend"`
	Unit     string    `json:"unit"`
	Median   float64   `json:"median"`
	Min      float64   `json:"min"`
	Max      float64   `json:"max"`
	Samples  []float64 `json:"samples"`
	Errors   []string  `json:"errors,omitempty"` // rounds that gave no figure, and why
}

func newReport(rounds int, duration time.Duration) *Report {
	return &Report{
		Date: time.Now().UTC().Truncate(time.Second), Commit: output("git", "describe", "--always", "--dirty"),
		Kernel: output("uname", "-r"), CPU: cpuModel(), CPUs: runtime.NumCPU(), Go: runtime.Version(),
		Versions: map[string]string{
			"iperf3": firstLine(output("iperf3", "--version")), "slirp4netns": firstLine(output("slirp4netns", "--version")),
		},
		MTU: map[string]int{}, Skipped: map[string]string{}, Rounds: rounds, Seconds: duration.Seconds(),
	}
}

func output(argv ...string) string {
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func firstLine(s string) string { line, _, _ := strings.Cut(s, "\n"); return line }

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return "unknown"
}

// row finds or makes the row of a scenario and backend.
func (r *Report) row(s Scenario, backend string) *Row {
	for i := range r.Rows {
		if r.Rows[i].Scenario == s.Name && r.Rows[i].Backend == backend {
			return &r.Rows[i]
		}
	}
	r.Rows = append(r.Rows, Row{Scenario: s.Name, Backend: backend, Unit: s.Unit})
	return &r.Rows[len(r.Rows)-1]
}

// finish computes the statistics of every row, in the order of the scenarios.
func (r *Report) finish(complete bool) {
	r.Complete = complete && len(r.Skipped) == 0
	for i := range r.Rows {
		r.Rows[i].summarize()
	}
	order := map[string]int{}
	for i, s := range Scenarios {
		order[s.Name] = i
	}
	slices.SortStableFunc(r.Rows, func(a, b Row) int { return order[a.Scenario] - order[b.Scenario] })
}

func (w *Row) summarize() {
	if len(w.Samples) == 0 {
		return
	}
	sorted := slices.Sorted(slices.Values(w.Samples))
	w.Min, w.Max = sorted[0], sorted[len(sorted)-1]
	mid := len(sorted) / 2
	w.Median = sorted[mid]
	if len(sorted)%2 == 0 {
		w.Median = (sorted[mid-1] + sorted[mid]) / 2
	}
}

// WriteJSON writes the whole report.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	return enc.Encode(r)
}

// WriteTable writes the medians for people, with each figure's ratio to
// usernet's.
func (r *Report) WriteTable(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "SCENARIO\tBACKEND\tMEDIAN\tSPREAD\tUNIT\tUSERNET IS")
	for _, row := range r.Rows {
		ratio := ""
		if own := r.median(row.Scenario, "usernet"); own > 0 && row.Median > 0 && row.Backend != "usernet" {
			ratio = fmt.Sprintf("%.2f×", own/row.Median)
		}
		fmt.Fprintf(tw, "%s\t%s\t%.2f\t%.2f–%.2f\t%s\t%s\n", row.Scenario, row.Backend, row.Median, row.Min, row.Max, row.Unit, ratio)
		for _, e := range row.Errors {
			fmt.Fprintf(tw, "\t  stalled: %s\t\t\t\t\n", e)
		}
	}
	for backend, why := range r.Skipped {
		fmt.Fprintf(tw, "skipped\t%s\t%s\t\t\t\n", backend, why)
	}
	return tw.Flush()
}

func (r *Report) median(scenario, backend string) float64 {
	for _, row := range r.Rows {
		if row.Scenario == scenario && row.Backend == backend {
			return row.Median
		}
	}
	return 0
}
