// Package portowner says which process stands in the way of a listener, for
// the text of an error. It reads what ss(8) reads: the socket tables of the
// calling thread's network namespace, and the descriptors of every process
// that the caller may look at. Every fault on the way means "unknown".
package portowner
