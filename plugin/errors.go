package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
)

// Error codes of usernet's own, beside those of the CNI specification
// (SPEC.md "Error", and 50 and 51 of its STATUS section).
const (
	// ErrNotAvailable is STATUS's "no ADD can succeed now".
	ErrNotAvailable uint = 50
	// ErrLimitedConnectivity is STATUS's "no ADD can succeed now, and
	// containers that exist may be cut off".
	ErrLimitedConnectivity uint = 51
	// ErrPortInUse says that a host port of a port mapping is taken.
	ErrPortInUse uint = 100
	// ErrAddressInUse says that a requested address is another container's.
	ErrAddressInUse uint = 101
	// ErrExhausted says that the network has no address left.
	ErrExhausted uint = 102
	// ErrDaemonProtocol says that the socket is not served by a daemon that
	// this plugin can talk to.
	ErrDaemonProtocol uint = 103
	// ErrDevice says that the TUN could not be made.
	ErrDevice uint = 104
	// ErrCapability says that a capability argument cannot be honoured.
	ErrCapability uint = 105
	// ErrAttachment says that CHECK found an attachment other than its ADD left
	// it. The specification has no code for it; 3, "unknown container", would
	// tell the runtime that no DEL is needed.
	ErrAttachment uint = 106
)

// fail makes a CNI error of one sentence.
func fail(code uint, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// unsupported is code 2: the message names the key, its value and the remedy,
// as the specification demands.
func unsupported(key string, value any, remedy string) *types.Error {
	return fail(types.ErrUnsupportedField, "unsupported value of %q: %s: %s", key, compact(value), remedy)
}

// badValue is code 7: a key that is known, with a value that cannot be right.
func badValue(key string, value any, remedy string) *types.Error {
	return fail(types.ErrInvalidNetworkConfig, "invalid value of %q: %s: %s", key, compact(value), remedy)
}

// compact prints a value as JSON on one line, cut where nobody would read on.
func compact(v any) string {
	raw, ok := v.(json.RawMessage)
	if !ok {
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Sprint(v)
		}
		raw = b
	}
	const most = 200
	if len(raw) > most {
		return string(raw[:most]) + "…"
	}
	return string(raw)
}

// asCNI turns any error into the one to print. What the daemon said keeps its
// meaning; what has no code of its own is an I/O failure (5), because all that
// is left by then are system calls.
func asCNI(err error) *types.Error {
	text := strings.ReplaceAll(err.Error(), "\n", "; ") // of errors.Join
	if cni, ok := errors.AsType[*types.Error](err); ok {
		if text == cni.Error() {
			return cni // as it is, with its details apart
		}
		return types.NewError(cni.Code, text, "")
	}
	code := types.ErrIOFailure
	switch {
	case errors.Is(err, control.ErrNotRunning), errors.Is(err, control.ErrConnectionLost):
		code = types.ErrTryAgainLater
	case errors.Is(err, control.ErrForeign):
		code = ErrDaemonProtocol
	case errors.Is(err, netns.ErrInvalid):
		code = types.ErrInvalidNetworkConfig
	default:
		if ctl, ok := errors.AsType[*control.Error](err); ok {
			code = codeOf(ctl.Code)
		}
	}
	return types.NewError(code, text, "")
}

// codeOf maps the daemon's codes to CNI's.
func codeOf(c control.Code) uint {
	switch c {
	case control.CodeInvalid, control.CodeOutOfRange, control.CodeConflict, control.CodeNotFound,
		control.CodeNetworkExists, control.CodeNetworkInUse:
		return types.ErrInvalidNetworkConfig
	case control.CodeAddressInUse:
		return ErrAddressInUse
	case control.CodeExhausted:
		return ErrExhausted
	case control.CodePortInUse:
		return ErrPortInUse
	case control.CodeDescriptor:
		return ErrDevice
	case control.CodeForbidden, control.CodeVersion:
		return ErrDaemonProtocol
	case control.CodeUnavailable:
		return types.ErrTryAgainLater
	}
	return types.ErrInternal
}

// printError writes the specification's error object. libcni's own printer
// leaves out cniVersion, which the specification lists as a key of it.
func printError(w io.Writer, cniVersion string, e *types.Error) error {
	return printJSON(w, struct {
		CNIVersion string `json:"cniVersion"`
		Code       uint   `json:"code"`
		Msg        string `json:"msg"`
		Details    string `json:"details,omitempty"`
	}{cniVersion, e.Code, e.Msg, e.Details})
}

// printJSON writes v in one write, so that a reader never sees half of it.
func printJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	if _, err := w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}
