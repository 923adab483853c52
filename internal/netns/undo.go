package netns

import "errors"

// undoList takes back what was done so far when a later step fails.
type undoList struct {
	steps []undoStep
}

type undoStep struct {
	name string
	run  func() error
}

// add notes how to take back what has just been done.
func (u *undoList) add(name string, run func() error) {
	u.steps = append(u.steps, undoStep{name, run})
}

// unless takes everything back, last things first, unless cause is nil. It
// returns cause, with the faults of taking back joined to it.
func (u *undoList) unless(cause error) error {
	if cause == nil {
		return nil
	}
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i].run(); err != nil {
			cause = errors.Join(cause, &StepError{Step: "undo: " + u.steps[i].name, Err: err})
		}
	}
	return cause
}

// job runs the steps of one set-up. The zero value just runs them.
type job struct {
	undo undoList
	// before is asked ahead of each step and may fail it. Nil outside tests,
	// which use it to fail steps that the kernel will not fail on demand.
	before func(step string) error
}

// do runs one step and notes its undo, which may be nil.
func (j *job) do(step string, run func() (undo func() error, err error)) error {
	if j.before != nil {
		if err := j.before(step); err != nil {
			return &StepError{Step: step, Err: err}
		}
	}
	undo, err := run()
	if err != nil {
		return &StepError{Step: step, Err: err}
	}
	if undo != nil {
		j.undo.add(step, undo)
	}
	return nil
}

// StepError says which step of a set-up went wrong.
type StepError struct {
	// Step is what was attempted, such as "add address 10.0.0.2/24".
	Step string
	// Err is why it did not work.
	Err error
}

// Error implements error.
func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *StepError) Unwrap() error { return e.Err }
