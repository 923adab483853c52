package policy

// Reason says why a flow is not forwarded. The zero value says that it is.
type Reason uint8

// The reasons. Text tells each in words.
const (
	ReasonNone          Reason = iota
	ReasonInvalid              // no origin, no valid destination, or a Table without rules
	ReasonFamily               // IPv4 and IPv6 mixed, or a family that the network does not have
	ReasonLoopback             // 127.0.0.0/8, ::1
	ReasonThisNetwork          // 0.0.0.0/8, ::
	ReasonHostAddress          // one of the host's own addresses
	ReasonLinkLocal            // 169.254.0.0/16, fe80::/10
	ReasonMetadata             // a cloud's metadata address
	ReasonMulticast            // 224.0.0.0/4, ff00::/8
	ReasonBroadcast            // 255.255.255.255, or a network's first or last address
	ReasonReserved             // 240.0.0.0/4
	ReasonEmbedded             // an IPv6 address that leads to an IPv4 address that is refused
	ReasonInternal             // the network is internal
	ReasonOtherNetwork         // another network's prefix
	ReasonNoSuchLink           // an address of this network that no link has
	ReasonNoService            // the gateway does not serve this protocol and port
	ReasonPortIsolation        // the links of this network do not reach each other
	ReasonHairpin              // a published port, which this network's containers, or this one, may not use

	// NumReasons is the number of reasons with ReasonNone, for arrays indexed
	// by Reason.
	NumReasons
)

var reasons = [NumReasons]struct{ name, text string }{
	ReasonNone:          {"none", "nothing is refused"},
	ReasonInvalid:       {"invalid", "the flow has no valid destination; this is a fault of the caller"},
	ReasonFamily:        {"family", "the network does not have this IP family; give it a subnet of the family"},
	ReasonLoopback:      {"loopback", "host loopback is refused; open it with --host-service"},
	ReasonThisNetwork:   {"this_network", "0.0.0.0/8 and :: mean the host itself and are refused; open a port with --host-service"},
	ReasonHostAddress:   {"host_address", "the host's own addresses are refused; open a port with --host-service, or allow the address in the network's configuration"},
	ReasonLinkLocal:     {"link_local", "link-local addresses are refused; allow the prefix in the network's configuration"},
	ReasonMetadata:      {"metadata", "cloud metadata addresses are refused; allow the address in the network's configuration"},
	ReasonMulticast:     {"multicast", "multicast is not forwarded; use unicast addresses"},
	ReasonBroadcast:     {"broadcast", "broadcast is not forwarded; use unicast addresses"},
	ReasonReserved:      {"reserved", "240.0.0.0/4 is reserved and refused; allow the prefix in the network's configuration"},
	ReasonEmbedded:      {"embedded", "the IPv6 address leads to an IPv4 address that is refused; allow the IPv4 address in the network's configuration"},
	ReasonInternal:      {"internal", "the network is internal and has no way out; use a network that is not internal"},
	ReasonOtherNetwork:  {"other_network", "the address belongs to another network; attach the container to that network too, or give both the ingress policy open"},
	ReasonNoSuchLink:    {"no_such_link", "no container of this network has this address; see the list of links"},
	ReasonNoService:     {"no_service", "the gateway serves nothing on this port; open it with --host-service"},
	ReasonPortIsolation: {"port_isolation", "containers of this network are kept apart; use a network without port isolation whose ingress policy is not isolated"},
	ReasonHairpin:       {"hairpin", "published ports are closed to this network's own containers (set hairpin to true), or this container's to itself (set hairpinMode of its bridge to true)"},
}

// String is a stable snake_case name, usable as a metric label.
func (r Reason) String() string {
	if r >= NumReasons {
		return "unknown"
	}
	return reasons[r].name
}

// Text says in words what is refused and what to do about it.
func (r Reason) Text() string {
	if r >= NumReasons {
		return "refused for a reason that this version does not know"
	}
	return reasons[r].text
}

// silent says whether packets refused for r are noise that nobody waits for an
// answer to, or cannot be answered.
func (r Reason) silent() bool {
	switch r {
	case ReasonMulticast, ReasonBroadcast, ReasonFamily, ReasonInvalid:
		return true
	}
	return false
}
