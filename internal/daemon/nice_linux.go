package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Nice returns the nice value of this process (setpriority(2)).
func Nice() (int, error) {
	// The system call has it as 20-nice, for its results are not negative.
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return 0, os.NewSyscallError("getpriority", err)
	}
	return 20 - raw, nil
}

// SetNice gives all threads of this process, those to come included, a nice value
// of -20 to 19. Children inherit it. A value below the present one needs
// CAP_SYS_NICE or a RLIMIT_NICE that allows it, else the error is fs.ErrPermission
// and nothing has changed.
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
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			return false, fmt.Errorf("threads of this process: %w", err)
		}
		raw, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
		if err == nil && 20-raw == nice {
			continue
		}
		if err == nil {
			err = unix.Setpriority(unix.PRIO_PROCESS, tid, nice)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // that one has ended
			return false, os.NewSyscallError("setpriority", err)
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
