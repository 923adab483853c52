package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/nstest"
)

// needPriority skips a test where root may not raise priorities.
func needPriority(t *testing.T) {
	t.Helper()
	nstest.Require(t)
	if out, err := exec.Command("nice", "-n", strconv.Itoa(switchNice), "true").CombinedOutput(); err != nil || len(out) > 0 {
		skip(t, "root may not raise priorities here: run it as root of the machine")
	}
}

// niceOf returns the nice values of a process's threads, each once. A thread below 0
// must be one that preempts nobody.
func niceOf(t *testing.T, pid int) []int {
	t.Helper()
	tasks, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		t.Fatal(err)
	}
	var values []int
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		attr, err := unix.SchedGetAttr(tid, 0)
		if err != nil {
			continue // it has ended
		}
		values = append(values, int(attr.Nice))
		if batch := attr.Policy == unix.SCHED_BATCH; batch != (attr.Nice < 0) {
			t.Errorf("thread %d of %d: nice %d, SCHED_BATCH: %t", tid, pid, attr.Nice, batch)
		}
	}
	slices.Sort(values)
	return slices.Compact(values)
}

// sessionNiceOf returns the nice value of a process's session, and false where the
// kernel does not schedule by sessions.
func sessionNiceOf(t *testing.T, pid int) (int, bool) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "autogroup"))
	_, after, found := strings.Cut(string(b), " nice ")
	if err != nil || !found {
		return 0, false
	}
	nice, err := strconv.Atoi(strings.TrimSpace(after))
	if err != nil {
		t.Fatalf("autogroup: %q", b)
	}
	return nice, true
}

// TestNetnsDaemonPriority holds which priority the daemon takes, in all threads.
func TestNetnsDaemonPriority(t *testing.T) {
	needPriority(t)
	w := newWorld(t)
	unprivileged := []string{"setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice"}
	for _, tt := range []struct {
		name    string
		through []string // what starts it
		args    []string
		session bool // of its own
		want    int
	}{
		{"by default", nil, nil, false, switchNice},
		{"in a session of its own", nil, nil, true, switchNice},
		{"none wanted", nil, []string{"--nice", "0"}, true, 0},
		{"more wanted", nil, []string{"--nice", "-11"}, true, -11},
		{"less wanted, unprivileged", unprivileged, []string{"--nice", "7"}, true, 7},
		{"started with another", []string{"nice", "-n", "4"}, nil, true, 4},
		{"unprivileged", unprivileged, nil, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := w.command(append([]string{"daemon", "--state-dir", filepath.Join(t.TempDir(), "state")}, tt.args...)...)
			if len(tt.through) > 0 {
				through := exec.Command(tt.through[0], append(tt.through[1:], cmd.Args...)...)
				through.Env = cmd.Env
				cmd = through
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: tt.session}
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			nstest.Start(t, w.host, cmd)
			await(t, linesOf(stderr), "serving")
			if got := niceOf(t, cmd.Process.Pid); !slices.Equal(got, []int{tt.want}) {
				t.Errorf("nice values of its threads: %v, want %d in all", got, tt.want)
			}
			want := 0
			if tt.session && len(tt.through) == 0 || tt.args != nil {
				want = tt.want
			}
			if got, ok := sessionNiceOf(t, cmd.Process.Pid); ok && tt.session && got != want {
				t.Errorf("nice value of its session: %d, want %d", got, want)
			}
		})
	}
	if nice, ok := sessionNiceOf(t, os.Getpid()); ok && nice != 0 {
		t.Errorf("the nice value of our own session is %d, after daemons that did not lead it", nice)
	}
}

// TestNetnsDaemonPriorityRefused holds that a priority that was asked for and cannot
// be had is told, with what to do.
func TestNetnsDaemonPriorityRefused(t *testing.T) {
	needPriority(t)
	w := newWorld(t)
	cmd := exec.Command("setpriv", append([]string{"--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice"},
		w.command("daemon", "--state-dir", t.TempDir(), "--nice", "-3").Args...)...)
	if r := w.do(cmd); r.status != statusFailure || !strings.Contains(r.stderr, "--nice -3: sched_setattr: operation not permitted; it needs root, or a limit (ulimit -e) of 23 or more") {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
	if r := w.do(w.command("daemon", "--nice", "20")); r.status != statusUsage || !strings.Contains(r.stderr, "--nice 20: write -20") {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
}

// TestNetnsRunPriority holds that the network of a command that root runs has
// priority, and the command none.
func TestNetnsRunPriority(t *testing.T) {
	needPriority(t)
	w := newWorld(t)
	cmd := w.command("run", "-v", "--", "sh", "-c", "echo started; cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.start(cmd)
	defer stdin.Close()
	await(t, linesOf(stdout), "started")
	await(t, linesOf(stderr), "has 10.83.0.2") // told after the priority was raised
	if got := niceOf(t, cmd.Process.Pid); !slices.Equal(got, []int{switchNice}) {
		t.Errorf("nice values of the switch's threads: %v, want %d in all", got, switchNice)
	}
	children := nstest.Exec(t, w.host, "pgrep", "-P", strconv.Itoa(cmd.Process.Pid))
	if len(strings.Fields(children)) == 0 {
		t.Fatal("usernet run has no children")
	}
	for _, child := range strings.Fields(children) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			t.Fatal(err)
		}
		if got := niceOf(t, pid); !slices.Equal(got, []int{0}) {
			t.Errorf("nice values of the child %d: %v, want 0", pid, got)
		}
	}
}
