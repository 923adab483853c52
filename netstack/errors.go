package netstack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/usernet/usernet/internal/policy"
)

// Errors that callers match with errors.Is.
var (
	// ErrClosed is returned by every method of a Switch after Shutdown or
	// Close. It is net.ErrClosed, so that code written for package net sees it.
	ErrClosed = net.ErrClosed

	// ErrNameInUse: a link of that name is attached already.
	ErrNameInUse = errors.New("name in use")

	// ErrAddressInUse: another link holds that address.
	ErrAddressInUse = errors.New("address in use")

	// ErrNoLink: the network has no such link.
	ErrNoLink = errors.New("no such link")

	// ErrPortInUse: the host port of a publication is taken.
	ErrPortInUse = errors.New("host port in use")
)

// OpError is the error of every exported operation: what was attempted, on
// which object, and why it did not work.
type OpError struct {
	Op     string // "new", "attach", "publish", "dial", …
	Object string // the link, network or address concerned
	Err    error
}

func (e *OpError) Error() string {
	if e.Object == "" {
		return e.Op + ": " + e.Err.Error()
	}
	return e.Op + " " + e.Object + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }

// RefusedError says that policy refuses a target.
type RefusedError struct {
	Target netip.AddrPort
	Reason string // policy's name of the reason
	text   string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%v is refused: %s", e.Target, e.text)
}

func refused(target netip.AddrPort, r policy.Reason) *RefusedError {
	return &RefusedError{Target: target, Reason: r.String(), text: r.Text()}
}
