package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrStateInUse means that another daemon runs on the state directory.
var ErrStateInUse = errors.New("state directory is in use")

// lockStateDir makes this process the only daemon of the directory until the
// file is closed or the process dies.
func lockStateDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, rerr := os.ReadFile(path)
		err = fmt.Errorf("lock %s: %w", path, err)
		if errors.Is(err, unix.EWOULDBLOCK) && rerr == nil {
			err = fmt.Errorf("%s: %w by the daemon with pid %s; stop it, or choose another with --state-dir", dir, ErrStateInUse, strings.TrimSpace(string(holder)))
		}
		return nil, errors.Join(err, f.Close())
	}
	pid := strconv.Itoa(os.Getpid()) + "\n"
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("write pid: %w", err), f.Close())
	}
	if _, err := f.WriteAt([]byte(pid), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("write pid: %w", err), f.Close())
	}
	return f, nil
}

// notify tells the service manager a state, if there is one that listens
// (sd_notify(3)).
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if path[0] == '@' {
		path = "\x00" + path[1:] // systemd's way to write an abstract socket
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}

// listenFDsStart is where inherited descriptors begin (sd_listen_fds(3)).
const listenFDsStart = 3

// InheritedListener returns the control socket that a service manager opened
// for this process (LISTEN_PID, LISTEN_FDS), or nil. It clears the variables,
// so that no child takes the descriptors for its own.
func InheritedListener() (*net.UnixListener, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid != strconv.Itoa(os.Getpid()) || count == "" {
		return nil, nil
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, fmt.Errorf("socket activation: %w", err)
		}
	}
	if count != "1" {
		return nil, fmt.Errorf("socket activation: LISTEN_FDS is %q, want 1: the control socket alone", count)
	}
	f := os.NewFile(listenFDsStart, "LISTEN_FDS")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("socket activation: descriptor %d: %w", listenFDsStart, err)
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("socket activation: descriptor %d listens on %v, want a unix stream socket", listenFDsStart, l.Addr()), l.Close())
	}
	ul.SetUnlinkOnClose(false) // the service manager's to keep
	return ul, nil
}

// Privileges says what DropPrivileges leaves.
type Privileges struct {
	// KeepNetRaw keeps CAP_NET_RAW, for pings where
	// net.ipv4.ping_group_range forbids ping sockets.
	KeepNetRaw bool
}

// DropPrivileges gives up, for good and in all threads, every capability that
// the daemon does not need, the bounding and ambient sets included; no execve
// can bring one back. It keeps other processes of the user from tracing this
// one, and lets it open as many descriptors as its hard limit allows. Sockets
// for low ports then come from the plugin or the command line.
//
// In programs that are linked with cgo it fails (errors.ErrUnsupported) and
// changes no capability: those of threads that Go does not know cannot be
// dropped.
func DropPrivileges(p Privileges) error {
	if err := raiseFileLimit(); err != nil {
		return err
	}
	keep := map[uintptr]bool{unix.CAP_NET_RAW: p.KeepNetRaw}
	caps, err := permitted()
	if err != nil {
		return err
	}
	if caps.has(unix.CAP_SETPCAP) {
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if !keep[c] {
				if err := allThreads("drop capability from the bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); err != nil && !errors.Is(err, unix.EINVAL) {
					return err // EINVAL: a capability that this kernel does not know
				}
			}
		}
	}
	if err := allThreads("clear ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return err
	}
	for c := range uintptr(64) {
		if !keep[c] {
			caps[c/32] &^= 1 << (c % 32)
		}
	}
	if err := caps.set(); err != nil {
		return err
	}
	if err := allThreads("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_DUMPABLE", err)
	}
	return nil
}

// NeedsNetRaw reports whether pings need CAP_NET_RAW here: whether
// net.ipv4.ping_group_range leaves out the daemon's group.
func NeedsNetRaw() bool {
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ping_group_range")
	if err != nil {
		return true
	}
	var low, high int
	if _, err := fmt.Sscan(string(raw), &low, &high); err != nil {
		return true
	}
	gid := os.Getegid()
	return gid < low || gid > high
}

// capSet is the permitted set, in the two words of capset(2), version 3.
type capSet [2]uint32

func (c *capSet) has(n uint) bool { return c[n/32]&(1<<(n%32)) != 0 }

func permitted() (*capSet, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return nil, os.NewSyscallError("capget", err)
	}
	return &capSet{data[0].Permitted, data[1].Permitted}, nil
}

func raiseFileLimit() error {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	r.Cur = r.Max
	return os.NewSyscallError("setrlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &r))
}

// allThreads makes a system call in every thread.
func allThreads(what string, trap, a1, a2, a3 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0)
	switch {
	case errno == 0:
		return nil
	case errno == syscall.ENOTSUP:
		return fmt.Errorf("%s: this program is linked with cgo; build it with CGO_ENABLED=0: %w", what, errors.ErrUnsupported)
	}
	return fmt.Errorf("%s: %w", what, errno)
}
