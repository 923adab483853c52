package policy

import "net/netip"

// Origin says which side opened a flow. The zero value is not valid: such a
// flow is dropped.
type Origin uint8

// The origins.
const (
	FromContainer Origin = iota + 1 // a packet read from a link's device
	FromHost                        // a publication, or a dial through the switch
)

// Action is what to do with a flow.
type Action uint8

// The actions.
const (
	Drop    Action = iota // discard silently
	Reject                // discard and say so: TCP reset, ICMP error
	Forward               // pass on to Verdict.Target
)

// Target says where a forwarded flow goes.
type Target uint8

// The targets.
const (
	TargetNone        Target = iota // nowhere: the flow is not forwarded
	TargetLink                      // to the link that owns Verdict.Addr
	TargetGateway                   // to the gateway itself: ICMP echo
	TargetDNS                       // to the gateway's resolver
	TargetHostService               // dial Verdict.Addr on the host, loopback included; do not CheckDial
	TargetEgress                    // dial Verdict.Addr from the host, with CheckDial on the final address
	TargetPublication               // to the link of the publication of Verdict.Addr, without the host
)

// Flow is what a verdict is asked for.
type Flow struct {
	Origin Origin
	Link   string // name of the container's link; for messages, not judged
	Proto  uint8  // IP protocol number
	// Src and Dst are the ends as the opener names them. Ports are 0 for
	// protocols without; for ICMP echo they hold the identifier.
	Src, Dst netip.AddrPort
	// Published says that a publication is there for Proto and Dst, if the host
	// has Dst's address.
	Published bool
	// OwnPort says that the publication leads back to the flow's own container,
	// which is not to reach itself that way.
	OwnPort bool
	// Joined says that Dst lies in another network, which this one is joined
	// with, see [Table.DecidePeer].
	Joined bool
}

// Verdict is the decision about a flow. The zero Verdict drops.
type Verdict struct {
	Action Action
	Target Target
	// Addr is the link's, the service's or the outside address to go to.
	Addr netip.AddrPort
	// Reason says why the flow is not forwarded; ReasonNone when it is.
	Reason Reason
}

// String is a stable snake_case name, usable as a metric label.
func (o Origin) String() string {
	switch o {
	case FromContainer:
		return "container"
	case FromHost:
		return "host"
	}
	return "unknown"
}

// String is a stable snake_case name, usable as a metric label.
func (a Action) String() string {
	switch a {
	case Drop:
		return "drop"
	case Reject:
		return "reject"
	case Forward:
		return "forward"
	}
	return "unknown"
}

var targetNames = [...]string{
	TargetNone:        "none",
	TargetLink:        "link",
	TargetGateway:     "gateway",
	TargetDNS:         "dns",
	TargetHostService: "host_service",
	TargetEgress:      "egress",
	TargetPublication: "publication",
}

// String is a stable snake_case name, usable as a metric label.
func (t Target) String() string {
	if int(t) >= len(targetNames) {
		return "unknown"
	}
	return targetNames[t]
}
