package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrSocketInUse means that another process serves the socket already.
var ErrSocketInUse = errors.New("socket is in use")

// Listener is the daemon's socket. Closing it, or the UnixListener in it,
// removes the socket file; Close gives up the claim on the path as well.
type Listener struct {
	*net.UnixListener
	Path string
	lock *os.File
}

// Close stops listening, removes the socket file and lets another daemon have
// the path.
func (l *Listener) Close() error {
	err := l.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	if l.lock != nil {
		err = errors.Join(err, l.lock.Close())
	}
	return err
}

// Listen makes the socket at path with mode 0600, in a directory that it makes
// with mode 0700 when it is missing. A directory that exists must belong to
// this user or root and be closed to writers other than the owner, or be sticky
// like /tmp. A socket file that a dead daemon left is replaced; one that is
// served, or a file of another kind, is an error ([ErrSocketInUse] for the
// former).
//
// PATH.lock is held under flock(2) while the listener lives: between two
// daemons that start at once, the file system alone cannot tell a stale socket
// from one that is about to be served.
func Listen(path string) (*Listener, error) {
	if len(path) > maxSocketPath {
		return nil, Errorf(CodeInvalid, "socket path %q has %d bytes, the kernel's limit is %d; choose a shorter one", path, len(path), maxSocketPath)
	}
	if strings.HasPrefix(path, "@") || path == "" {
		return nil, Errorf(CodeInvalid, "socket path %q: want a path in the file system (an abstract socket has no owner)", path)
	}
	if err := socketDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	lock, err := lockSocket(path)
	if err != nil {
		return nil, err
	}
	ul, err := bindSocket(path)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &Listener{UnixListener: ul, Path: path, lock: lock}, nil
}

func socketDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make directory of the socket: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory of the socket: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("stat directory of the socket %s: %w", dir, err)
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return Errorf(CodeInvalid, "directory %s of the socket belongs to uid %d, this is uid %d; choose another with --socket", dir, st.Uid, os.Geteuid())
	}
	if st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
		return Errorf(CodeInvalid, "directory %s of the socket has mode %04o, others could replace the socket; chmod it to 0700", dir, st.Mode&0o7777)
	}
	return nil
}

func lockSocket(path string) (*os.File, error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock socket: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("listen on %s: %w%s", path, ErrSocketInUse, servedBy(path))
	} else if err != nil {
		err = fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// bindSocket binds path, which the caller has locked.
func bindSocket(path string) (*net.UnixListener, error) {
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	case st.Mode()&fs.ModeSocket == 0:
		return nil, Errorf(CodeInvalid, "listen on %s: a file that is no socket is there; remove it or choose another path with --socket", path)
	default:
		// Somebody who does not know of the lock may serve it.
		if by := servedBy(path); by != "" {
			return nil, fmt.Errorf("listen on %s: %w%s", path, ErrSocketInUse, by)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale socket: %w", err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// Until here only the umask protects it; the peer's uid is checked anyway.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect socket: %w", err), l.Close())
	}
	return l, nil
}

// servedBy returns " by pid N" when a process serves the socket, else "".
func servedBy(path string) string {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	cred, err := PeerCred(c.(*net.UnixConn))
	if err != nil {
		return " by another process"
	}
	return fmt.Sprintf(" by pid %d", cred.Pid)
}
