package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestReport runs the real go test over small modules and reads its events.
func TestReport(t *testing.T) {
	const head = "package p\nimport \"testing\"\n"
	for _, c := range []struct {
		name, source string
		noSkips, ok  bool
		want         []string
		not          string
	}{
		{"pass", head + `func TestA(t *testing.T) { t.Log("quiet"); t.Run("sub", func(t *testing.T) {}) }`,
			true, true, []string{"ok   p ", ", 2 tests", "2 passed, 0 failed, 0 skipped"}, "quiet"},
		{"fail", head + `func TestA(t *testing.T) { t.Error("loud") }; func TestB(t *testing.T) { t.Log("quiet") }`,
			false, false, []string{"loud", "FAIL p ", "1 passed, 1 failed, 0 skipped"}, "quiet"},
		{"skip", head + `func TestA(t *testing.T) { t.Skip("no such device") }`,
			false, true, []string{"SKIP p TestA", "no such device", "0 passed, 0 failed, 1 skipped"}, "FAIL"},
		{"skip in CI", head + `func TestA(t *testing.T) { t.Skip("no such device") }`,
			true, false, []string{"no such device", "CI allows none"}, ""},
		{"panic", head + `func TestA(t *testing.T) { var m map[int]int; m[1] = 1 }`,
			false, false, []string{"assignment to entry in nil map", "FAIL p ", "1 failed"}, ""},
		{"exit", head + `import "os"; func TestA(t *testing.T) { os.Exit(3) }`,
			false, false, []string{"FAIL p ", "1 failed"}, ""},
		{"benchmark", head + `func BenchmarkA(b *testing.B) { b.Log("quiet"); b.Run("sub", func(b *testing.B) { for b.Loop() {} }) }`,
			true, true, []string{", 2 tests", "2 passed, 0 failed, 0 skipped"}, "quiet"},
		{"benchmark fails", head + `func TestA(t *testing.T) {}; func BenchmarkA(b *testing.B) { b.Error("loud") }`,
			false, false, []string{"loud", "FAIL p ", "1 passed, 1 failed, 0 skipped"}, ""},
		{"benchmark panics", head + `func TestA(t *testing.T) {}; func BenchmarkA(b *testing.B) { panic("loud") }`,
			false, false, []string{"loud", "FAIL p ", "1 passed, 1 failed, 0 skipped"}, ""},
		{"benchmark skips in CI", head + `func BenchmarkA(b *testing.B) { b.Skip("no such device") }`,
			true, false, []string{"SKIP p BenchmarkA", "no such device", "CI allows none"}, ""},
		{"no test", "package p\n", false, false, []string{"FAIL: no test ran"}, ""},
		{"does not build", head + `func TestA(t *testing.T) { undefinedName() }`,
			false, false, []string{"undefinedName", "FAIL p "}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "go.mod"), "module p\n\ngo 1.26\n")
			write(t, filepath.Join(dir, "p.go"), "package p\n")
			write(t, filepath.Join(dir, "p_test.go"), c.source)
			cmd := exec.CommandContext(t.Context(), "go", "test", "-json", "-bench", ".", "-benchtime", "1x", ".")
			cmd.Dir = dir
			events, _ := cmd.Output() // it fails when the tests do

			ok, got := summarize(t, string(events), c.noSkips)
			if ok != c.ok {
				t.Errorf("all well: %t, want %t", ok, c.ok)
			}
			for _, w := range c.want {
				if !strings.Contains(got, w) {
					t.Errorf("lacks %q", w)
				}
			}
			if c.not != "" && strings.Contains(got, c.not) {
				t.Errorf("has %q", c.not)
			}
			if t.Failed() {
				t.Logf("report:\n%s", got)
			}
		})
	}
}

func TestReportOfAStreamCutShort(t *testing.T) {
	ok, got := summarize(t, "warning: not an event\n"+
		`{"Action":"start","Package":"p"}`+"\n"+
		`{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN"}`, false)
	if ok || !strings.Contains(got, "warning: not an event") || !strings.Contains(got, "FAIL p: its events end early") {
		t.Errorf("all well: %t, report:\n%s", ok, got)
	}
}

func summarize(t *testing.T, events string, noSkips bool) (ok bool, text string) {
	t.Helper()
	var out strings.Builder
	r := &report{out: &out, tests: make(map[testName]*outcome)}
	if err := r.read(strings.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	ok = r.sum(noSkips)
	return ok, out.String()
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
