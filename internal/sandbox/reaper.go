package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reapArg is the argument of the reaper: a process beside the parent that waits
// for the parent's death. The kernel kills the command then; the reaper kills
// what the command has started.
const reapArg = "reap"

// namespaces identify a sandbox: by two inodes, because the kernel gives the
// inode of a namespace that is gone to another one.
type namespaces struct {
	Net   string `json:"net"` // as the links in /proc/PID/ns have it: net:[N]
	Mount string `json:"mount"`
}

// ownNamespaces are those of the calling thread.
func ownNamespaces() (n namespaces, err error) {
	if n.Net, err = os.Readlink("/proc/thread-self/ns/net"); err != nil {
		return n, err
	}
	n.Mount, err = os.Readlink("/proc/thread-self/ns/mnt")
	return n, err
}

// reaper is the parent's handle on it.
type reaper struct {
	cmd  *exec.Cmd
	life *os.File // the parent's end of a pipe, closed by the parent's death
}

// startReaper starts the reaper of a sandbox.
func startReaper(n namespaces) (*reaper, error) {
	theirs, mine, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{childArg0, reapArg, n.Net, n.Mount}
	cmd.ExtraFiles = []*os.File{theirs}
	// It does nothing for nearly all of its life: a small heap, one thread.
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Dir = "/"
	// In a session of its own, ^C at the terminal does not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		mine.Close()
		return nil, err
	}
	return &reaper{cmd: cmd, life: mine}, nil
}

// dismiss ends the reaper without its having done anything.
func (r *reaper) dismiss() {
	r.cmd.Process.Kill()
	r.cmd.Wait() // it says that it was killed
	r.life.Close()
}

// reap is the reaper's whole life.
func reap(n namespaces) {
	var b [1]byte
	for {
		k, err := unix.Read(3, b[:]) // nothing is ever written
		if err == unix.EINTR {
			continue
		}
		if k == 0 || err != nil {
			break
		}
	}
	// Processes that are killed may have started others in the meantime.
	for range 100 {
		if killAll(n) == 0 {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
}

// killAll kills the processes of a sandbox and returns how many there were.
func killAll(n namespaces) int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	killed := 0
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && killIfIn(pid, n) {
			killed++
		}
	}
	return killed
}

// killIfIn kills a process if it is in the namespaces. The descriptor is opened
// before the process is looked at, so that another one that gets the pid is not
// hit.
func killIfIn(pid int, n namespaces) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	for name, want := range map[string]string{"net": n.Net, "mnt": n.Mount} {
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name)); err != nil || got != want {
			return false
		}
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}
