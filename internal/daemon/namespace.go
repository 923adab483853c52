package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
)

// fate is what can be told of a namespace from outside.
type fate int

const (
	fateUnknown fate = iota
	fateAlive
	fateDead
)

// fateOf looks whether the path that a namespace was attached by still leads to
// it. A path that is gone, or that leads to another namespace, means that the
// runtime has ended the container. Everything else, such as a path that this
// process may not follow or whose mount it does not see, tells nothing.
//
// An inode may be another namespace's after its own has died, so that alive can
// be wrong; dead is wrong only where the caller saw a file system that this
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
	var f unix.Statfs_t
	if err := unix.Statfs(path, &f); err != nil || f.Type != unix.NSFS_MAGIC {
		return fateUnknown // a mount point that nothing is mounted on, to us
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Ino != inode {
		return fateDead
	}
	return fateAlive
}

// reapTime is how often the namespaces of lost links are looked at. Links that
// have their device need no look: the device tells.
const reapTime = time.Second

// reapLost removes lost links as their namespaces die. It ends with ctx or when
// no link is lost any more, since none becomes so while the daemon serves; serve
// waits for it.
func (d *Daemon) reapLost(ctx context.Context) {
	tick := time.NewTicker(reapTime)
	defer tick.Stop()
	for {
		lost := false
		for _, l := range d.linkList() {
			if l.sl != nil {
				continue
			}
			lost = true
			if fateOf(l.rec.NetnsPath, l.rec.Netns) == fateDead {
				d.reap(ctx, l)
			}
		}
		if !lost {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// reap removes one lost link unless it has been attached anew.
func (d *Daemon) reap(ctx context.Context, l *link) {
	unlock, err := d.keys.lock(ctx, l.key())
	if err != nil {
		return // the daemon ends; the next one looks again
	}
	defer unlock()
	if d.link(l.key()) != l {
		return
	}
	if err := l.remove(ctx, namespaceEnded); err != nil {
		d.log.Error("link not removed whole", "link", l.key().String(), "err", err)
	}
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
