// Command bench measures usernet beside the tools that people would use in its
// place, on one machine, in one run.
//
// A [Backend] gives network to container namespaces by real processes of its
// own: usernet (daemon and CNI plugin), slirp4netns, and the kernel's bridge
// with veth and masquerading. A [Scenario] drives one load through a backend
// and reports one figure per round. Rounds are interleaved over the backends,
// so that a machine's moods meet all of them alike, and the median of the
// rounds is reported with the lowest and highest.
//
// The topology is private: a namespace that plays the host, joined by a veth
// pair to a namespace that plays the outside, and two container namespaces.
// Nothing outside these namespaces is touched, and everything ends with the
// run, interrupted or not.
//
// Absolute figures depend on the machine and its neighbours: compare only
// within one result file.
package main
