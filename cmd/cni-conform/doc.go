// Command cni-conform tries a CNI plugin on the conformance suite of package
// conform and reports what it found.
//
//	cni-conform --plugin /usr/lib/cni/bridge --conf bridge.json
//
// Its exit status is 0 when all cases of level MUST passed, 1 when one did not,
// and 2 for a wrong command line or a machine on which it cannot run.
//
// # Two processes
//
// The process that the user starts opens the output, makes a temporary directory
// and starts itself again in new mount and process namespaces, and as another user than root in a user
// namespace. The second process is the first of its process namespace: when it
// ends, however it does, the kernel ends all that plugins and hooks left running,
// and unmounts all that was mounted. The directories of the option --private are
// empty in there, so that neither what plugins keep nor what the machine's own
// plugins have kept is in the other's way.
//
// A signal that asks for the end is handed on: the case that runs is cleaned up
// after and the report is written. A second one ends the second process at once.
package main
