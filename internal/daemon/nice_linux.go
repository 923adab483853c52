package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// OrdinaryPriority reports whether this process has the priority that processes have
// unless somebody chose another.
func OrdinaryPriority() (bool, error) {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return false, os.NewSyscallError("sched_getattr", err)
	}
	return attr.Policy == unix.SCHED_NORMAL && attr.Nice == 0, nil
}

// SetNice gives all threads of this process, those to come included, a nice value
// of -20 to 19 (sched(7)). Children inherit it. A value below the present one needs
// CAP_SYS_NICE or a RLIMIT_NICE that allows it, else the error is fs.ErrPermission
// and nothing has changed.
//
// Below 0 it also makes them SCHED_BATCH: they have more of the CPUs, and yet let
// whoever runs run on when they wake. Without that a switch that serves a flood of
// datagrams is back for each few of them, and the flood's receiver has no time left.
func SetNice(nice int) error {
	// A /proc of another PID namespace would tell other numbers.
	if self, err := os.Readlink("/proc/self"); err != nil || self != strconv.Itoa(os.Getpid()) {
		return errors.Join(fmt.Errorf("threads of this process: /proc does not tell them"), err)
	}
	// A thread that a thread not yet seen to has started meanwhile has the old value.
	for changed := true; changed; {
		var err error
		if changed, err = niceThreads(nice); err != nil {
			return err
		}
	}
	return nil
}

// niceThreads gives a nice value to the threads that there are, and reports whether
// one of them had another.
func niceThreads(nice int) (changed bool, err error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return false, fmt.Errorf("threads of this process: %w", err)
	}
	want := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: int32(nice)}
	if nice < 0 {
		want.Policy = unix.SCHED_BATCH
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			return false, fmt.Errorf("threads of this process: %w", err)
		}
		have, err := unix.SchedGetAttr(tid, 0)
		if err == nil && have.Policy == want.Policy && have.Nice == want.Nice {
			continue
		}
		if err == nil {
			err = unix.SchedSetAttr(tid, &want, 0)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // that one has ended
			return false, os.NewSyscallError("sched_setattr", err)
		}
		changed = true
	}
	return changed, nil
}

// SetSessionNice gives the session that this process leads the nice value with
// which kernels that schedule by sessions weigh it against others; values of
// processes weigh only within it (sched(7), The autogroup feature). Where this
// process leads none, or the kernel knows of no such value, it does nothing.
func SetSessionNice(nice int) error {
	sid, err := unix.Getsid(0)
	if err != nil || sid != os.Getpid() {
		return err
	}
	f, err := os.OpenFile("/proc/self/autogroup", os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("nice value of the session: %w", err)
	}
	_, err = f.WriteString(strconv.Itoa(nice))
	return errors.Join(err, f.Close())
}
