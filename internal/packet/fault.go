package packet

// Fault says what is wrong with a packet that Parse refuses. The zero value,
// FaultNone, means that nothing is. Each fault is one drop counter.
type Fault uint8

// The faults, in the order in which Parse looks for them.
const (
	FaultNone         Fault = iota
	FaultTruncated          // shorter than its IP header
	FaultVersion            // neither IPv4 nor IPv6
	FaultLength             // the header's length is not the packet's length
	FaultHeaderLength       // IPv4 header length below 20 or beyond the packet
	FaultChecksum           // IPv4 header checksum wrong
	FaultOptions            // an IPv4 option that is refused, or a malformed one
	FaultExtension          // an IPv6 extension header that is refused, malformed, or too many
	FaultFragment           // a fragment that is tiny, empty, overlong or not a multiple of 8
	FaultTransport          // the transport header is truncated or contradicts itself

	// NumFaults is the number of faults with FaultNone, for arrays indexed by Fault.
	NumFaults
)

var faultNames = [NumFaults]string{
	FaultNone:         "none",
	FaultTruncated:    "truncated",
	FaultVersion:      "version",
	FaultLength:       "length",
	FaultHeaderLength: "header_length",
	FaultChecksum:     "header_checksum",
	FaultOptions:      "options",
	FaultExtension:    "extension",
	FaultFragment:     "fragment",
	FaultTransport:    "transport",
}

// String is a stable snake_case name, usable as a metric label.
func (f Fault) String() string {
	if f >= NumFaults {
		return "unknown"
	}
	return faultNames[f]
}
