// Package eventloop runs the handlers of many descriptors in one goroutine.
//
// # Why not Go's poller
//
// Go's poller wakes one goroutine per descriptor, and being edge-triggered it
// makes each of them read until there is nothing: a packet that crosses a
// process that way costs four switches of goroutines and two reads in vain. A
// [Loop] waits once for all of its descriptors, level-triggered where the
// handler wants it, and runs the handlers one after another, so that what they
// share needs no lock and the processor's caches stay warm.
//
// # Theory of operation
//
// A round of the loop waits for descriptors, runs their handlers and then the tasks
// that were posted meanwhile ([Loop.Post]), by handlers or by anybody, and lets other
// goroutines of the process run if one has been given work ([Loop.Yield]), in any
// case after eight turns or a millisecond. Where Go has one processor, nobody else would
// look at Go's poller while the loop is busy, so it has Go do that as often (giveway.go).
// Nothing that runs on the loop may block, so it has no need of system calls that Go
// knows of, and is better without: with one processor, the first of them after that
// was idle has Go's monitor look every 70 µs for the next 4 ms, which wakes a CPU that
// others wait for. What is only worth doing when there is nothing else waits for that,
// or for 2 ms ([Loop.PostLull]).
//
// Waiting has two stages, for a sleep costs what it takes to wake up (wait.go):
// first the loop spins, asking the kernel again and again, for as long as that
// has paid lately; then it parks like any goroutine, its epoll descriptor being
// watched by Go's poller. An idle loop costs nothing.
//
// A handler to which work comes in small pieces, faster than each is worth a round,
// has the loop sleep for a moment instead ([Loop.Nap]): what comes meanwhile is
// found at once, and the processor is free for who makes it and who takes it. Where that
// would cost it too much it only lets those go first who wait ([Loop.StandAside]).
//
// # Ownership
//
// A loop owns its own descriptors and none that it watches. Who watches a
// descriptor removes the [Watch] before closing it, or tells of it right after
// ([Watch.Closed]).
package eventloop
