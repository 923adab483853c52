package conform

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// Report is what came of a run.
type Report struct {
	Plugin  string `json:"plugin"`
	Network string `json:"network"`
	// Supported is what the plugin's VERSION says; nil when it said nothing.
	Supported []string `json:"supported_versions"`
	// Versions are those that were tested.
	Versions []string `json:"tested_versions"`
	// Seed chose the times of kills.
	Seed    uint64        `json:"seed"`
	Begun   time.Time     `json:"begun"`
	Took    time.Duration `json:"took_ns"`
	Results []Result      `json:"results"`
}

// Count returns the number of results of a level with a verdict.
func (r *Report) Count(l Level, v Verdict) int {
	n := 0
	for i := range r.Results {
		if r.Results[i].Level == l && r.Results[i].Verdict == v {
			n++
		}
	}
	return n
}

// Conforms reports whether all cases of level Must that were to be run passed,
// and at least one of them.
func (r *Report) Conforms() bool {
	return r.Count(Must, Passed) > 0 && r.Count(Must, Failed) == 0 && r.Count(Must, NotRun) == 0
}

// Failures returns the results that failed, of all levels.
func (r *Report) Failures() []Result {
	var all []Result
	for _, res := range r.Results {
		if res.Verdict == Failed {
			all = append(all, res)
		}
	}
	return all
}

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(struct {
		Conforms bool `json:"conforms"`
		*Report
	}{r.Conforms(), r})
}

// The elements of JUnit's XML that CI systems read.
type (
	junitSuite struct {
		XMLName   xml.Name    `xml:"testsuite"`
		Name      string      `xml:"name,attr"`
		Tests     int         `xml:"tests,attr"`
		Failures  int         `xml:"failures,attr"`
		Skipped   int         `xml:"skipped,attr"`
		Time      string      `xml:"time,attr"`
		Timestamp string      `xml:"timestamp,attr"`
		Cases     []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name    string     `xml:"name,attr"`
		Class   string     `xml:"classname,attr"`
		Time    string     `xml:"time,attr"`
		Failure *junitText `xml:"failure,omitempty"`
		Skipped *junitText `xml:"skipped,omitempty"`
		Out     string     `xml:"system-out,omitempty"`
	}
	junitText struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// WriteJUnit writes the report as JUnit's XML. JUnit knows no levels: a failed
// case that is no Must counts as skipped, with its message, so that CI systems
// turn red for what does not conform and for nothing else.
func (r *Report) WriteJUnit(w io.Writer) error {
	suite := junitSuite{Name: "cni-conform " + r.Plugin, Tests: len(r.Results), Time: seconds(r.Took), Timestamp: r.Begun.Format("2006-01-02T15:04:05")}
	for i := range r.Results {
		res := &r.Results[i]
		c := junitCase{Name: res.ID(), Class: "cni." + group(res.Name), Time: seconds(res.Took)}
		switch {
		case res.Verdict == Passed:
		case res.Verdict == Failed && res.Level == Must:
			suite.Failures++
			c.Failure = &junitText{Message: plain(res.Message), Text: plain(res.about())}
			c.Out = plain(transcript(res.Calls))
		default:
			suite.Skipped++
			c.Skipped = &junitText{Message: plain(fmt.Sprintf("%s (%s): %s", res.Verdict, res.Level, res.Message))}
		}
		suite.Cases = append(suite.Cases, c)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(suite); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// plain leaves out what XML cannot hold and terminals would act on; plugins print
// what they like.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0xFFFE || r == 0xFFFF {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

// group is the first part of a case's name.
func group(name string) string {
	first, _, _ := strings.Cut(name, "/")
	return first
}

// about tells what a result's case expects, and where that is written.
func (r *Result) about() string {
	return fmt.Sprintf("%s: %s [%s]", r.Level, r.Summary, r.Section)
}

// transcript prints invocations for people.
func transcript(calls []*Call) string {
	var b strings.Builder
	for _, c := range calls {
		fmt.Fprintf(&b, "$ %s\n  < %s\n", strings.Join(c.Env, " "), indent(c.Stdin))
		if c.Stdout != "" {
			fmt.Fprintf(&b, "  > %s\n", indent(c.Stdout))
		}
		if c.Stderr != "" {
			fmt.Fprintf(&b, "  ! %s\n", indent(c.Stderr))
		}
		fmt.Fprintf(&b, "  %s, %v\n", c.Ended, c.Took.Round(time.Millisecond))
	}
	return b.String()
}

func indent(s string) string {
	return strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ")
}
