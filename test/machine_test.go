//go:build runtimes

package test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/nstest"
)

// machine is a machine for a runtime: mounts and processes of their own on the
// host namespace of a bed, where the runtime and the plugins have their files in
// the places where users have them. All of it ends with the test, whatever
// happens.
type machine struct {
	*bed
	init   int    // the machine's first process; all others end with it
	cgroup string // for the containers, in every hierarchy
}

// machineScript makes the machine's mounts, says so, and waits for the test's
// end. It is process 1, so its shell collects what others leave behind. The
// lists of directories and of commands are the runtime's; usernet's programs are
// in /opt/bin.
const machineScript = `set -e
exec 3<&0
mount --make-rprivate /
mount --make-rshared / # among the machine's own namespaces, as podman expects it
mount -t proc proc /proc
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/lock
for dir in /var/lib/cni /var/lib/usernet /etc/cni /opt %s; do
	mkdir -p $dir
	mount -t tmpfs -o mode=0755 tmpfs $dir
done
mkdir -p /etc/cni/net.d /opt/bin
cp $BIN/usernet $BIN/usernet-cni /opt/bin
%s
echo ready
cat <&3 >/dev/null &
wait
`

// startMachine starts a machine. own are the runtime's own directories; script is
// shell code for it.
func (b *bed) startMachine(own []string, script string) *machine {
	b.t.Helper()
	need(b.t, "nsenter", "busybox", "ip")
	m := &machine{bed: b, cgroup: fmt.Sprintf("/usernet-test-%d", os.Getpid())}
	t := b.t // a subtest's later
	t.Cleanup(func() { removeCgroups(t, m.cgroup) })
	cmd := exec.Command("sh", "-c", fmt.Sprintf(machineScript, strings.Join(own, " "), script))
	cmd.Env = append(os.Environ(), "BIN="+os.Getenv(binVar), "PATH=/opt/bin:"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	// The machine ends with its standard input, were this process killed.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	nstest.Start(t, b.host, cmd)
	t.Cleanup(func() { stdin.Close() })
	ready := make([]byte, len("ready\n"))
	if n, err := stdout.Read(ready); err != nil || string(ready[:n]) != "ready\n" {
		t.Fatalf("start the machine: %v; %s", err, errs.String())
	}
	m.init = cmd.Process.Pid
	return m
}

// path leads to a file of the machine from outside of it.
func (m *machine) path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(m.init), "root", name)
}

// write makes a file of the machine.
func (m *machine) write(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// removeCgroups removes what runtimes leave: empty parents, and after a test that
// failed those of containers, once their processes are gone.
func removeCgroups(t *testing.T, cgroup string) {
	t.Helper()
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + cgroup) // errors only on a bad pattern
	var dirs []string
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	slices.Reverse(dirs) // children first
	nstest.WaitFor(t, 10*time.Second, func() bool {
		dirs = slices.DeleteFunc(dirs, func(dir string) bool { return unix.Rmdir(dir) == nil })
		return len(dirs) == 0
	})
}
