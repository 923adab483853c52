package daemon

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// TestNetnsDropPrivileges needs privileges to lose, and loses them in a
// program of its own, built as releases are: without cgo.
func TestNetnsDropPrivileges(t *testing.T) {
	nstest.Require(t)
	bin := buildWithoutCgo(t)
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

func buildWithoutCgo(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "dropprivs")
	build := exec.Command("go", "build", "-o", bin, "./testdata/dropprivs")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// TestNetnsDaemonWithoutPrivileges: descriptors from the caller are all that
// it needs to serve containers, published ports below 1024 included.
func TestNetnsDaemonWithoutPrivileges(t *testing.T) {
	nstest.Require(t)
	dir := t.TempDir()
	cmd := exec.Command(buildWithoutCgo(t))
	cmd.Env = append(os.Environ(), "SERVE="+dir)
	c := &child{Client: control.Dial(filepath.Join(dir, "s.sock")), cmd: cmd}
	c.begin(t)
	host := nstest.NewNS(t)
	var lf *os.File
	nstest.In(t, host, func() error {
		l, err := net.Listen("tcp", "127.0.0.1:80")
		if err != nil {
			return err
		}
		defer l.Close()
		lf, err = l.(*net.TCPListener).File()
		return err
	})
	defer lf.Close()
	req := request("web")
	req.Publications = []control.PublicationSpec{{Proto: "tcp", HostPort: 80, Port: 8080, FD: true}}
	web, other := attach(t, c.Client, req, lf), attach(t, c.Client, request("other"))
	go greet(nstest.Listen(t, web.ns, "tcp", ":8080"))
	for from, addr := range map[*netns.Handle]string{
		host:     "127.0.0.1:80",
		other.ns: net.JoinHostPort(web.reply.Addrs[1].Addr().String(), "8080"),
	} {
		conn, err := nstest.Dial(t, from, "tcp", addr)
		if err != nil {
			t.Fatalf("dial %s: %v", addr, err)
		}
		if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
			t.Errorf("%s said %q, %v", addr, got, err)
		}
		conn.Close()
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
	c := &child{cmd: cmd}
	c.begin(t)
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
