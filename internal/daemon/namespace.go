package daemon

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
)

// fate is what can be told of a namespace from outside.
type fate int

const (
	fateUnknown fate = iota
	fateAlive
	fateUnmounted // a file is there that is no namespace: nothing is mounted on it, to us
	fateDead
)

// fateOf looks whether the path that a namespace was attached by still leads to
// it. A path that is gone, or that leads to another namespace, means that the
// runtime has ended the container. Everything else, such as a path that this
// process may not follow or whose mount it does not see, tells nothing.
//
// An inode may be another namespace's, or another file's, after its own has died,
// so that alive can be wrong; dead is wrong only where the caller saw a file system that this
// process does not.
func fateOf(path string, inode uint64) fate {
	if path == "" || inode == 0 {
		return fateUnknown
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ESRCH):
		return fateDead
	case err != nil:
		return fateUnknown
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Ino == inode {
		return fateAlive
	}
	var f unix.Statfs_t
	switch err := unix.Statfs(path, &f); {
	case err != nil:
		return fateUnknown
	case f.Type != unix.NSFS_MAGIC:
		return fateUnmounted
	}
	return fateDead
}

// ended is fateOf for a path at which this process has seen the namespace: who
// unmounts it has ended the container as well.
func ended(path string, inode uint64) bool {
	f := fateOf(path, inode)
	return f == fateDead || f == fateUnmounted
}

// toldByMounts reports whether the end of a path is a change of this process's
// mounts. Paths by way of a process end with that, untold.
func toldByMounts(path string) bool {
	if strings.HasPrefix(path, "/proc/") {
		return false
	}
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// checkPinned refuses a descriptor that keeps its namespace alive where the
// namespace's end, in the eyes of everybody else, would not be seen.
func checkPinned(req *control.AttachRequest) error {
	if !req.Pinned || fateOf(req.NetnsPath, req.Netns) == fateAlive && toldByMounts(req.NetnsPath) {
		return nil
	}
	return control.Errorf(control.CodeUnwatched, "netnsPath %q is no mount point of net:[%d] that the daemon sees: make the device outside of the namespace and move it in",
		req.NetnsPath, req.Netns)
}

// survives reports whether a record of an earlier daemon is to be kept, as that
// of a lost link. One whose lease is gone was being removed.
func (d *Daemon) survives(rec *linkRecord) bool {
	n := d.networks[rec.Network]
	if n == nil || rec.State != control.LinkAttached || rec.Ephemeral || rec.BootID != d.bootID {
		return false
	}
	if n.pool != nil {
		if _, held := n.pool.Lookup(linkOwner(rec.key())); !held {
			return false
		}
	}
	return fateOf(rec.NetnsPath, rec.Netns) != fateDead
}
