package plugin

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usernet/usernet/internal/control"
)

// TestStatusWithoutDaemon: 50 when there never was one, 51 when one was killed,
// which leaves its socket behind.
func TestStatusWithoutDaemon(t *testing.T) {
	if err := tunUsable(); err != nil {
		wantError(t, err, ErrNotAvailable, "/dev/net/tun", "modprobe tun")
		return // a daemon would not help
	}
	socket := filepath.Join(t.TempDir(), "usernet.sock")
	config := `{"cniVersion":"1.1.0","name":"n","autostart":false,"socket":"` + socket + `"}`
	status, stdout, _ := runWith(strings.NewReader(config), "CNI_COMMAND=STATUS")
	if status == 0 || !strings.Contains(stdout, `"code": 50`) || !strings.Contains(stdout, "usernet daemon --socket "+socket) {
		t.Errorf("no socket: status %d, %s", status, stdout)
	}
	killed, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	killed.SetUnlinkOnClose(false)
	killed.Close()
	status, stdout, _ = runWith(strings.NewReader(config), "CNI_COMMAND=STATUS")
	if status == 0 || !strings.Contains(stdout, `"code": 51`) || !strings.Contains(stdout, "cut off") {
		t.Errorf("socket left behind: status %d, %s", status, stdout)
	}
}

// TestForeignSocket: something that is not usernet serves the socket. No verb
// takes its word for anything.
func TestForeignSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "usernet.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := c.Read(make([]byte, 4096)); err == nil {
				fmt.Fprint(c, "500 unknown command\r\n")
			}
			c.Close()
		}
	}()
	config := `{"cniVersion":"1.1.0","name":"n","socket":"` + socket + `"}`
	status, stdout, _ := runWith(strings.NewReader(config), "CNI_COMMAND=DEL", "CNI_CONTAINERID=c", "CNI_IFNAME=eth0")
	if status == 0 || !strings.Contains(stdout, `"code": 103`) || !strings.Contains(stdout, socket) {
		t.Errorf("DEL: status %d, %s", status, stdout)
	}
	if stones, err := control.Tombstones(socket); len(stones) != 0 || err != nil {
		t.Errorf("tombstones %v, %v", stones, err)
	}
}

// TestDelLeavesTombstone: a DEL that no daemon heard of is left to the next.
func TestDelLeavesTombstone(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "usernet.sock")
	config := `{"cniVersion":"1.0.0","name":"n","socket":"` + socket + `"}`
	for range 2 { // twice is one
		status, stdout, stderr := runWith(strings.NewReader(config), "CNI_COMMAND=DEL", "CNI_CONTAINERID=c", "CNI_IFNAME=eth0")
		if status != 0 || stdout != "" || stderr != "" {
			t.Fatalf("status %d, %q, %q", status, stdout, stderr)
		}
	}
	stones, err := control.Tombstones(socket)
	want := control.LinkKey{Network: "n", Container: "c", IfName: "eth0"}
	if err != nil || len(stones) != 1 || stones[0].Link != want || stones[0].Deleted.IsZero() {
		t.Errorf("got %+v, %v", stones, err)
	}
}

// TestStartDaemonFailures: what is wrong with a daemon that does not come up is
// told, by its own words where there are any.
func TestStartDaemonFailures(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "broken")
	text := "#!/bin/sh\necho \"$@\"\necho no state directory >&2\nexit 1\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	rootless, stale := filepath.Join(dir, "netns"), filepath.Join(dir, "stale", "netns")
	for path, target := range map[string]string{rootless: "/proc/self/ns/net", stale: "/dev/null"} {
		if err := errors.Join(os.MkdirAll(path, 0o700), os.Symlink(target, filepath.Join(path, "rootless-netns-0123"))); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "run", "usernet.sock")
	config := `{"cniVersion":"1.1.0","name":"n","socket":"` + socket + `"}`
	for _, test := range []struct {
		env, want []string
	}{
		{[]string{BinaryEnv + "=" + script, "XDG_RUNTIME_DIR=" + dir}, []string{`"code": 11`, rootless + "/rootless-netns-0123", "start the daemon outside of it"}},
		{[]string{BinaryEnv + "=" + script, "XDG_RUNTIME_DIR=" + dir + "/stale"}, []string{`"code": 11`, "ended at once"}},
		{[]string{BinaryEnv + "=" + script}, []string{`"code": 11`, "ended at once", "no state directory", "daemon --socket " + socket + " --autostarted", "daemon.log"}},
		{[]string{BinaryEnv + "=" + dir + "/absent"}, []string{`"code": 11`, dir + "/absent"}},
		{[]string{"PATH=" + dir}, []string{`"code": 11`, "no executable", BinaryEnv, dir}},
	} {
		if installed() && strings.HasPrefix(test.env[0], "PATH=") {
			continue // it would be found, and serve
		}
		status, stdout, _ := runWith(strings.NewReader(config), append(test.env, "CNI_COMMAND=GC", "CNI_CONTAINERID=secret")...)
		if status == 0 {
			t.Errorf("%v: status 0", test.env)
		}
		for _, w := range test.want {
			if !strings.Contains(stdout, w) {
				t.Errorf("%v: %q is missing in %s", test.env, w, stdout)
			}
		}
	}
}

// installed reports whether usernet is installed on this machine.
func installed() bool {
	for _, dir := range []string{"/usr/local/bin", "/usr/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "usernet")); err == nil {
			return true
		}
	}
	return false
}

// TestDaemonEnv: a daemon outlives the invocation and must not know of it.
func TestDaemonEnv(t *testing.T) {
	got := daemonEnv([]string{"PATH=/bin", "CNI_COMMAND=ADD", "CNI_ARGS=x", "XDG_RUNTIME_DIR=/run/user/1"})
	if strings.Join(got, " ") != "PATH=/bin XDG_RUNTIME_DIR=/run/user/1" {
		t.Errorf("got %v", got)
	}
}
