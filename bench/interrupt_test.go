package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// asBench makes the test's executable the benchmark; the value is found again
// in the environment of all processes that the benchmark starts.
const asBench = "BENCH_TEST_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(asBench) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// build makes usernet's binaries and gvisor-tap-vsock's, as make bench has them.
func build(t *testing.T) (bin, tools string) {
	t.Helper()
	bin, tools = t.TempDir(), t.TempDir()
	const peer = "github.com/containers/gvisor-tap-vsock/cmd/"
	for _, argv := range [][]string{
		{"go", "build", "-C", "..", "-o", bin + "/", "./cmd/usernet", "./cmd/usernet-cni"},
		{"go", "build", "-o", tools + "/gvproxy", peer + "gvproxy"},
		{"go", "build", "-o", tools + "/gvforwarder", peer + "vm"},
	} {
		if err := run(t.Context(), argv...); err != nil {
			t.Fatal(err)
		}
	}
	return bin, tools
}

// TestNetnsInterrupt: a run that is interrupted ends with an incomplete result,
// and leaves no process, namespace or file behind.
func TestNetnsInterrupt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and bridges")
	}
	bin, tools := build(t)
	const stream = "^(egress-tcp4-up-1-mtu1500|published-tcp4-in-1)$"
	streaming := func(r *interrupted) bool { return r.runs("iperf3", "-c") }
	for _, backend := range backends(bin, tools) {
		t.Run(backend.Name(), func(t *testing.T) {
			if why := backend.Missing(); why != "" {
				t.Skip(why)
			}
			interrupt(t, bin, tools, "^"+backend.Name()+"$", stream, streaming)
		})
	}
	t.Run("while containers are made", func(t *testing.T) {
		interrupt(t, bin, tools, "^usernet$", "^idle$", func(r *interrupted) bool { return len(r.namespaces()) > 20 && r.runs("usernet-cni", "") })
	})
	t.Run("while it waits", func(t *testing.T) {
		interrupt(t, bin, tools, "^usernet$", "^idle$", func(r *interrupted) bool { return time.Since(r.begin) > 2*time.Second })
	})
	t.Run("while a plugin is measured", func(t *testing.T) {
		interrupt(t, bin, tools, "^bridge$", "^cni$", func(r *interrupted) bool { return r.runs("bridge", "") })
	})
}

// interrupted is a run of the benchmark.
type interrupted struct {
	cmd    *exec.Cmd
	marker string
	temp   string // its temporary directory
	begin  time.Time
}

// interrupt starts a run, interrupts it when the time has come, and looks at
// what is left.
func interrupt(t *testing.T, bin, tools, backend, scenario string, now func(*interrupted) bool) {
	t.Helper()
	dir := shortTempDir(t)
	r := &interrupted{marker: fmt.Sprintf("%s=%d", asBench, time.Now().UnixNano()), temp: filepath.Join(dir, "tmp"), begin: time.Now()}
	if err := os.Mkdir(r.temp, 0o755); err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	r.cmd = exec.CommandContext(t.Context(), os.Args[0], "run", "--bin", bin, "--tools", tools, "--time", "3s", "-o", dir+"/result",
		"--backend", backend, "--scenario", scenario)
	r.cmd.Env = append(os.Environ(), r.marker, "TMPDIR="+r.temp)
	r.cmd.Stdout, r.cmd.Stderr = &output, &output
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the moment", func() bool { return now(r) })
	t.Logf("interrupted after %v: %q", time.Since(r.begin), r.processes())
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := r.cmd.Wait(); err == nil {
		t.Errorf("an interrupted run succeeded:\n%s", output.String())
	}
	t.Logf("ended %v after the interrupt", time.Since(begin))
	if result, err := readReport(dir + "/result.json"); err != nil || result.Complete {
		t.Errorf("result: %+v, %v", result, err)
	}
	r.leavesNothing(t)
	if t.Failed() {
		t.Log(output.String())
	}
}

// shortTempDir is a directory for sockets, whose paths end after 107 bytes; one of
// t.TempDir has the test's name in its path.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (r *interrupted) leavesNothing(t *testing.T) {
	t.Helper()
	// The kernel may take a moment to end killed processes.
	deadline := time.Now().Add(5 * time.Second)
	for len(r.processes()) > 0 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	for _, p := range r.processes() {
		t.Errorf("left: process %s", p)
	}
	left := r.namespaces()
	for _, pattern := range []string{r.temp + "/*", "/etc/netns/" + r.prefix() + "*", "/run/" + r.prefix() + "*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, paths...)
	}
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// prefix begins the names of the run's namespaces.
func (r *interrupted) prefix() string { return fmt.Sprintf("ubench%d", r.cmd.Process.Pid) }

func (r *interrupted) namespaces() []string {
	paths, _ := filepath.Glob("/run/netns/" + r.prefix() + "*") // the pattern is good
	return paths
}

// processes are the command lines of the run's processes, its own aside.
func (r *interrupted) processes() (lines []string) {
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		dir := filepath.Dir(path)
		environ, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(environ, []byte(r.marker)) || filepath.Base(dir) == fmt.Sprint(r.cmd.Process.Pid) {
			continue // not the run's, or gone meanwhile
		}
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && len(line) > 0 {
			lines = append(lines, strings.TrimSuffix(strings.ReplaceAll(string(line), "\x00", " "), " "))
		}
	}
	return lines
}

// runs reports whether a process of the run has that name and argument.
func (r *interrupted) runs(name, argument string) bool {
	for _, line := range r.processes() {
		argv := strings.Fields(line)
		if len(argv) > 0 && filepath.Base(argv[0]) == name && strings.Contains(line, argument) {
			return true
		}
	}
	return false
}

func wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
	}
}

// TestScratch: what a run's process leaves among temporary files ends with the run.
func TestScratch(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	ended := errors.New("ended")
	err := withScratch(func() error {
		left, err := output(t.Context(), "mktemp")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(strings.TrimSpace(string(left))); err != nil || !strings.HasPrefix(string(left), temp) {
			t.Errorf("temporary file %s: %v", left, err)
		}
		return ended
	})
	if !errors.Is(err, ended) {
		t.Errorf("error %v", err)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if now := os.Getenv("TMPDIR"); now != temp {
		t.Errorf("TMPDIR is %s afterwards, not %s", now, temp)
	}
}

// TestNetnsRouteMTU: the MTU that a load is measured with is that of the
// kernel's packets, in both families, and ends with the load.
func TestNetnsRouteMTU(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces")
	}
	topo, err := NewTopology(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := topo.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, addr := range []string{serverV4, serverV6, "192.0.2.1"} { // on the link, and past a gateway
		remove, err := routeMTU(t.Context(), topo.Host, addr, 1300)
		if err != nil {
			t.Fatal(err)
		}
		if route := routeTo(t, topo.Host, addr); !strings.Contains(route, "mtu 1300") {
			t.Errorf("route to %s: %s", addr, route)
		}
		remove()
		if route := routeTo(t, topo.Host, addr); strings.Contains(route, "mtu") {
			t.Errorf("route to %s afterwards: %s", addr, route)
		}
	}
}

func routeTo(t *testing.T, namespace, addr string) string {
	t.Helper()
	out, err := output(context.Background(), "ip", "-n", namespace, "route", "get", addr)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
