package sandbox

// undoList holds what reverses the steps done so far, run in reverse order
// unless keep is called.
type undoList struct{ steps []func() }

func (u *undoList) add(step func()) { u.steps = append(u.steps, step) }

// run undoes all steps; after keep it does nothing.
func (u *undoList) run() {
	for i := len(u.steps) - 1; i >= 0; i-- {
		u.steps[i]()
	}
	u.steps = nil
}

func (u *undoList) keep() { u.steps = nil }
