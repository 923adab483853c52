//go:build !race

package main

import "time"

// demoLimit is what the demo promises; it takes one or two seconds.
const demoLimit = 10 * time.Second
