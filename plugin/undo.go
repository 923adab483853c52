package plugin

import "slices"

// undoList holds the inverses of the steps that were taken. The zero list is
// empty and ready.
type undoList struct {
	steps []func()
}

// add puts the inverse of a step that was just taken on the list.
func (u *undoList) add(inverse func()) { u.steps = append(u.steps, inverse) }

// keep forgets the list: what was done stays.
func (u *undoList) keep() { u.steps = nil }

// run takes the steps back, the last one first, and empties the list.
func (u *undoList) run() {
	for _, inverse := range slices.Backward(u.steps) {
		inverse()
	}
	u.steps = nil
}
