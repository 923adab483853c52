package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Handle is an open network namespace. It keeps the namespace alive until
// Close.
type Handle struct {
	file  *os.File
	dev   uint64
	inode uint64
}

// Open opens the namespace at path, such as /run/netns/NAME or
// /proc/PID/ns/net. The error matches fs.ErrNotExist when nothing is there and
// [ErrNotNetns] when something else is.
func Open(path string) (*Handle, error) {
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	return newHandle(int(fd), path)
}

// ErrNotNetns says that a path or descriptor is no network namespace.
var ErrNotNetns = errors.New("not a network namespace")

// FromFile makes a handle of a descriptor of a namespace. It does not own f.
func FromFile(f *os.File) (*Handle, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("network namespace of %s: %w", f.Name(), err)
	}
	dup, dupErr := -1, error(nil)
	err = conn.Control(func(fd uintptr) { dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(err, dupErr); err != nil {
		return nil, fmt.Errorf("network namespace of %s: duplicate descriptor: %w", f.Name(), err)
	}
	return newHandle(dup, f.Name())
}

// Current opens the calling thread's namespace.
func Current() (*Handle, error) {
	return Open("/proc/thread-self/ns/net")
}

// New makes a new namespace, owned by the caller's user namespace, in which
// nothing runs and everything is down. The caller stays where it is.
func New() (*Handle, error) {
	var h *Handle
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		var err error
		h, err = Current()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return h, nil
}

// newHandle takes fd over, on errors too.
func newHandle(fd int, name string) (*Handle, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("network namespace %s: %w", name, os.NewSyscallError("fstat", err))
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", name, ErrNotNetns)
	}
	return &Handle{file: os.NewFile(uintptr(fd), name), dev: st.Dev, inode: st.Ino}, nil
}

// Close lets go of the namespace. Calls after the first return os.ErrClosed.
func (h *Handle) Close() error { return h.file.Close() }

// File returns the namespace's descriptor. The handle owns it: do not close it.
func (h *Handle) File() *os.File { return h.file }

// Inode returns the namespace's inode number, the one in the link text of
// /proc/PID/ns/net.
func (h *Handle) Inode() uint64 { return h.inode }

// Equal reports whether both handles are of the same namespace.
func (h *Handle) Equal(o *Handle) bool { return h.dev == o.dev && h.inode == o.inode }

// String returns the path that the handle was opened by, and the inode.
func (h *Handle) String() string { return fmt.Sprintf("%s (net:[%d])", h.file.Name(), h.inode) }

// Do runs fn in the namespace, on a thread that is used for nothing else
// before or after, and returns fn's error. Goroutines that fn starts are not in
// the namespace; descriptors that it opens stay there.
func (h *Handle) Do(fn func() error) error {
	return onThread(func() error {
		if err := h.enter(); err != nil {
			return err
		}
		return fn()
	})
}

// enter moves the calling thread into the namespace.
func (h *Handle) enter() error {
	err := h.control(func(fd int) error { return netns.Set(netns.NsHandle(fd)) })
	if err != nil {
		return fmt.Errorf("enter network namespace %v: %w", h, err)
	}
	return nil
}

// control runs fn with the namespace's descriptor, which stays open for as long
// as fn runs.
func (h *Handle) control(fn func(fd int) error) error {
	conn, err := h.file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := conn.Control(func(fd uintptr) { result = fn(int(fd)) }); err != nil {
		// The package os does not translate this one; closing is its only
		// reason.
		return os.ErrClosed
	}
	return result
}

// onThread runs fn on an OS thread of its own and returns its error.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go disposable(fn, result)
	return <-result
}

// disposable runs fn on a thread that ends with it: the goroutine ends with the
// thread locked, for which the runtime ends the thread, so that nothing inherits
// its namespace. Not so the process's first thread, which the runtime only parks
// for ever; the namespace would live as long as the process, and be what
// /proc/PID/ns/net shows. That thread is held here while another does the work.
func disposable(fn func() error, result chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		result <- onThread(fn)
		return
	}
	done := false
	defer func() {
		if !done { // fn called runtime.Goexit, as testing's FailNow does
			result <- errors.New("function ended its goroutine inside the network namespace")
		}
	}()
	err := fn()
	done = true
	result <- err
}
