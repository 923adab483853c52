// Package undo keeps the inverses of the steps of a set-up, so that a failure
// half-way leaves the world as it was:
//
//	var undo undo.List
//	defer undo.Run() // does nothing after Keep
//	lease, err := pool.Acquire(ctx, owner)
//	if err != nil {
//		return err
//	}
//	undo.Add(func() { pool.Release(ctx, owner) })
//	…
//	undo.Keep()
//
// An explicit list cannot be fooled by a shadowed error variable, as a deferred
// look at err can.
package undo
