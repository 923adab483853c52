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
	// A runtime that gives up sends SIGTERM; an ADD then takes back what it did.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	pid, name := plugin.Caller()
	status := plugin.Run(ctx, plugin.Process{
		Name:    os.Args[0],
		Env:     os.Environ(),
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Runtime: name,
		Caller:  pid,
		Release: release(),
	})
	stop()
	os.Exit(status)
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
