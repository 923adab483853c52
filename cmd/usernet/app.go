package main

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/sandbox"
)

// Exit statuses, beside those of run.
const (
	statusOK         = 0
	statusFailure    = 1
	statusUsage      = 2
	statusNotRunning = 3
)

// app is what every command has of the process that it runs in.
type app struct {
	getenv         func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer

	socket string // --socket
	json   bool   // --json of listings
}

// statusError ends the program with a status. Without Err nothing is printed.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// usageError is a mistake on the command line. Of run's exit statuses 2 belongs
// to the command.
func usageError(cmd *cobra.Command, err error) error {
	status := statusUsage
	if cmd.Name() == runName {
		status = sandbox.ExitFailure
	}
	return &statusError{status, fmt.Errorf("%w\nSee: %s --help", err, cmd.CommandPath())}
}

// exitStatus prints what went wrong and turns it into an exit status.
func (a *app) exitStatus(err error) int {
	if err == nil {
		return statusOK
	}
	status := statusFailure
	var s *statusError
	switch {
	case errors.As(err, &s):
		status = s.status
		if s.err == nil {
			return status
		}
	case errors.Is(err, control.ErrNotRunning):
		status = statusNotRunning
	}
	fmt.Fprintf(a.stderr, "usernet: %s\n", strings.TrimPrefix(err.Error(), "usernet: "))
	return status
}

const rootLong = `usernet gives commands and containers a network of their own from one
unprivileged process: no root, no bridge, no firewall rules.

A command:     usernet run -- curl https://example.com
A container:   usernet cni install     (then podman, containerd, nerdctl, CRI-O, …)
What it does:  usernet demo            (ten seconds, needs no network)
What it needs: usernet doctor

Exit status: 0 when it worked, 1 when not, 2 for a mistake on the command line,
3 when the daemon is not running. "usernet run" has the command's own.`

// root builds the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "usernet",
		Short:         "Network for commands and containers from one unprivileged process",
		Long:          rootLong,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          a.group,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&a.socket, "socket", "",
		"the daemon's socket (default $USERNET_SOCKET, or as the daemon chooses it)")
	root.SetFlagErrorFunc(usageError)
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Commands with a network:"},
		&cobra.Group{ID: "daemon", Title: "Networks of containers:"},
		&cobra.Group{ID: "see", Title: "What happens on them:"},
		&cobra.Group{ID: "machine", Title: "This machine:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("run", a.runCommand(), a.demoCommand())
	add("daemon", a.daemonCommand(), a.networkCommand(), a.linkCommand(), a.publishCommand(), a.unpublishCommand(), a.portCommand(), a.cniCommand())
	add("see", a.psCommand(), a.leasesCommand(), a.inspectCommand(), a.flowsCommand(), a.statsCommand(), a.captureCommand())
	add("machine", a.doctorCommand(), a.versionCommand())
	root.SetHelpCommandGroupID("machine")
	root.SetCompletionCommandGroupID("machine")
	return root
}

// group refuses arguments of a command that only has subcommands: they are
// misspelt ones.
func (a *app) group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("%q is not a command of %s", args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2 // letters that may be wrong
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err = fmt.Errorf("%w; did you mean %q?", err, near[0])
	}
	return usageError(cmd, err)
}

// args wraps one of cobra's checks of the number of arguments, to name those
// that are wanted and to exit with the status of a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError(cmd, fmt.Errorf("%w; write: %s", err, cmd.UseLine()))
		}
		return nil
	}
}

// client speaks to the daemon.
func (a *app) client() *control.Client {
	path := a.socket
	if path == "" {
		path = a.getenv(control.SocketEnv)
	}
	return control.Dial(path)
}

// jsonFlag gives a listing its --json.
func (a *app) jsonFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON for programs")
	return cmd
}

// exitCodeOf returns a finished command's status as a shell has it.
func exitCodeOf(err error) (int, bool) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, false
	}
	return shellStatus(exit.ProcessState), true
}
