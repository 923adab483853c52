package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// world is a machine and an outside world, each a namespace of the test's own.
// The outside has a web server and a resolver, over both families, and knows the
// name outside.example.
type world struct {
	t             *testing.T
	host, outside *netns.Handle
	dir           string // for files
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, host: nstest.NewNS(t), outside: nstest.NewNS(t), dir: t.TempDir()}
	if err := installProgram(w.dir); err != nil {
		t.Fatal(err)
	}
	nstest.Veth(t, w.host, w.outside,
		machine4.String()+"/24", outside4.String()+"/24", machine6.String()+"/64", outside6.String()+"/64")
	nstest.In(t, w.host, func() error { return netns.SetPingGroupRange(0, 1<<31-1) })
	go serveHTTP(nstest.Listen(t, w.outside, "tcp", ":80"), "the outside world")
	go answerDNS(nstest.ListenPacket(t, w.outside, "udp", outside4.String()+":53"))
	return w
}

// command is usernet on the world's machine, with its resolver.
func (w *world) command(args ...string) *exec.Cmd {
	if args[0] == "run" && !strings.HasPrefix(strings.Join(args, " "), "run --network") {
		args = append([]string{"run", "--dns", outside4.String()}, args[1:]...)
	}
	cmd := exec.Command(filepath.Join(w.dir, "usernet"), args...)
	cmd.Env = append(os.Environ(), "USERNET_SOCKET="+filepath.Join(w.dir, "daemon", "usernet.sock"))
	return cmd
}

// start starts cmd on the world's machine; it is killed at the test's end.
func (w *world) start(cmd *exec.Cmd) { nstest.Start(w.t, w.host, cmd) }

// result is what a finished command left.
type result struct {
	stdout, stderr string
	status         int
}

func (w *world) do(cmd *exec.Cmd) result {
	w.t.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	cmd.Stderr = &stderr
	nstest.In(w.t, w.host, cmd.Start)
	err := cmd.Wait()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		w.t.Fatalf("%v: %v", cmd, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run runs usernet and fails the test unless it succeeds.
func (w *world) run(args ...string) string {
	w.t.Helper()
	r := w.do(w.command(args...))
	if r.status != 0 {
		w.t.Fatalf("usernet %s: status %d\n%s%s", strings.Join(args, " "), r.status, r.stdout, r.stderr)
	}
	return r.stdout
}

// asNobody makes cmd run as an ordinary user who may open /dev/net/tun. The
// device gets its mode in a mount namespace of the command's own.
func asNobody(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 || !isIdentity(t, "/proc/self/uid_map") {
		skip(t, "this test changes to another user, and this user namespace has a single one: run it as root")
	}
	const script = `mount -t tmpfs -o mode=755 tmpfs /dev/net && mknod /dev/net/tun c 10 200 && chmod 666 /dev/net/tun &&
cd / && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"`
	argv := append([]string{"--mount", "sh", "-c", script, "sh"}, cmd.Args...)
	nobody := exec.Command("unshare", argv...)
	nobody.Env, nobody.Stdin = cmd.Env, cmd.Stdin
	return nobody
}

func isIdentity(t *testing.T, path string) bool {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}

// openToNobody lets other users reach the test's files: the program above all.
func (w *world) openToNobody() {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	// A copy, for the test binary's own directory may be closed to them.
	data, err := os.ReadFile(self)
	if err != nil {
		w.t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "usernet-test-")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "usernet"), data, 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.dir = dir
}

// skip skips a test, and fails it in CI, where nothing may be left untested.
func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason + "; CI=true forbids to skip it")
	}
	t.Skip(reason) //nolint:forbidigo // in CI it fails, above
}

// need fails or skips a test whose clients are not installed.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		skip(t, p+" is not installed: apt-get install curl busybox-static dnsutils iputils-ping traceroute socat tshark")
	}
}

// linesOf delivers a stream's lines as they come.
func linesOf(r io.Reader) <-chan string {
	lines := make(chan string, 256)
	go func() {
		defer close(lines)
		var rest []byte
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			rest = append(rest, buf[:n]...)
			for {
				line, after, ok := bytes.Cut(rest, []byte("\n"))
				if !ok {
					break
				}
				lines <- strings.TrimRight(string(line), "\r")
				rest = after
			}
			if err != nil {
				return
			}
		}
	}()
	return lines
}

// await waits for a line that contains want.
func await(t *testing.T, lines <-chan string, want string) string {
	t.Helper()
	line, _ := awaitAfter(t, lines, want)
	return line
}

// awaitAfter is await that returns the lines before as well.
func awaitAfter(t *testing.T, lines <-chan string, want string) (line string, seen []string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				t.Fatalf("the output ended without %q; it was %q", want, seen)
			}
			if strings.Contains(line, want) {
				return line, seen
			}
			seen = append(seen, line)
		case <-deadline:
			t.Fatalf("no %q in time; there was %q", want, seen)
		}
	}
}

// askOverUDP sends datagrams from the outside until one is answered, as a client
// of an unreliable network does, and returns the answer.
func (w *world) askOverUDP(address string) string {
	w.t.Helper()
	c, err := nstest.Dial(w.t, w.outside, "udp", address)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 512)
	for range 10 {
		if _, err = c.Write([]byte("hi\n")); err != nil {
			continue // what the last one met, such as a refusal
		}
		if err = c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			break
		}
		var n int
		if n, err = c.Read(buf); err == nil {
			return string(buf[:n])
		}
	}
	w.t.Fatal(err)
	return ""
}

// alive reports whether a process runs; a zombie does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, behind, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(behind, "Z")
}

func mustPID(t *testing.T, line string) int {
	t.Helper()
	fields := strings.Fields(line)
	pid, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		t.Fatalf("no pid in %q", line)
	}
	return pid
}
