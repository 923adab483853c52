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

var daemonLong = fmt.Sprintf(`Runs the daemon that holds the networks of containers. It needs no privilege, no
/dev/net/tun and no namespace: the CNI plugin hands it descriptors. The plugin
starts it when it is not running. Started as root, it gives up every capability
once its state and socket are open. It runs at nice %d where it may, as root or
by the user's limit (ulimit -e), and was not started with another value:
containers that use every CPU would starve their own network.

It ends at SIGTERM or SIGINT, and then the containers' networks end with it.`, switchNice)

// autostartIdleExit is when a daemon that a plugin started ends again, unless
// the configuration or a flag says otherwise: long enough to keep its caches
// from one command to the next, short enough not to be in the way of an upgrade.
const autostartIdleExit = 10 * time.Minute

// daemonFlags are the daemon's flags as they were given.
type daemonFlags struct {
	stateDir, configPath, logLevel string
	idleExit                       time.Duration
	autostarted                    bool
	nice                           int
}

// niceFlag is the flag that preferDaemonNice is the default of.
const niceFlag = "nice"

func (a *app) daemonCommand() *cobra.Command {
	var f daemonFlags
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Hold the networks of containers",
		Long:  daemonLong,
		Example: `  usernet daemon
  usernet daemon --socket /tmp/u.sock --state-dir /tmp/u --log-level debug
  curl --unix-socket /run/usernet/usernet.sock http://usernet/v1/links`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := a.daemonConfig(cmd, &f)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed(niceFlag) {
				err = demandNice(cmd, f.nice)
			} else if err := preferDaemonNice(); err != nil {
				config.Log.Warn("priority is not raised", "err", err)
			}
			if err != nil {
				return err
			}
			return a.runDaemon(cmd.Context(), config)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.stateDir, "state-dir", "", "`DIR` for the database (default /var/lib/usernet, for users $XDG_STATE_HOME/usernet)")
	flags.StringVar(&f.configPath, "config", "", "`FILE` with networks and limits, in YAML")
	flags.DurationVar(&f.idleExit, "idle-exit", 0, "end after `DURATION` without containers, such as 10m (default never)")
	flags.BoolVar(&f.autostarted, "autostarted", false, "the plugin started this daemon: end after "+autostartIdleExit.String()+" without containers unless told otherwise")
	flags.StringVar(&f.logLevel, "log-level", "", "`LEVEL` of what is logged to standard error: debug, info, warn, error (default info)")
	flags.IntVar(&f.nice, niceFlag, 0, fmt.Sprintf("run at this nice `VALUE`, -20 (before others) to 19 (default %d if permitted and none was inherited)", switchNice))
	return cmd
}

// daemonConfig is what flags and configuration file say.
func (a *app) daemonConfig(cmd *cobra.Command, f *daemonFlags) (daemon.Config, error) {
	config := daemon.Config{Socket: a.socketPath(), StateDir: f.stateDir, IdleExit: f.idleExit, Version: buildInfo().Version}
	level := slog.LevelInfo
	if f.configPath != "" {
		file, err := daemon.LoadFile(f.configPath)
		if err != nil {
			return daemon.Config{}, err
		}
		config.File = file
		level = file.LogLevel
	}
	if f.logLevel != "" {
		if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
			return daemon.Config{}, usageError(cmd, fmt.Errorf("--log-level %q: write debug, info, warn or error", f.logLevel))
		}
	}
	if f.autostarted && config.IdleExit == 0 && (config.File == nil || config.File.IdleExit == 0) {
		config.IdleExit = autostartIdleExit
	}
	config.DropPrivileges = os.Geteuid() == 0
	config.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	return config, nil
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
