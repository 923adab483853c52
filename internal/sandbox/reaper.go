package sandbox

import (
	"encoding/json"
	"io"
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
	Net   uint64 `json:"net"`
	Mount uint64 `json:"mount"`
}

// ownNamespaces are those of the calling thread.
func ownNamespaces() (namespaces, error) { return namespacesOf("thread-self") }

// namespacesOf are those of a process, by its name in /proc.
func namespacesOf(process string) (n namespaces, err error) {
	var st unix.Stat_t
	for kind, inode := range map[string]*uint64{"net": &n.Net, "mnt": &n.Mount} {
		path := "/proc/" + process + "/ns/" + kind
		if err := unix.Stat(path, &st); err != nil {
			return n, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		*inode = st.Ino
	}
	return n, nil
}

// reaper is the parent's handle on it.
type reaper struct {
	cmd  *exec.Cmd
	life *os.File // the parent's end of a pipe, closed by the parent's death
}

// startReaper starts a reaper, which does nothing before guard.
func startReaper() (*reaper, error) {
	theirs, mine, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{childArg0, reapArg}
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

// guard tells the reaper its sandbox.
func (r *reaper) guard(n namespaces) error { return json.NewEncoder(r.life).Encode(n) }

// dismiss ends the reaper without its having done anything.
func (r *reaper) dismiss() {
	r.cmd.Process.Kill()
	r.cmd.Wait() // it says that it was killed
	r.life.Close()
}

// reap is the reaper's whole life.
func reap() {
	life, n := os.NewFile(3, "life"), namespaces{}
	if json.NewDecoder(life).Decode(&n) != nil {
		return // the parent died before the sandbox was one
	}
	_, _ = io.Copy(io.Discard, life) // nothing more is ever written
	// Processes that are killed may have started others in the meantime.
	for range 100 {
		if n.each(func(pidfd int) { _ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) }) == 0 {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
}

// inhabited reports whether a process is left in the namespaces.
func (n namespaces) inhabited() bool { return n.each(func(int) {}) > 0 }

// each calls fn for the processes in the namespaces and returns how many there
// are. A descriptor is opened before its process is looked at, so that another
// one that gets the pid is not taken for it.
func (n namespaces) each(fn func(pidfd int)) (count int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if got, err := namespacesOf(e.Name()); err == nil && got == n {
			fn(fd)
			count++
		}
		unix.Close(fd)
	}
	return count
}
