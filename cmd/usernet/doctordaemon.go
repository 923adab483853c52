package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/sandbox"
)

// examineDaemon looks for the daemon. That it does not run is no fault: run
// does without, and the plugin starts it.
func (a *app) examineDaemon(ctx context.Context) sandbox.Check {
	c := sandbox.Check{Name: "daemon"}
	socket := a.socketPath()
	if socket == "" {
		socket = control.DefaultSocket()
	}
	status, err := a.client().Status(ctx, "")
	switch {
	case errors.Is(err, control.ErrNotRunning):
		c.State, c.Found = sandbox.OK, "not running at "+socket+"; the CNI plugin starts it when it is needed"
	case err != nil:
		c.State, c.Found = sandbox.Warning, err.Error()
	case !status.Ready:
		c.State = sandbox.Warning
		c.Found = fmt.Sprintf("running at %s, but not ready", socket)
		for _, p := range status.Problems {
			c.Fix = p.Message
		}
	default:
		c.State = sandbox.OK
		c.Found = fmt.Sprintf("%s at %s, pid %d, %d networks, %d links", status.Version, socket, status.PID, status.Networks, status.Links)
	}
	return c
}
