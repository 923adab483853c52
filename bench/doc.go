// Command bench measures usernet beside the tools that people would use in its
// place, on one machine, in one run.
//
// A [Backend] gives network to container namespaces by real processes of its
// own. A [Scenario] drives one load through a backend and reports figures once
// per round. A round takes each scenario through all backends, one after the
// other, so that a machine's moods meet all of them alike, and the median of the
// rounds is reported with the lowest and highest. A backend is started for each
// scenario. A peer that stalls is reported as such, with what it printed. What
// takes minutes is measured once a run.
//
// The topology is private: a namespace that plays the host, joined by a veth
// pair to a namespace that plays the outside, and container namespaces. Nothing
// outside these namespaces is touched but files under /etc/netns that name
// them, and everything ends with the run, interrupted or not.
//
// Throughput comes from iperf3, that of datagrams also from the probe, as small
// messages do (probe.go, datagrams.go), which is this executable started again
// inside the namespaces. Their kernels reuse ports in TIME_WAIT and have a wide
// range of them; else TIME_WAIT would be what is measured. README.md tells what
// each scenario is.
//
// It is a module of its own, so that programs that use usernet do not inherit
// its peers and its plots.
package main
