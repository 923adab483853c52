package daemon

import (
	"context"
	"os"
	"time"
)

const (
	// reapTime is how often those namespaces are looked at whose end nothing
	// tells: of lost links, and at paths by way of a process.
	reapTime = time.Second
	// settleTime is what a change of the mounts waits for more of them: a container
	// that ends has several.
	settleTime = 100 * time.Millisecond
)

// watchPlace has reapEnded look, now that there is a namespace to look for.
func (d *Daemon) watchPlace() {
	select {
	case d.placed <- struct{}{}:
	default: // it has been told already
	}
}

// reapEnded removes links and leases as their namespaces end, where no device
// tells: of pinned links, of lost ones and of bare leases. It sleeps until mounts
// change, or for reapTime where that would not tell. It ends with ctx; serve
// waits for it.
func (d *Daemon) reapEnded(ctx context.Context) {
	changed, stop := d.watchMounts()
	defer stop()
	tick := time.NewTicker(reapTime)
	defer tick.Stop()
	for {
		untold := d.reapLinks(ctx)
		if d.reapLeases(ctx) {
			untold = true
		}
		var wake <-chan time.Time
		if untold || changed == nil {
			wake = tick.C
		}
		select {
		case <-wake:
		case <-d.placed:
		case <-changed:
			select {
			case <-time.After(settleTime):
			case <-ctx.Done():
			}
		case <-ctx.Done():
			return
		}
	}
}

// watchMounts returns a channel that tells of changes of this process's mounts,
// nil where the kernel does not tell them, and a function that ends the watch
// and its goroutine.
func (d *Daemon) watchMounts() (changed <-chan struct{}, stop func()) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		d.log.Warn("namespaces are looked at once a second, as changes of mounts are not told", "err", err)
		return nil, func() {}
	}
	told, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		_ = followMounts(mounts, func() { // ends as the file is closed
			select {
			case told <- struct{}{}:
			default: // nobody has looked since
			}
		})
	}()
	return told, func() { mounts.Close(); <-done }
}

// followMounts calls tell at once and whenever mounts have changed, until the
// file is closed. The kernel reports a change as an error on the file
// (proc_pid_mountinfo(5)), for which Go's poller wakes who waits to write;
// writable it never is. A wait that ended would miss what happens before the next.
func followMounts(mounts *os.File, tell func()) error {
	conn, err := mounts.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Write(func(uintptr) bool {
		tell()
		return false
	})
}

// reapLinks removes the lost and the pinned links whose namespaces have ended,
// and reports whether there are any whose end nothing would tell.
func (d *Daemon) reapLinks(ctx context.Context) (untold bool) {
	for _, l := range d.links() {
		switch {
		case l.pinned && ended(l.rec.NetnsPath, l.rec.Netns),
			l.sl == nil && fateOf(l.rec.NetnsPath, l.rec.Netns) == fateDead:
			d.reap(ctx, l)
		case l.sl == nil:
			untold = true
		}
	}
	return untold
}

// reap removes one link unless it has been attached anew.
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

// reapLeases ends the bare leases whose namespaces have ended, and reports
// whether there are any whose end nothing would tell.
func (d *Daemon) reapLeases(ctx context.Context) (untold bool) {
	for _, b := range d.bareLeases("") {
		switch path := b.note.NetnsPath; {
		case path == "":
		case b.dead():
			if _, err := d.releaseIf(ctx, b, namespaceEnded); err != nil && ctx.Err() == nil {
				d.log.Error("lease stays", "lease", b.key.String(), "err", err)
				untold = true
			}
		case !toldByMounts(path):
			untold = true
		}
	}
	return untold
}
