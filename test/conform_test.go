//go:build runtimes

package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/usernet/usernet/internal/nstest"
)

// conformReport is what the tests read of cni-conform's report in JSON.
type conformReport struct {
	Conforms  bool
	Supported []string `json:"supported_versions"`
	Results   []struct {
		Name, Version, Level, Verdict, Message string
		Calls                                  []struct {
			Env            []string
			Stdout, Ended  string
			Stdin, Stderr  string
			TookNanosecond int64 `json:"took_ns"`
		}
	}
}

// conformTool builds cni-conform, once.
var conformTool = sync.OnceValues(func() (string, error) {
	path := program("cni-conform")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/usernet/usernet/cmd/cni-conform")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build cni-conform: %w\n%s", err, out)
	}
	return path, nil
})

// conform runs the suite on a plugin and returns what it found, and the exit
// status.
func conform(t *testing.T, plugin, conf string, args ...string) (*conformReport, int) {
	t.Helper()
	nstest.Require(t)
	tool, err := conformTool()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "conf.json")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool, append([]string{"--plugin", plugin, "--conf", file, "--report", "json"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	var report conformReport
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatalf("cni-conform: %v, %v: %s%s", cmd.ProcessState, err, stdout.String(), stderr.String())
	}
	return &report, cmd.ProcessState.ExitCode()
}

// failed returns the IDs of the cases of a level that failed, and logs why.
func (r *conformReport) failed(t *testing.T, level string) []string {
	t.Helper()
	var ids []string
	for _, c := range r.Results {
		if c.Verdict == "failed" && c.Level == level {
			ids = append(ids, c.Name+"@"+c.Version)
			t.Logf("%s %s@%s: %s", level, c.Name, c.Version, c.Message)
		}
	}
	return ids
}

// count returns how many cases have a verdict.
func (r *conformReport) count(verdict string) (n int) {
	for _, c := range r.Results {
		if c.Verdict == verdict {
			n++
		}
	}
	return n
}

// TestConformUsernet: the plugin does all that the specification demands and
// recommends.
func TestConformUsernet(t *testing.T) {
	network := func(name, v4, v6 string) string {
		return fmt.Sprintf(`{"name":%q,"type":"usernet","autostart":false,"socket":"${CNI_CONFORM_DIR}/run/u.sock",
			"ipam":{"type":"usernet","ranges":[[{"subnet":%q}],[{"subnet":%q}]]}}`, name, v4, v6)
	}
	other := filepath.Join(t.TempDir(), "other.json")
	if err := os.WriteFile(other, []byte(network("other", "10.87.0.0/24", "fd87::/64")), 0o600); err != nil {
		t.Fatal(err)
	}
	setup := program("usernet") + ` daemon --socket $CNI_CONFORM_DIR/run/u.sock --state-dir $CNI_CONFORM_DIR/state &
		n=0; until [ -S $CNI_CONFORM_DIR/run/u.sock ]; do n=$((n+1)); [ $n -lt 200 ] || exit 1; sleep 0.05; done`
	report, status := conform(t, program("cni/usernet"), network("web", "10.88.0.0/24", "fd88::/64"), "--other", other, "--setup", setup)
	if must := report.failed(t, "MUST"); len(must) > 0 || !report.Conforms || status != 0 {
		t.Errorf("status %d, failed: %v", status, must)
	}
	if should := report.failed(t, "SHOULD"); len(should) > 0 {
		t.Errorf("failed: %v", should)
	}
	report.failed(t, "MAY")
	// A case that could not be tried is none that passed.
	if n := report.count("not supported") + report.count("not run"); n > 0 {
		t.Errorf("%d cases were not tried", n)
	}
	if n := report.count("passed"); n < 500 {
		t.Errorf("only %d cases passed", n)
	}
}

// referencePlugins are plugins of others, with faults that they are known to have.
// ptp adds no bridge, and of a container's second interface the route to the
// gateway is there already.
var referencePlugins = []struct {
	name, conf   string
	must, should []string // cases that fail; there may be more of the latter
}{
	{
		name: "bridge", conf: `"bridge":"cni0","isGateway":true,"ipMasq":true`,
		must: []string{
			"ADD/prevResult@0.4.0", "ADD/prevResult@1.0.0", // neither passed through nor modified
			"order/two-interfaces-DEL@1.0.0", // its iptables chain is of the container, not of the interface
		},
		should: []string{
			"ADD/netns-own@1.0.0",                  // error 8 after all has been made
			"DEL/netns-empty-leaves-nothing@1.0.0", // ipMasq rules
			"DEL/netns-replaced-spares@1.0.0",      // fails, or takes another container's interface
			"DEL/netns-no-namespace@1.0.0",         // fails
			"DEL/netns-own-spares@1.0.0",           // the host's interface
		},
	},
	{
		name: "ptp", conf: `"ipMasq":true`,
		must: []string{"ADD/prevResult@0.4.0", "ADD/prevResult@1.0.0"},
		should: []string{
			"ADD/two-interfaces@1.0.0",
			"ADD/netns-own@1.0.0",                  // succeeds, with an interface on the host
			"DEL/netns-empty-leaves-nothing@1.0.0", // ipMasq rules
			"DEL/netns-replaced-spares@1.0.0",
			"DEL/netns-no-namespace@1.0.0",
			"DEL/netns-own-spares@1.0.0", // the host's interface
		},
	},
}

// TestConformReference: the suite finds the faults that reference plugins are
// known to have, and none where they have none. The versions that they speak end
// with 1.0.0, so that what came later is not tried.
func TestConformReference(t *testing.T) {
	for _, p := range referencePlugins {
		t.Run(p.name, func(t *testing.T) {
			conf := fmt.Sprintf(`{"name":"lab","type":%q,%s,"ipam":{"type":"host-local",
				"ranges":[[{"subnet":"10.88.0.0/24"}],[{"subnet":"fd88::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}`, p.name, p.conf)
			// What is killed at random times fails in some runs, on iptables chains that
			// are half made.
			report, status := conform(t, filepath.Join(refPlugins, p.name), conf, "--versions", "0.2.0,0.4.0,1.0.0", "--kills", "-1")
			if status != 1 || report.Conforms {
				t.Errorf("status %d, conforms %v", status, report.Conforms)
			}
			if must := report.failed(t, "MUST"); !slices.Equal(must, p.must) {
				t.Errorf("failed MUST: %v, want %v", must, p.must)
			}
			should := report.failed(t, "SHOULD")
			for _, id := range append(p.should,
				"env/error-cniVersion@0.4.0",              // libcni prints errors without
				"env/ADD/containerid-slash/code@1.0.0",    // the message names no variable
				"conf/CHECK/prevResult-string/code@1.0.0", // 999
			) {
				if !slices.Contains(should, id) {
					t.Errorf("%s did not fail", id)
				}
			}
			for _, c := range report.Results {
				later := (strings.HasPrefix(c.Name, "GC/") || strings.HasPrefix(c.Name, "STATUS/")) && !strings.Contains(c.Name, "/before-1.1.0")
				if later && c.Verdict != "not supported" {
					t.Errorf("%s@%s: %s, want not supported: %s", c.Name, c.Version, c.Verdict, c.Message)
				}
			}
			if n := report.count("passed"); n < 200 {
				t.Errorf("only %d cases passed", n)
			}
		})
	}
}
