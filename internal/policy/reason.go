package policy

// Reason says why a flow is not forwarded.
type Reason uint8

// The reasons.
const (
	ReasonNone Reason = iota
	ReasonInvalid
	ReasonFamily
	ReasonLoopback
	ReasonThisNetwork
	ReasonHostAddress
	ReasonLinkLocal
	ReasonMetadata
	ReasonMulticast
	ReasonBroadcast
	ReasonReserved
	ReasonEmbedded
	ReasonInternal
	ReasonOtherNetwork
	ReasonNoSuchLink
	ReasonNoService

	// NumReasons is the number of reasons, for arrays indexed by Reason.
	NumReasons
)

// String is a stable snake_case name, usable as a metric label.
func (r Reason) String() string { return "" }

// Text says in words what is refused and what to do about it.
func (r Reason) Text() string { return "" }
