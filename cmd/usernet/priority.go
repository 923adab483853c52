package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/daemon"
)

// switchNice is the nice value of a process with a switch. The kernel serves a
// bridge before all processes; a switch has to have its turn among them, and
// containers that use every CPU would starve their own network. At -5 its share is
// three times that of an ordinary process (ARCHITECTURE.md has the figures).
const switchNice = -5

// preferNice gives this process switchNice, if it may have it and was not started
// with a priority that somebody chose. It reports whether it has.
func preferNice() (bool, error) {
	ordinary, err := daemon.OrdinaryPriority()
	if err == nil && ordinary {
		err = daemon.SetNice(switchNice)
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, errors.ErrUnsupported) {
		return false, nil
	}
	return err == nil && ordinary, err
}

// preferDaemonNice is preferNice for the daemon, and for the session that it leads.
func preferDaemonNice() error {
	preferred, err := preferNice()
	if !preferred {
		return err
	}
	return daemon.SetSessionNice(switchNice)
}

// demandNice gives the daemon, and the session that it leads, the nice value that
// the user wants.
func demandNice(cmd *cobra.Command, nice int) error {
	if nice < -20 || nice > 19 {
		return usageError(cmd, fmt.Errorf("--%s %d: write -20 (before all others) to 19 (after them)", niceFlag, nice))
	}
	err := daemon.SetNice(nice)
	if err == nil {
		err = daemon.SetSessionNice(nice)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("--%s %d: %w; it needs root, or a limit (ulimit -e) of %d or more", niceFlag, nice, err, 20-nice)
	}
	if err != nil {
		return fmt.Errorf("--%s %d: %w", niceFlag, nice, err)
	}
	return nil
}
