package policy

import "fmt"

// Ingress says from where, besides the outside by way of publications, flows
// may come to the links of a network.
type Ingress uint8

// The values, in the words of the reference plugin firewall ("bridge" is the
// network). Two networks reach each other only if both are open.
const (
	IngressSameBridge Ingress = iota // from links of the same network
	IngressOpen                      // and from links of other networks that are open
	IngressIsolated                  // from no link
)

var ingressNames = [...]string{IngressSameBridge: "same-bridge", IngressOpen: "open", IngressIsolated: "isolated"}

// String is the value as configurations write it.
func (i Ingress) String() string {
	if int(i) >= len(ingressNames) {
		return "unknown"
	}
	return ingressNames[i]
}

// ParseIngress is the inverse of String; empty is the default, same-bridge.
func ParseIngress(s string) (Ingress, error) {
	for i, name := range ingressNames {
		if s == name {
			return Ingress(i), nil
		}
	}
	if s == "" {
		return IngressSameBridge, nil
	}
	return IngressSameBridge, fmt.Errorf("ingress policy %q: want open, same-bridge or isolated", s)
}

// Open says whether links of other networks may be reached, and reach this
// one's: an internal network is cut off from them whatever its Ingress.
func (t *Table) Open() bool { return t != nil && t.ingress == IngressOpen && !t.internal }

// DecidePeer decides about a packet from a link of t's network to a link of
// to's; same says that they are one network. It is asked for every packet
// between links, so that a change of policy cuts flows that there are.
func (t *Table) DecidePeer(to *Table, same bool) Verdict {
	switch {
	case t == nil || to == nil:
		return refused(ReasonInvalid)
	case !same && !(t.Open() && to.Open()):
		return refused(ReasonOtherNetwork)
	case same && (t.portIsolation || t.ingress == IngressIsolated):
		return refused(ReasonPortIsolation)
	}
	return Verdict{Action: Forward, Target: TargetLink}
}
