package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
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
	// Complete is false when the run was interrupted, or a backend or tool was
	// missing: such a report is not to be compared with another.
	Complete bool              `json:"complete"`
	Skipped  map[string]string `json:"skipped,omitempty"` // backend or tool to reason
	Rows     []Row             `json:"rows"`
}

// Row is one figure of a scenario through one backend.
type Row struct {
	Scenario       string    `json:"scenario"` // with "/figure" where it has several
	Backend        string    `json:"backend"`
	Unit           string    `json:"unit"`
	HigherIsBetter bool      `json:"higherIsBetter"`
	Median         float64   `json:"median"`
	Min            float64   `json:"min"`
	Max            float64   `json:"max"`
	Samples        []float64 `json:"samples"`
	Errors         []string  `json:"errors,omitempty"` // rounds that gave no figure, and why
}

func newReport(rounds int, duration time.Duration) *Report {
	return &Report{
		Date: time.Now().UTC().Truncate(time.Second), Commit: versionOf("git", "describe", "--always", "--dirty", "--exclude=*"),
		Kernel: versionOf("uname", "-r"), CPU: cpuModel(), CPUs: runtime.NumCPU(), Go: runtime.Version(),
		Versions: map[string]string{"iperf3": versionOf("iperf3", "--version")},
		MTU:      map[string]int{}, Skipped: map[string]string{}, Rounds: rounds, Seconds: duration.Seconds(),
	}
}

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return unknown
	}
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return unknown
}

// figureName is the name of a figure in results.
func figureName(s Scenario, f Figure) string {
	if f.Name == "" {
		return s.Name
	}
	return s.Name + "/" + f.Name
}

// add notes what one run of a scenario gave, or why it gave nothing.
func (r *Report) add(s Scenario, backend string, values []float64, err error) {
	for i, f := range s.Figures {
		row := r.row(figureName(s, f), backend, f)
		if err != nil {
			if i == 0 {
				row.Errors = append(row.Errors, err.Error())
			}
			continue
		}
		row.Samples = append(row.Samples, values[i])
	}
}

// row finds or makes a row.
func (r *Report) row(name, backend string, f Figure) *Row {
	if row := r.find(name, backend); row != nil {
		return row
	}
	r.Rows = append(r.Rows, Row{Scenario: name, Backend: backend, Unit: f.Unit, HigherIsBetter: f.HigherIsBetter})
	return &r.Rows[len(r.Rows)-1]
}

func (r *Report) find(name, backend string) *Row {
	for i := range r.Rows {
		if r.Rows[i].Scenario == name && r.Rows[i].Backend == backend {
			return &r.Rows[i]
		}
	}
	return nil
}

// finish computes the statistics of every row, in the order of the scenarios.
func (r *Report) finish(complete bool) {
	r.Complete = complete && len(r.Skipped) == 0
	for i := range r.Rows {
		r.Rows[i].summarize()
	}
	order := map[string]int{}
	for _, s := range Scenarios {
		for _, f := range s.Figures {
			order[figureName(s, f)] = len(order)
		}
	}
	slices.SortStableFunc(r.Rows, func(a, b Row) int { return order[a.Scenario] - order[b.Scenario] })
}

func (w *Row) summarize() {
	if len(w.Samples) == 0 {
		return
	}
	w.Min, w.Max, w.Median = slices.Min(w.Samples), slices.Max(w.Samples), median(w.Samples)
}

func median(samples []float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	mid := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[mid-1] + sorted[mid]) / 2
	}
	return sorted[mid]
}

// names are the scenarios of the report, each once, in order.
func (r *Report) names() []string {
	var names []string
	for _, row := range r.Rows {
		if !slices.Contains(names, row.Scenario) {
			names = append(names, row.Scenario)
		}
	}
	return names
}

// better is how many times as good as b the figure a of a scenario is.
func (w *Row) better(a, b float64) float64 {
	if !w.HigherIsBetter {
		a, b = b, a
	}
	if b == 0 {
		return 0
	}
	return a / b
}

// write writes the report as path.json, path.md and path-*.png.
func (r *Report) write(path string) error {
	file := func(suffix string, fill func(io.Writer) error) error {
		f, err := os.Create(path + suffix)
		if err != nil {
			return err
		}
		return errors.Join(fill(f), f.Close())
	}
	return errors.Join(file(".json", r.WriteJSON), file(".md", r.WriteMarkdown), r.plot(path))
}

// WriteJSON writes the whole report.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	return enc.Encode(r)
}

func readReport(path string) (*Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(Report)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s: no result of bench: %w", path, err)
	}
	return r, nil
}

func trimJSON(path string) string { return strings.TrimSuffix(path, ".json") }

// WriteTable writes the medians for people, with how many times as good as each
// backend usernet is.
func (r *Report) WriteTable(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "SCENARIO\tBACKEND\tMEDIAN\tSPREAD\tUNIT\tUSERNET IS")
	for i := range r.Rows {
		row := &r.Rows[i]
		if len(row.Samples) > 0 {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s–%s\t%s\t%s\n", row.Scenario, row.Backend,
				number(row.Median), number(row.Min), number(row.Max), row.Unit, r.beside(row))
		}
		for _, e := range row.Errors {
			fmt.Fprintf(tw, "%s\t%s\tno figure: %s\t\t\t\n", row.Scenario, row.Backend, e)
		}
	}
	for backend, why := range r.Skipped {
		fmt.Fprintf(tw, "skipped\t%s\t%s\t\t\t\n", backend, why)
	}
	return tw.Flush()
}

// beside is usernet's figure beside a row's, such as "1.31× as good".
func (r *Report) beside(row *Row) string {
	own := r.find(row.Scenario, "usernet")
	if own == nil || own == row || len(own.Samples) == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f×", row.better(own.Median, row.Median))
}

// number writes three significant digits.
func number(x float64) string {
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// WriteMarkdown writes what the result was measured with, and a table with a
// line for each scenario and a column for each backend.
func (r *Report) WriteMarkdown(w io.Writer) error {
	var backends []string
	for _, row := range r.Rows {
		if !slices.Contains(backends, row.Backend) {
			backends = append(backends, row.Backend)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\nCommit %s, Linux %s, %d × %s, %s. Medians of %d interleaved rounds, %g s each load; in brackets lowest and highest, where there are several.\n",
		r.Date.Format("2006-01-02 15:04"), r.Commit, r.Kernel, r.CPUs, r.CPU, r.Go, r.Rounds, r.Seconds)
	if !r.Complete {
		b.WriteString("\n**Incomplete**: not to be compared.\n")
	}
	fmt.Fprintf(&b, "\n| | unit | %s |\n|---|---|%s\n", strings.Join(backends, " | "), strings.Repeat("---|", len(backends)))
	for _, name := range r.names() {
		cells := make([]string, len(backends))
		unit := ""
		for i, backend := range backends {
			if row := r.find(name, backend); row != nil {
				cells[i], unit = row.cell(), row.Unit
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, unit, strings.Join(cells, " | "))
	}
	b.WriteString("\n| | version | MTU of devices |\n|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		mtu := ""
		if r.MTU[name] != 0 {
			mtu = strconv.Itoa(r.MTU[name])
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, r.Versions[name], mtu)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// cell is a row in a table's cell.
func (w *Row) cell() string {
	if len(w.Samples) == 0 {
		return "no figure"
	}
	if len(w.Samples) == 1 {
		return number(w.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(w.Median), number(w.Min), number(w.Max))
}
