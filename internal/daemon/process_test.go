package daemon

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

// TestNetnsDropPrivileges needs privileges to lose, and loses them in a
// program of its own, built as releases are: without cgo.
func TestNetnsDropPrivileges(t *testing.T) {
	nstest.Require(t)
	bin := filepath.Join(t.TempDir(), "dropprivs")
	build := exec.Command("go", "build", "-o", bin, "./testdata/dropprivs")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	const none, netRaw = "0000000000000000", "0000000000002000" // CAP_NET_RAW is 13
	for _, tt := range []struct {
		args        []string
		left, rawOK string
	}{
		{nil, none, "raw true false"},
		{[]string{"keep"}, netRaw, "raw false true"},
	} {
		cmd := exec.Command(bin, tt.args...)
		cmd.Env = append(os.Environ(), "SOCKET="+filepath.Join(t.TempDir(), "s"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("dropprivs %v: %v\n%s", tt.args, err, out)
		}
		want := map[string]string{"CapInh:": none, "CapPrm:": tt.left, "CapEff:": tt.left, "CapBnd:": tt.left, "CapAmb:": none, "NoNewPrivs:": "1"}
		threads := 0
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			if w, ok := want[f[0]]; ok && f[1] != w {
				t.Errorf("dropprivs %v: %s %s in some thread, want %s", tt.args, f[0], f[1], w)
			}
			if f[0] == "CapPrm:" {
				threads++
			}
		}
		if threads < 5 {
			t.Errorf("dropprivs %v: looked at %d threads, want 5 at least:\n%s", tt.args, threads, out)
		}
		for _, want := range []string{"dumpable 0 <nil>", "listen <nil>", tt.rawOK, "chroot true"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("dropprivs %v: no %q in:\n%s", tt.args, want, out)
			}
		}
	}
}

func TestNeedsNetRaw(t *testing.T) {
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ping_group_range")
	if err != nil {
		t.Fatal(err)
	}
	if empty := strings.Join(strings.Fields(string(raw)), " ") == "1 0"; empty && !NeedsNetRaw() {
		t.Error("ping_group_range is empty, and pings are said to need nothing")
	}
}

func TestSocketActivation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "activated.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// A request that comes before the daemon waits in the backlog.
	version := make(chan error, 1)
	go func() { _, err := control.Dial(path).Version(t.Context()); version <- err }()
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = testWriter{t}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd}
	defer c.kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
	if err := <-version; err != nil {
		t.Errorf("request over the inherited socket: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "s.sock")); err == nil {
		t.Error("the daemon made a socket of its own as well")
	}
}

func TestSocketActivationOfAnotherProcessIsIgnored(t *testing.T) {
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "1")
	if l, err := InheritedListener(); l != nil || err != nil {
		t.Errorf("took %v, %v from variables for pid 1", l, err)
	}
}
