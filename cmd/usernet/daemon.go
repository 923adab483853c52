package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/daemon"
)

const daemonLong = `Runs the daemon that holds the networks of containers. It needs no privilege, no
/dev/net/tun and no namespace: the CNI plugin hands it descriptors. The plugin
starts it when it is not running. Started as root, it gives up every capability
once its state and socket are open.

It ends at SIGTERM or SIGINT, and then the containers' networks end with it.`

// autostartIdleExit is when a daemon that a plugin started ends again, unless
// the configuration or a flag says otherwise: long enough to keep its caches
// from one command to the next, short enough not to be in the way of an upgrade.
const autostartIdleExit = 10 * time.Minute

func (a *app) daemonCommand() *cobra.Command {
	var (
		stateDir, configPath, level string
		idleExit                    time.Duration
		autostarted                 bool
	)
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Hold the networks of containers",
		Long:  daemonLong,
		Example: `  usernet daemon
  usernet daemon --socket /tmp/u.sock --state-dir /tmp/u --log-level debug
  curl --unix-socket /run/usernet/usernet.sock http://usernet/v1/links`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config := daemon.Config{Socket: a.socketPath(), StateDir: stateDir, IdleExit: idleExit, Version: buildInfo().Version}
			logLevel := slog.LevelInfo
			if configPath != "" {
				file, err := daemon.LoadFile(configPath)
				if err != nil {
					return err
				}
				config.File = file
				logLevel = file.LogLevel
			}
			if level != "" {
				if err := logLevel.UnmarshalText([]byte(level)); err != nil {
					return usageError(cmd, fmt.Errorf("--log-level %q: write debug, info, warn or error", level))
				}
			}
			if autostarted && config.IdleExit == 0 && (config.File == nil || config.File.IdleExit == 0) {
				config.IdleExit = autostartIdleExit
			}
			config.DropPrivileges = os.Geteuid() == 0
			config.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: logLevel}))
			return a.runDaemon(cmd.Context(), config)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&stateDir, "state-dir", "", "`DIR` for the database (default /var/lib/usernet, for users $XDG_STATE_HOME/usernet)")
	flags.StringVar(&configPath, "config", "", "`FILE` with networks and limits, in YAML")
	flags.DurationVar(&idleExit, "idle-exit", 0, "end after `DURATION` without containers, such as 10m (default never)")
	flags.BoolVar(&autostarted, "autostarted", false, "the plugin started this daemon: end after "+autostartIdleExit.String()+" without containers unless told otherwise")
	flags.StringVar(&level, "log-level", "", "`LEVEL` of what is logged to standard error: debug, info, warn, error (default info)")
	return cmd
}

// socketPath is the daemon's socket as --socket and the environment have it;
// empty for the default.
func (a *app) socketPath() string {
	if a.socket != "" {
		return a.socket
	}
	return a.getenv(control.SocketEnv)
}

// runDaemon runs it until a signal asks for its end; a second one does not wait.
func (a *app) runDaemon(ctx context.Context, config daemon.Config) error {
	listener, err := daemon.InheritedListener()
	if err != nil {
		return err
	}
	config.Listener = listener
	a.leaveCPUs()
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	defer stop()
	d, err := daemon.New(config)
	if err != nil {
		return err
	}
	return d.Run(ctx)
}
