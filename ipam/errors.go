package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Causes, to be matched with errors.Is. The error that carries them is an
// [*OpError].
var (
	// ErrExhausted says that a set has no free address left.
	ErrExhausted = errors.New("no free address")
	// ErrInUse says that the wanted address is held by another owner.
	ErrInUse = errors.New("address in use")
	// ErrOutOfRange says that the wanted address is in no range of the pool.
	ErrOutOfRange = errors.New("address outside the ranges")
	// ErrReserved says that the wanted address is a gateway, a subnet's
	// network address or a broadcast address.
	ErrReserved = errors.New("address reserved")
	// ErrBadRequest says that a request contradicts itself or the lease that
	// its owner already holds.
	ErrBadRequest = errors.New("request cannot be met")
)

// OpError is the error of every method of [Pool] and of [Open].
type OpError struct {
	Op     string     // "open", "redefine", "acquire", "release" or "retain"
	Owner  Owner      // whose operation it was; empty for open, redefine and retain
	Addr   netip.Addr // the address concerned; invalid when there is no single one
	Holder Owner      // who holds Addr when Err is ErrInUse
	Err    error      // one of this package's causes, or the store's or context's error
}

// Error gives operation, owner, address and cause.
func (e *OpError) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Owner != "" {
		fmt.Fprintf(&b, " for %q", string(e.Owner))
	}
	if e.Addr.IsValid() {
		fmt.Fprintf(&b, ": %s", e.Addr)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.Holder != "" {
		fmt.Fprintf(&b, " by %q", string(e.Holder))
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *OpError) Unwrap() error { return e.Err }
