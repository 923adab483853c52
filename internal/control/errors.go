package control

import (
	"errors"
	"fmt"
)

// Code names a kind of failure. Codes are stable: programs match them, people
// read the message.
type Code string

// The codes.
const (
	CodeInvalid       Code = "invalid"        // the request is malformed; the message names the field and the value
	CodeNotFound      Code = "not_found"      // no such route, network, link or publication
	CodeConflict      Code = "conflict"       // the link exists and is alive, or the network is defined otherwise
	CodeAddressInUse  Code = "address_in_use" // a wanted address is leased to another link
	CodeOutOfRange    Code = "out_of_range"   // a wanted address is not in the network's ranges
	CodeExhausted     Code = "exhausted"      // no address is left
	CodePortInUse     Code = "port_in_use"    // a published host port is taken
	CodeNetworkExists Code = "network_exists" // the name or an overlapping subnet is taken
	CodeNetworkInUse  Code = "network_in_use" // the network still has links
	CodeDescriptor    Code = "descriptor"     // the descriptors are missing, too many, or not what they should be
	CodeUnwatched     Code = "unwatched"      // the end of a namespace that a descriptor keeps alive would not be seen
	CodeForbidden     Code = "forbidden"      // the caller's uid may not use the socket
	CodeUnavailable   Code = "unavailable"    // starting, stopping or out of descriptors: try again later
	CodeVersion       Code = "version"        // client and daemon speak different protocol versions
	CodeTooLarge      Code = "too_large"      // the body is over the limit
	CodeInternal      Code = "internal"       // the daemon's own fault
)

// Error is a failure with a stable code. Handlers return it, alone or
// wrapped; the client returns what the daemon sent, to be found with
// [errors.As].
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Is reports whether target is an *Error of the same code, so that
// errors.Is(err, &Error{Code: CodeNotFound}) matches whatever the message.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && (t.Message == "" || t.Message == e.Message)
}

// Errorf makes an [Error].
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeOf returns the code of the first [Error] in err's chain, CodeInternal
// when there is none, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// ErrorReply is the body of every reply that is not a success.
type ErrorReply struct {
	Error Error `json:"error"`
}

// ErrNotRunning means that nothing serves the socket: it does not exist, or
// the daemon that made it is dead. Returned wrapped, with the path and how to
// start the daemon.
var ErrNotRunning = errors.New("the usernet daemon is not running")

// ErrConnectionLost means that the daemon went away before it answered, so that
// what was asked may or may not have been done. Whatever a request makes that
// depends on the connection, such as a link before its commit, is taken back.
var ErrConnectionLost = errors.New("connection to the daemon was lost")

// ErrForeign means that the socket is served by something that is not usernet,
// or by another user.
var ErrForeign = errors.New("not a usernet daemon")
