package conform

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/nstest"
)

// sampleSetup returns the configuration of a run on the sample plugin with
// faults.
func sampleSetup(t *testing.T, run string, faults ...string) Config {
	t.Helper()
	nstest.Require(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	plugin := filepath.Join(t.TempDir(), sampleName)
	if err := os.Symlink(self, plugin); err != nil {
		t.Fatal(err)
	}
	conf, err := json.Marshal(object{"type": "sample", "name": "lab", "state": "${" + DirVariable + "}/state", "faults": faults})
	if err != nil {
		t.Fatal(err)
	}
	return Config{Plugin: plugin, Conf: conf, Run: regexp.MustCompile(run), Seed: 7, Parallel: 4, Kills: 3, Settle: 300 * time.Millisecond}
}

func mustRun(t *testing.T, conf Config) *Report {
	t.Helper()
	report, err := Run(context.Background(), conf)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// TestNetnsSampleConforms: the suite finds no fault where there is none.
func TestNetnsSampleConforms(t *testing.T) {
	conf := sampleSetup(t, ".")
	conf.Settle = 5 * time.Second
	conf.Versions = []string{"0.1.0", "0.3.1", "1.1.0"} // one of each shape of results
	report := mustRun(t, conf)
	for _, r := range report.Results {
		if r.Verdict != Passed {
			t.Errorf("%s: %s: %s\n%s", r.ID(), r.Verdict, r.Message, transcript(r.Calls))
		}
	}
	if n, want := len(report.Results), len(List(conf.Versions, nil)); n != want {
		t.Errorf("%d results of %d cases", n, want)
	}
	if !report.Conforms() {
		t.Error("the report says that it does not conform")
	}
}

// TestNetnsFaultsAreFound: each fault is found by the cases that are there for
// it.
func TestNetnsFaultsAreFound(t *testing.T) {
	for fault, cases := range map[string]string{
		"error-as-text":            "env/error-alone@1.1.0 env/error-cniVersion@1.0.0 conf/ADD/truncated/code@1.1.0",
		"wrong-codes":              "env/ADD/no-netns/code@1.1.0 conf/DEL/no-name/code@1.1.0 conf/GC/cniVersion-unknown/code@1.1.0 GC/before-1.1.0/code@1.0.0",
		"accepts-any-environment":  "env/CHECK/containerid-space@1.1.0 env/DEL/ifname-colon@1.1.0 env/command-unknown@1.1.0",
		"takes-first-value":        "conf/ADD/trailing@1.1.0 conf/DEL/trailing@1.1.0 conf/CHECK/trailing@1.1.0",
		"any-name":                 "conf/STATUS/name-space@1.1.0 conf/GC/no-name@1.1.0",
		"any-verb":                 "CHECK/before-0.4.0@0.3.1 GC/before-1.1.0@0.4.0 STATUS/before-1.1.0@0.1.0",
		"hangs":                    "STATUS/ready@1.1.0",
		"same-address":             "ADD/distinct-addresses@1.1.0",
		"takes-own-netns":          "ADD/netns-own@1.1.0",
		"takes-over":               "ADD/existing-interface@0.2.0 order/ADD-ADD@1.1.0",
		"own-name":                 "ADD/longest-name@1.1.0 ADD/odd-name@1.1.0",
		"no-address":               "ADD/makes-interface@0.1.0 ADD/makes-interface@1.1.0 order/ADD-DEL-ADD@0.4.0",
		"stays-down":               "ADD/makes-interface@0.3.0",
		"leaks-when-failing":       "ADD/rollback@1.1.0",
		"bad-notation":             "result/values@0.2.0 result/values@1.0.0",
		"result-1.1.0":             "result/cniVersion@0.4.0 result/keys@0.1.0",
		"no-mac":                   "result/mac@1.0.0",
		"wrong-mac":                "result/mac@0.3.1",
		"wrong-mtu":                "result/mtu@1.1.0",
		"wrong-sandbox":            "result/interface@0.3.0 result/netns-as-given@1.1.0",
		"bad-index":                "result/indices@1.1.0",
		"new-keys":                 "result/keys@0.2.0",
		"no-family":                "result/keys@0.3.1 result/keys@0.4.0",
		"forgets-prevResult":       "ADD/prevResult@0.3.0 ADD/prevResult@1.1.0",
		"no-route":                 "result/routes@1.1.0",
		"chatters":                 "result/only-json@1.1.0",
		"del-needs-netns":          "DEL/netns-empty@1.1.0 DEL/netns-unset@1.1.0",
		"del-needs-prevResult":     "DEL/without-prevResult@0.4.0 order/DEL-first@1.1.0",
		"del-needs-namespace":      "DEL/netns-missing@1.1.0 DEL/netns-no-namespace@1.1.0",
		"del-once":                 "order/DEL-DEL@1.1.0 order/DEL-first@0.1.0 parallel/DEL-same@1.1.0",
		"del-all":                  "order/ADD-ADD-other-DEL@1.1.0 order/late-DEL@1.1.0",
		"del-container":            "order/two-interfaces-DEL@1.1.0 ADD/same-id-elsewhere@1.1.0",
		"del-keeps-interface":      "DEL/removes-interface@0.1.0 order/ADD-DEL-ADD@1.1.0",
		"del-by-name":              "DEL/netns-replaced-spares@1.1.0 DEL/netns-own-spares@1.1.0",
		"leaks":                    "DEL/leaves-nothing@0.1.0 parallel/leaves-nothing@1.1.0 GC/removes-stale/dead@1.1.0 kill/ADD-leaves-nothing@1.1.0",
		"leaks-without-netns":      "DEL/netns-empty-leaves-nothing@1.1.0",
		"check-always":             "CHECK/interface-gone@0.4.0 CHECK/without-prevResult@1.1.0 CHECK/netns-missing@1.1.0 CHECK/netns-replaced@1.1.0 CHECK/after-DEL@1.1.0",
		"check-never":              "CHECK/after-ADD@1.0.0 CHECK/prints-nothing@1.1.0",
		"check-without-prevResult": "CHECK/without-prevResult@0.4.0",
		"check-ignores-down":       "CHECK/interface-down@1.1.0",
		"check-ignores-addresses":  "CHECK/address-gone@1.1.0 CHECK/address-changed@0.4.0 CHECK/other-address@1.1.0",
		"check-ignores-routes":     "CHECK/route-gone@1.1.0",
		"check-counts-routes":      "CHECK/later-route@1.1.0",
		"status-fails":             "STATUS/ready@1.1.0 STATUS/keeps-hands-off@1.1.0",
		"gc-needs-list":            "GC/removes-stale/null@1.1.0 GC/removes-stale/absent@1.1.0",
		"gc-idle":                  "GC/removes-stale@1.1.0 GC/removes-stale/empty@1.1.0 GC/removes-stale/dead@1.1.0",
		"gc-everything":            "GC/keeps-valid@1.1.0 GC/keeps-valid/both-keys@1.1.0 GC/keeps-one-of-two@1.1.0 GC/unknown-attachments@1.1.0 GC/spares-other-network@1.1.0",
		"gc-any-network":           "GC/spares-other-network@1.1.0",
		"gc-takes-bad-list":        "GC/bad-list@1.1.0",
		"gc-prints":                "GC/prints-nothing@1.1.0",
		"no-lock":                  "parallel/ADD-DEL@1.1.0",
		"dies-badly":               "kill/ADD@1.1.0",
	} {
		t.Run(fault, func(t *testing.T) {
			want := strings.Fields(cases)
			conf := sampleSetup(t, "^("+strings.ReplaceAll(regexp.QuoteMeta(strings.Join(want, "\n")), "\n", "|")+")$", fault)
			switch fault {
			case "hangs":
				conf.CallLimit = 300 * time.Millisecond
			case "dies-badly": // in most of its time, but not in all
				conf.Kills = 10
			}
			checkFound(t, mustRun(t, conf), want)
		})
	}
}

// checkFound wants exactly the cases to have failed, and nothing left of them.
func checkFound(t *testing.T, report *Report, want []string) {
	t.Helper()
	var got []string
	for _, r := range report.Results {
		if r.Verdict == NotSupported {
			t.Errorf("%s is not supported: %s", r.ID(), r.Message)
		}
		if r.Verdict == Failed {
			got = append(got, r.ID())
			t.Logf("%s: %s", r.ID(), r.Message)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("failed: %v, want %v", got, want)
	}
}

// TestNetnsVersionFaultsAreFound: VERSION has no configuration to ask for a
// fault in.
func TestNetnsVersionFaultsAreFound(t *testing.T) {
	for fault, want := range map[string]string{"version-own": "VERSION/echoes@1.0.0", "version-empty": "VERSION/answers@1.0.0"} {
		t.Setenv("SAMPLE_FAULT", fault)
		conf := sampleSetup(t, "^"+regexp.QuoteMeta(want)+"$")
		conf.Conf = []byte(strings.Replace(string(conf.Conf), "{", `{"cniVersion":"1.0.0",`, 1))
		checkFound(t, mustRun(t, conf), []string{want})
	}
}

// TestNetnsInterrupt: a run that is ended cleans up, and reports what it tried.
func TestNetnsInterrupt(t *testing.T) {
	conf := sampleSetup(t, "^ADD/")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tried := 0
	conf.Progress = func(Result) {
		if tried++; tried == 3 {
			cancel()
		}
	}
	conf.Setup = "echo $" + DirVariable + " >" + filepath.Join(filepath.Dir(conf.Plugin), "dir")
	conf.Teardown = "touch " + filepath.Join(filepath.Dir(conf.Plugin), "torn")
	report, err := Run(ctx, conf)
	if err == nil || report == nil {
		t.Fatalf("Run = %v, %v, want a report and the context's error", report, err)
	}
	if report.Results[2].Verdict != Passed || report.Results[3].Verdict != NotRun || report.Conforms() {
		t.Errorf("third case %s, fourth %s", report.Results[2].Verdict, report.Results[3].Verdict)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(conf.Plugin), "torn")); err != nil {
		t.Errorf("the teardown hook was not run: %v", err)
	}
	dir, err := os.ReadFile(filepath.Join(filepath.Dir(conf.Plugin), "dir"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(strings.TrimSpace(string(dir))); !os.IsNotExist(err) {
		t.Errorf("the directory of the run is still there: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), strings.TrimSpace(string(dir))) {
		t.Error("namespaces are still mounted")
	}
}

// TestNetnsHookFails: what cannot be set up is not tried.
func TestNetnsHookFails(t *testing.T) {
	conf := sampleSetup(t, ".")
	conf.Setup = "echo no daemon >&2; exit 3"
	if _, err := Run(context.Background(), conf); err == nil || !strings.Contains(err.Error(), "no daemon") {
		t.Errorf("Run = %v, want the hook's words", err)
	}
}
