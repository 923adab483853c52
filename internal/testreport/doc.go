// Command testreport reads the events of go test -json and prints what a
// person wants to know: a line per package, the output of what failed, the
// reason of what was skipped, and the sums.
//
//	go test -json ./... | go run ./internal/testreport
//
// It exits with 1 when anything failed, when there was no test at all, and with
// -no-skips when a test was skipped: in CI, a test that did not run has not
// passed. Lines that are no events are printed as they are.
package main
