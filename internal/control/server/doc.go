// Package server is the daemon's side of the wire protocol (package control): it
// has the routes call a [Handler].
//
// # Descriptors
//
// The server's connections collect the descriptors that come while they read; the
// handler of a request that names descriptors takes exactly as many as it names,
// and whatever nobody took is closed when the request ends.
//
// # Sessions
//
// [Session.Context] ends when the client's connection does, by which the daemon
// knows that whoever made a link has gone before it was committed.
//
// # Goroutines and bounds
//
// [Serve] owns one goroutine that accepts, and net/http's one or two per
// connection; it returns when all have ended. A request's head is bounded to
// 64 KiB and ten seconds, its body to [MaxBody], its descriptors to [MaxFiles].
package server
