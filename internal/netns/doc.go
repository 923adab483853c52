// Package netns opens, makes and enters network namespaces, and puts a
// container's interface into one.
//
// # Threads
//
// A network namespace belongs to an OS thread. [Handle.Do] runs a function on a
// thread of its own that is thrown away afterwards, so that no goroutine of the
// program ever finds itself in a foreign namespace. Functions whose comments
// say "the current namespace" act on the calling thread's: call them inside Do,
// with runtime.LockOSThread held, or in a process that is in the right
// namespace as a whole.
//
// # Moving an interface in
//
// [MoveIn] takes a device that was created in the current namespace, moves it
// into the target under its wanted name ([Move]) and calls [Configure]. Each
// step has an undo, and a failure leaves both namespaces as they were. Who has
// something else to do meanwhile calls Move and Configure.
//
// # What is written under /proc/sys/net
//
// /proc/sys/net is resolved in the namespace of the task that opens the file,
// not of the process: a thread inside Do writes the target's values. The test
// TestNetnsSysctlBelongsToThread holds that against the running kernel.
package netns
