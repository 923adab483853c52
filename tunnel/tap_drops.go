package tunnel

import "slices"

// etherDrop is why a frame from the container went no further. The zero value
// is no reason.
type etherDrop uint8

const (
	etherPass            etherDrop = iota
	dropEtherTruncated             // no whole Ethernet header, or hardly anything after it
	dropEtherSource                // source is not the container's MAC address
	dropEtherDestination           // to neither the gateway nor a group
	dropEtherVLAN                  // carries a VLAN tag
	dropEtherType                  // neither IP nor ARP, or not the IP version that is inside
	dropARPMalformed               // ARP that is not IPv4 over Ethernet, or from another MAC address
	dropARPUnanswered              // announcement, answer, or question for an address that is not ours to speak for
	dropNDPMalformed               // neighbour solicitation that RFC 4861 §7.1.1 forbids
	dropNDPUnanswered              // question for an address that is not ours to speak for
	dropAnswer                     // the container's interface did not take our answer
	numEtherDrops
)

var etherDropNames = [numEtherDrops]string{
	etherPass: "none", dropEtherTruncated: "ether_truncated", dropEtherSource: "ether_source",
	dropEtherDestination: "ether_destination", dropEtherVLAN: "ether_vlan", dropEtherType: "ether_type",
	dropARPMalformed: "arp_malformed", dropARPUnanswered: "arp_unanswered",
	dropNDPMalformed: "ndp_malformed", dropNDPUnanswered: "ndp_unanswered",
	dropAnswer: "neighbor_answer_lost",
}

// String is the reason's name, stable and fit for a metric label.
func (d etherDrop) String() string { return etherDropNames[d] }

// TAPDrops lists the reasons for which a device of [OpenTAP] discards frames.
func TAPDrops() []string { return slices.Clone(etherDropNames[etherPass+1:]) }
