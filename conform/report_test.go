package conform

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sampleReport has every verdict and level.
func sampleReport() *Report {
	at := func(name, version string, level Level) Case {
		return Case{Name: name, Version: version, Level: level, Section: "§2 DEL", Summary: "DEL does what it should"}
	}
	call := &Call{Env: []string{"CNI_COMMAND=DEL"}, Stdin: `{"name":"lab"}`, Stdout: "{\"code\":7,\n\"msg\":\"no\x1b\"}", Stderr: "log", Status: 1, Ended: "exit status 1", Took: 3 * time.Millisecond}
	return &Report{
		Plugin: "/opt/cni/bin/lab", Network: "lab", Supported: []string{"1.0.0", "1.1.0", "2.0.0"}, Versions: []string{"1.0.0", "1.1.0"}, Seed: 9,
		Begun: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Took: 1500 * time.Millisecond,
		Results: []Result{
			{Case: at("DEL/twice", "1.0.0", Must), Verdict: Passed, Took: time.Second},
			{Case: at("DEL/twice", "1.1.0", Must), Verdict: Failed, Message: "DEL was to succeed:\nexit status 1", Calls: []*Call{call}},
			{Case: at("DEL/quiet", "1.1.0", Should), Verdict: Failed, Message: "DEL printed <&>"},
			{Case: at("DEL/old", "0.1.0", Must), Verdict: NotSupported, Message: "the case is for versions up to 0.1.0"},
			{Case: at("DEL/late", "1.1.0", May), Verdict: NotRun, Message: "the run was ended"},
		},
	}
}

func TestReportInText(t *testing.T) {
	for name, o := range map[string]TextOptions{"report.txt": {}, "report-colour.txt": {Colour: true, Calls: true}} {
		var out bytes.Buffer
		if err := sampleReport().WriteText(&out, o); err != nil {
			t.Fatal(err)
		}
		golden(t, name, out.String())
	}
}

// golden compares with a file, which UPDATE_GOLDEN=1 writes.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestReportInJSON(t *testing.T) {
	var out bytes.Buffer
	if err := sampleReport().WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Conforms bool
		Report
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Conforms {
		t.Error("it says that the plugin conforms")
	}
	if diff := cmp.Diff(*sampleReport(), got.Report); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
}

func TestReportInJUnit(t *testing.T) {
	var out bytes.Buffer
	if err := sampleReport().WriteJUnit(&out); err != nil {
		t.Fatal(err)
	}
	var got junitSuite
	if err := xml.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	if got.Tests != 5 || got.Failures != 1 || got.Skipped != 3 || got.Time != "1.500" {
		t.Errorf("%d tests, %d failures, %d skipped in %s s", got.Tests, got.Failures, got.Skipped, got.Time)
	}
	failed := got.Cases[1]
	if failed.Failure == nil || !strings.Contains(failed.Failure.Message, "exit status 1") || !strings.Contains(failed.Out, "CNI_COMMAND=DEL") || strings.Contains(failed.Out, "\x1b") {
		t.Errorf("the failed case: %+v", failed)
	}
	// What is no must does not turn CI red, and is not lost.
	if s := got.Cases[2].Skipped; s == nil || s.Message != "failed (SHOULD): DEL printed <&>" {
		t.Errorf("the failed SHOULD: %+v", got.Cases[2])
	}
}

func TestConforms(t *testing.T) {
	if (&Report{}).Conforms() {
		t.Error("a run without a case conforms")
	}
	r := sampleReport()
	r.Results = append(r.Results[:1], r.Results[2:]...)
	if !r.Conforms() {
		t.Error("a failed SHOULD and a MAY that was not run are in the way")
	}
	r.Results[3].Level = Must
	if r.Conforms() {
		t.Error("a MUST that was not run does not count")
	}
}
