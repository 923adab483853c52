package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideVar is set for the process that runs the suite: the directory to do it
// in.
const insideVar = "CNI_CONFORM_INSIDE"

// outside starts this program again in namespaces of its own, and waits for it.
func (o *options) outside(args []string, stdout, stderr *os.File) (int, error) {
	if o.out != "" {
		f, err := os.Create(o.out)
		if err != nil {
			return usageStatus, err
		}
		defer f.Close()
		stdout = f
	}
	// A file system can only be mounted on a directory that is there.
	made, err := makeDirs(o.private)
	defer removeDirs(made)
	if err != nil {
		return usageStatus, err
	}
	dir, err := os.MkdirTemp("", "cni-conform-")
	if err != nil {
		return usageStatus, err
	}
	defer os.RemoveAll(dir) // here, because the second process may be killed
	child := exec.Command("/proc/self/exe", args...)
	child.Args[0] = os.Args[0]
	child.Env = append(os.Environ(), insideVar+"="+dir)
	child.Stdin, child.Stdout, child.Stderr = nil, stdout, stderr
	// A group of its own, so that a terminal's Ctrl-C comes through here and once.
	// The death signal is tied to the thread that starts the child; no thread of
	// this process ends before the process does.
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Setpgid: true, Pdeathsig: unix.SIGKILL,
	}
	if os.Geteuid() != 0 {
		child.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		child.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		child.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := child.Start(); err != nil {
		return usageStatus, fmt.Errorf("start in namespaces of its own: %w; it needs root, or the right to make user namespaces", err)
	}
	go handOn(signals, child.Process)
	if err := child.Wait(); child.ProcessState == nil {
		return usageStatus, err
	}
	if code := child.ProcessState.ExitCode(); code >= 0 {
		return code, nil
	}
	return usageStatus, fmt.Errorf("the suite was ended: %v", child.ProcessState)
}

// handOn hands the first signal to the child, and kills it with the second. It
// is outside's and ends with the process.
func handOn(signals <-chan os.Signal, child *os.Process) {
	_ = child.Signal(<-signals)
	<-signals
	_ = child.Kill()
}

// makeDirs makes directories and returns those that were not there.
func makeDirs(dirs []string) (made []string, err error) {
	for _, dir := range dirs {
		var missing []string
		for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
			if _, err := os.Stat(d); !errors.Is(err, os.ErrNotExist) {
				break
			}
			missing = append(missing, d)
		}
		made = append(missing, made...)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return made, fmt.Errorf("%w; name other directories with --private, or none with --private=", err)
		}
	}
	return made, nil
}

// removeDirs removes what makeDirs made, deepest first, unless somebody else
// uses it by now.
func removeDirs(made []string) {
	for _, dir := range made {
		_ = os.Remove(dir)
	}
}

// enclose gives the process's mount namespace a /proc of its process namespace,
// and empty directories.
func enclose(private []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range private {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("--private: mount over %s: %w", dir, err)
		}
	}
	return nil
}
