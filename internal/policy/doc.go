// Package policy decides what becomes of a flow: a pure function from a flow
// to a verdict over immutable compiled rules. The zero verdict drops.
package policy
