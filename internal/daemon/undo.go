package daemon

import (
	"context"
	"time"
)

// undoTime bounds what is undone after a request has failed or gone.
const undoTime = 10 * time.Second

// undoList is what has been done so far, to be taken back in reverse order
// unless the whole succeeds.
type undoList struct {
	steps []func(context.Context)
}

func (u *undoList) add(step func(context.Context)) { u.steps = append(u.steps, step) }

// keep forgets the steps: what was done stays.
func (u *undoList) keep() { u.steps = nil }

// run takes everything back. It does not stop when ctx ends: the client that
// has gone is often the very reason.
func (u *undoList) run(ctx context.Context) {
	if len(u.steps) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	for i := len(u.steps) - 1; i >= 0; i-- {
		u.steps[i](ctx)
	}
	u.steps = nil
}
