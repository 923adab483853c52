package undo

import "slices"

// List holds the inverses of the steps taken so far. The zero List is empty and
// ready. It belongs to one goroutine.
type List struct{ steps []func() }

// Add notes the inverse of the step that was just taken.
func (l *List) Add(inverse func()) { l.steps = append(l.steps, inverse) }

// Keep forgets the inverses: what was done stays.
func (l *List) Keep() { l.steps = nil }

// Run takes the steps back, the last one first, and empties the list.
func (l *List) Run() {
	for _, inverse := range slices.Backward(l.steps) {
		inverse()
	}
	l.steps = nil
}
