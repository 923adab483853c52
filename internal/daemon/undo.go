package daemon

import (
	"context"
	"time"
)

// undoTime bounds each step that is undone after a request has failed or gone:
// a slow one leaves the others their time.
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
	for i := len(u.steps) - 1; i >= 0; i-- {
		inTime(ctx, u.steps[i])
	}
	u.steps = nil
}

// inTime runs one step of a removal, which goes on when ctx ends.
func inTime(ctx context.Context, step func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	step(ctx)
}
