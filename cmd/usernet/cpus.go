package main

import "runtime"

// leaveCPUs makes this process use half of the machine's CPUs, one at least,
// unless GOMAXPROCS says otherwise. A switch works when containers do, and they
// need the other half: with every CPU in use by the runtime, packets pay for
// waking threads instead (ARCHITECTURE.md has the figures).
func (a *app) leaveCPUs() {
	if a.getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
}
