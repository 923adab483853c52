package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/usernet/usernet/plugin"
)

// version is set by the linker for releases (-X main.version=v1.2.3); a build
// from a module says its own.
var version string

func main() {
	os.Exit(plugin.Run(context.Background(), plugin.Process{
		Name:    os.Args[0],
		Env:     os.Environ(),
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Release: release(),

		Caller:        plugin.Caller,
		Interruptible: interruptible,
	}))
}

// interruptible ends the context when a runtime gives up, by SIGTERM, or its
// user, by SIGINT. Go takes 0.4 ms to be ready for signals.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}

// release returns the version that this executable was built as.
func release() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "v0.0.0-dev"
}
