package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/sandbox"
)

const demoLong = `Shows in a few seconds what usernet does, without any outside network and without
touching this machine's: the demo makes namespaces of its own, one that stands for
this machine and one for the outside world, and runs two sandboxes.

Exit status: 0 only when every step did what it says.`

// demoArg0 is how a process of the demo knows what it is: the machine, or a
// program in a sandbox.
const demoArg0 = "usernet-demo"

func (a *app) demoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show in ten seconds what it does",
		Long:  demoLong,
		Args:  args(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.demoParent(cmd.Context()) },
	}
}

// demoParent starts the process that is the demo's machine, in a network
// namespace of its own.
func (a *app) demoParent(ctx context.Context) error {
	// The child is to die with this thread, see PR_SET_PDEATHSIG.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{demoArg0, "machine"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if !sandbox.MayMakeNamespaces() {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return &statusError{status: shellStatus(exit.ProcessState)} // it has said why
	case err != nil:
		return fmt.Errorf("make the demo's namespaces: %w; \"usernet doctor\" says what this machine lacks", err)
	}
	return nil
}

// demoInit is the entry of the demo's processes; in any other it returns at
// once.
func demoInit() {
	if len(os.Args) < 2 || os.Args[0] != demoArg0 {
		return
	}
	a := &app{getenv: os.Getenv, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	if err := a.demoRole(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "usernet demo: %v\n", err)
		os.Exit(statusFailure)
	}
	os.Exit(statusOK)
}

func (a *app) demoRole(role string, args []string) error {
	switch role {
	case "machine":
		return a.demoMachine()
	case "web":
		return demoWeb(a.stdout)
	case "get":
		return demoGet(a.stdout, args)
	case "knock":
		return demoKnock(a.stdout, args)
	}
	return fmt.Errorf("%q is no part of the demo", role)
}
