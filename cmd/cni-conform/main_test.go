package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/nstest"
)

// asProgram makes the test binary the program.
const asProgram = "CONFORM_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	// With the race detector every process sleeps for a second at its end, unless
	// told otherwise.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	nstest.Main(m)
}

// program makes an invocation of the program.
func program(t *testing.T, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd, stdout, stderr
}

// exit runs the program and returns its status.
func exit(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd, out, errs := program(t, args...)
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// plugin writes a plugin in shell, and a configuration for it.
func plugin(t *testing.T, script string) (args []string) {
	t.Helper()
	dir := t.TempDir()
	path, conf := filepath.Join(dir, "lab"), filepath.Join(dir, "lab.json")
	for name, text := range map[string]string{path: "#!/bin/sh\n" + script, conf: `{"name":"lab","type":"lab"}`} {
		if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"--plugin", path, "--conf", conf}
}

// answers is a plugin that does nothing but answer VERSION.
const answers = `cat >/dev/null; echo '{"cniVersion":"1.1.0","supportedVersions":["1.1.0"]}'`

func TestWrongUsage(t *testing.T) {
	for name, test := range map[string]struct{ args, want string }{
		"nothing":       {"", "--plugin is missing"},
		"no conf":       {"--plugin /bin/true", "--conf is missing"},
		"argument":      {"--list extra", `"extra"`},
		"report":        {"--plugin /bin/true --conf x --report yaml", `"yaml"`},
		"regexp":        {"--run (", "missing closing )"},
		"option":        {"--plugins x", "-plugins"},
		"private":       {"--plugin /bin/true --conf x --private run", `"run"`},
		"private root":  {"--plugin /bin/true --conf x --private /", `"/"`},
		"out elsewhere": {"--plugin /bin/true --conf x --out /nowhere/x", "/nowhere/x"},
	} {
		status, stdout, stderr := exit(t, strings.Fields(test.args)...)
		if status != usageStatus || stdout != "" || !strings.Contains(stderr, test.want) {
			t.Errorf("%s: status %d, %q, %q", name, status, stdout, stderr)
		}
	}
	if status, _, stderr := exit(t, "--help"); status != 0 || !strings.Contains(stderr, "Exit status") {
		t.Errorf("--help: status %d, %q", status, stderr)
	}
}

func TestList(t *testing.T) {
	status, stdout, _ := exit(t, "--list", "--run", "^GC/keeps", "--versions", "1.0.0,1.1.0")
	if status != 0 || !strings.Contains(stdout, "GC/keeps-valid@1.1.0 ") || strings.Contains(stdout, "@1.0.0") || strings.Contains(stdout, "ADD/") {
		t.Errorf("status %d, %s", status, stdout)
	}
}

func TestNetnsExitStatus(t *testing.T) {
	nstest.Require(t)
	right := append(plugin(t, answers), "--run", "^VERSION/answers")
	if status, stdout, stderr := exit(t, right...); status != conforms || !strings.Contains(stdout, "conforms; 1 cases") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	wrong := append(plugin(t, "echo hello"), "--run", "^VERSION/answers", "-v")
	status, stdout, stderr := exit(t, wrong...)
	if status != deviates || !strings.Contains(stdout, "> hello") || !strings.Contains(stderr, "failed        VERSION/answers@") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	// Nothing that was run is nothing that passed.
	if status, stdout, _ := exit(t, append(plugin(t, answers), "--run", "^$")...); status != deviates {
		t.Errorf("without a case: status %d, %s", status, stdout)
	}
	for name, args := range map[string][]string{
		"no such conf":   {"--plugin", "/bin/true", "--conf", "/nowhere"},
		"no such plugin": append(plugin(t, answers), "--plugin", "/nowhere"),
		"setup fails":    append(plugin(t, answers), "--setup", "exit 7"),
	} {
		if status, _, stderr := exit(t, args...); status != usageStatus || stderr == "" {
			t.Errorf("%s: status %d, %q", name, status, stderr)
		}
	}
}

func TestNetnsReportIntoFile(t *testing.T) {
	nstest.Require(t)
	out := filepath.Join(t.TempDir(), "report.xml")
	args := append(plugin(t, answers), "--run", "^VERSION/answers", "--report", "junit", "--out", out)
	if status, stdout, stderr := exit(t, args...); status != conforms || stdout != "" {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var suite struct {
		Tests int `xml:"tests,attr"`
	}
	if err := xml.Unmarshal(text, &suite); err != nil || suite.Tests != 1 {
		t.Errorf("%v, %d tests in %s", err, suite.Tests, text)
	}
}

// TestNetnsLeavesNoTrace: what plugins write into private directories, and what
// hooks leave running, ends with the run.
func TestNetnsLeavesNoTrace(t *testing.T) {
	nstest.Require(t)
	dir := filepath.Join(t.TempDir(), "made", "for", "it")
	args := append(plugin(t, fmt.Sprintf("touch %s/state && %s", dir, answers)), "--run", "^VERSION/answers", "--private", dir,
		"--setup", fmt.Sprintf("sleep %d & sleep 0", marker()))
	if status, stdout, stderr := exit(t, args...); status != conforms {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	if _, err := os.Stat(filepath.Dir(filepath.Dir(dir))); !os.IsNotExist(err) {
		t.Errorf("the private directory is still there: %v", err)
	}
	if running(t, marker()) {
		t.Error("what the setup hook started is still running")
	}
}

// marker is a time to sleep that nobody else sleeps.
func marker() int { return 7_000_000 + os.Getpid() }

// running reports whether a process sleeps that long.
func running(t *testing.T, n int) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && string(b) == fmt.Sprintf("sleep\x00%d\x00", n) {
			return true
		}
	}
	return false
}

// TestNetnsInterrupted: the first signal ends the run in order, the second at
// once.
func TestNetnsInterrupted(t *testing.T) {
	nstest.Require(t)
	for name, test := range map[string]struct {
		signals int
		script  string
		want    int
	}{
		"once":  {1, "sleep 0.2; " + answers, deviates},
		"twice": {2, fmt.Sprintf("sleep %d", marker()), usageStatus},
	} {
		t.Run(name, func(t *testing.T) {
			temp := t.TempDir()
			begun := filepath.Join(t.TempDir(), "begun")
			cmd, stdout, stderr := program(t, append(plugin(t, "touch "+begun+"; "+test.script), "--run", "^VERSION/")...)
			cmd.Env = append(cmd.Env, "TMPDIR="+temp)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			nstest.WaitFor(t, 10*time.Second, func() bool {
				_, err := os.Stat(begun)
				return err == nil
			})
			for n := range test.signals {
				if n > 0 { // signals of one number are not counted
					<-time.After(100 * time.Millisecond)
				}
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			_ = cmd.Wait() // its status is looked at
			if got := cmd.ProcessState.ExitCode(); got != test.want {
				t.Errorf("status %d, want %d\n%s%s", got, test.want, stdout, stderr)
			}
			if test.signals == 1 && (!strings.Contains(stderr.String(), "interrupted") || !strings.Contains(stdout.String(), "does not conform")) {
				t.Errorf("%s%s", stdout, stderr)
			}
			if running(t, marker()) {
				t.Error("the plugin is still running")
			}
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("left in the directory for temporary files: %v, %v", left, err)
			}
		})
	}
}
