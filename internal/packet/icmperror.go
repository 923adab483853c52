package packet

import "net/netip"

// ErrorKind names an ICMP error without regard to the IP version.
type ErrorKind uint8

// The errors that the switch sends.
const (
	ErrNetUnreachable ErrorKind = iota + 1
	ErrHostUnreachable
	ErrPortUnreachable
	ErrProtoUnreachable
	ErrAdminProhibited
	ErrTooBig
	ErrTimeExceeded
	ErrReassemblyTimeout
)

// AppendICMPError appends a whole packet that reports kind to orig's source.
func AppendICMPError(b []byte, kind ErrorKind, from netip.Addr, mtu int, orig []byte) []byte {
	return b
}
