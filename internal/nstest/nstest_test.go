package nstest_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m, func() error { return goleak.Find() }) }

func TestNetnsVethJoinsTwoNamespaces(t *testing.T) {
	a, router, b := nstest.NewNS(t), nstest.NewNS(t), nstest.NewNS(t)
	nstest.Veth(t, a, router, "10.77.0.2/24", "10.77.0.1/24", "fd77::2/64", "fd77::1/64")
	nstest.Veth(t, router, b, "10.78.0.1/24", "10.78.0.2/24", "fd78::1/64", "fd78::2/64")
	nstest.Route(t, a, "0.0.0.0/0", "10.77.0.1")
	nstest.Route(t, a, "::/0", "fd77::1")
	nstest.Route(t, b, "10.77.0.0/24", "10.78.0.1")
	nstest.Route(t, b, "fd77::/64", "fd78::1")
	nstest.In(t, router, func() error {
		if err := netns.SetSysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
		return netns.SetSysctl("ipv6/conf/all/forwarding", "1")
	})
	for network, host := range map[string]string{"4": "10.78.0.2", "6": "fd78::2"} {
		l := nstest.Listen(t, b, "tcp"+network, net.JoinHostPort(host, "0"))
		go func() {
			if c, err := l.Accept(); err == nil {
				io.WriteString(c, "hello")
				c.Close()
			}
		}()
		c, err := nstest.Dial(t, a, "tcp"+network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		c.Close()
		if err != nil || string(got) != "hello" {
			t.Errorf("read %q, %v over IPv%s", got, err, network)
		}
		p := nstest.ListenPacket(t, b, "udp"+network, net.JoinHostPort(host, "0"))
		u, err := nstest.Dial(t, a, "udp"+network, p.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Write([]byte("datagram")); err != nil {
			t.Fatal(err)
		}
		u.Close()
		buf := make([]byte, 100)
		p.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, _, err := p.ReadFrom(buf); err != nil || string(buf[:n]) != "datagram" {
			t.Errorf("read %q, %v over IPv%s", buf[:n], err, network)
		}
	}
}

// TestLoopbackIsUp is what plain tests beside TestNetns tests expect, in the
// namespace of their own too.
func TestLoopbackIsUp(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestNetnsExecRunsInside(t *testing.T) {
	ns := nstest.NewNS(t)
	got := strings.TrimSpace(nstest.Exec(t, ns, "readlink", "/proc/self/ns/net"))
	if want := fmt.Sprintf("net:[%d]", ns.Inode()); got != want {
		t.Errorf("a command ran in %s, want %s", got, want)
	}
	out, err := nstest.TryExec(t, ns, "sh", "-c", "echo out; echo err >&2; exit 3")
	if err == nil || out != "out\nerr\n" {
		t.Errorf("TryExec = %q, %v, want both outputs and exit status 3", out, err)
	}
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	nstest.Start(t, ns, cmd)
	h, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if !h.Equal(ns) {
		t.Errorf("Start ran a command in %v, want %v", h, ns)
	}
}

func TestNetnsPathIsAMountThatGoesAway(t *testing.T) {
	var path string
	t.Run("inner", func(t *testing.T) {
		ns := nstest.NewNS(t)
		path = nstest.Path(t, ns)
		h, err := netns.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
	})
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), path) {
		t.Errorf("%s is still mounted after its test (%v)", path, err)
	}
}

// TestNetnsAnotherUserGetsTheSameTests runs this test binary as an ordinary
// user, with and without a TUN device that it may open.
func TestNetnsAnotherUserGetsTheSameTests(t *testing.T) {
	nstest.Require(t)
	if os.Getenv("USERNET_NSTEST_CHILD") != "" {
		return // this is what the test would start
	}
	const device = "mount -t tmpfs tmpfs /dev/net && mknod -m 666 /dev/net/tun c 10 200 && "
	const noDevice = "mount -t tmpfs tmpfs /dev/net && "
	for name, test := range map[string]struct {
		prepare, ci string
		passes      bool
		says        []string
	}{
		"device": {device, "true", true, []string{"--- PASS: TestNetnsVethJoinsTwoNamespaces", "--- PASS: TestNetnsExecRunsInside", "--- PASS: TestLoopbackIsUp"}},
		"no device": {noDevice, "", true, []string{
			"--- SKIP: TestNetnsExecRunsInside",
			"this test needs network namespaces and TUN devices: open /dev/net/tun: no such file or directory"}},
		"no device in CI": {noDevice, "true", false, []string{"--- FAIL: TestNetnsExecRunsInside", "CI=true forbids to skip it"}},
	} {
		t.Run(name, func(t *testing.T) {
			script := test.prepare + `exec setpriv --reuid 65534 --regid 65534 --clear-groups "$0" -test.v -test.run 'VethJoins|ExecRuns|Loopback'`
			cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, copyOfSelf(t))
			cmd.Dir = "/"
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "CI=" + test.ci}
			out, err := cmd.CombinedOutput()
			if (err == nil) != test.passes {
				t.Errorf("tests as another user: %v, want success %v", err, test.passes)
			}
			for _, want := range test.says {
				if !strings.Contains(string(out), want) {
					t.Errorf("output lacks %q", want)
				}
			}
			if t.Failed() {
				t.Logf("%s", out)
			}
		})
	}
}

// copyOfSelf copies this program to where every user may execute it.
func copyOfSelf(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "nstest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "nstest.test")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWaitForAsksAgain(t *testing.T) {
	calls := 0
	nstest.WaitFor(t, 10*time.Second, func() bool { calls++; return calls == 3 })
	if calls != 3 {
		t.Errorf("condition asked %d times, want 3", calls)
	}
}
