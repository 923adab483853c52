package netstack

// undoList undoes a set-up of several steps when one of them fails.
type undoList []func()

func (u *undoList) add(f func()) { *u = append(*u, f) }

// run undoes in reverse order; after keep it does nothing.
func (u *undoList) run() {
	for i := len(*u) - 1; i >= 0; i-- {
		(*u)[i]()
	}
	*u = nil
}

func (u *undoList) keep() { *u = nil }
