//go:build race

package main

import "time"

// demoLimit under the race detector, which makes every one of the demo's
// twenty processes start ten times slower.
const demoLimit = time.Minute
