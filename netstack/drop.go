package netstack

import (
	"errors"
	"sync/atomic"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/internal/policy"
	"github.com/usernet/usernet/tunnel"
)

// DropReason names why a packet went no further. Each discarded packet
// increments exactly one of these, on its link.
type DropReason uint8

// The reasons of the switch itself. Those of policy follow them: a policy
// refusal is counted as "policy_" plus policy's own name of the reason. Last
// come those of devices that discard frames themselves and keep count of it
// ([tunnel.DropCounter]), under the device's names.
const (
	dropNone            DropReason = iota
	DropTruncated                  // shorter than its headers say
	DropVersion                    // neither IPv4 nor IPv6
	DropLength                     // the length fields disagree with the frame
	DropHeaderLength               // IPv4 header length below 20 or beyond the packet
	DropOptions                    // IPv4 options that steer or record routes
	DropExtension                  // IPv6 extension headers that are bad, deprecated or too many
	DropTransport                  // transport header truncated or inconsistent
	DropChecksum                   // IPv4 header or transport checksum wrong
	DropFragment                   // fragment that no honest sender makes
	DropVirtioHeader               // virtio header that does not match its packet
	DropSpoofed                    // source is not leased to the link
	DropFamily                     // the network has no gateway of that family
	DropLoop                       // destination is the sending link itself
	DropHopLimit                   // TTL or hop limit used up at the switch
	DropTooBig                     // beyond the next link's MTU; sender told
	DropNeighbor                   // neighbour discovery and group membership: a TUN needs neither
	DropRouterAdvert               // router advertisement or redirect from a container
	DropDHCP                       // DHCP that is not served: addresses are leased at attach
	DropDHCPLimit                  // DHCP faster than a client asks
	DropDHCPMalformed              // not a DHCP client's message
	DropProtocol                   // no NAT for this IP protocol to the outside
	DropFlowRate                   // new flows faster than the link's limit
	DropFlowLimit                  // more flows than the link's limit
	DropDialLimit                  // more dials in flight than the link's limit
	DropDialTimeout                // SYN whose host side never answered
	DropReassembly                 // fragments given up: limit, overlap or time
	DropDNSLimit                   // DNS queries over the link's limit
	DropDNSMalformed               // not a DNS query
	DropPingUnavailable            // the process may open no ping socket
	DropUnsolicited                // from a host-side peer that the container never contacted
	DropHostSend                   // the host socket refused the packet
	DropDeviceFull                 // the container's device took no more
	DropDeviceGone                 // the container's device is gone
	DropDeviceDown                 // the container's interface is not up
	DropDeviceFrame                // the container's device refused the frame's form
	DropNoFlow                     // belongs to no flow
	DropICMPError                  // ICMP error from a container: it may only concern flows that are terminated here
	DropStack                      // the TCP stack took it no further
	DropRepeatedSYN                // SYN of a connection whose host side is being dialled
	DropBandwidth                  // would have to wait too long for the link's rate
	DropFlowTaken                  // the switch and a host would have one flow of the same addresses and ports
	DropSuperseded                 // bare TCP acknowledgement to another link that a later one, read with it, says again: nothing is lost
	numDropReasons
)

var dropNames = [numDropReasons]string{
	dropNone: "none", DropTruncated: "truncated", DropVersion: "version", DropLength: "length",
	DropHeaderLength: "header_length", DropOptions: "ip_options", DropExtension: "ipv6_extension",
	DropTransport: "transport_header", DropChecksum: "checksum", DropFragment: "fragment",
	DropVirtioHeader: "virtio_header", DropSpoofed: "spoofed_source", DropFamily: "family_off",
	DropLoop: "loop", DropHopLimit: "hop_limit", DropTooBig: "too_big", DropNeighbor: "neighbor_discovery",
	DropRouterAdvert: "router_advertisement", DropDHCP: "dhcp", DropDHCPLimit: "dhcp_limit",
	DropDHCPMalformed: "dhcp_malformed", DropProtocol: "protocol",
	DropFlowRate: "flow_rate", DropFlowLimit: "flow_limit", DropDialLimit: "dial_limit",
	DropDialTimeout: "dial_timeout", DropReassembly: "reassembly", DropDNSLimit: "dns_limit",
	DropDNSMalformed: "dns_malformed", DropPingUnavailable: "ping_unavailable",
	DropUnsolicited: "unsolicited", DropHostSend: "host_send", DropDeviceFull: "device_full",
	DropDeviceGone: "device_gone", DropDeviceDown: "device_down", DropDeviceFrame: "device_frame",
	DropNoFlow: "no_flow", DropICMPError: "icmp_error", DropStack: "stack",
	DropRepeatedSYN: "repeated_syn", DropBandwidth: "bandwidth", DropFlowTaken: "flow_taken",
	DropSuperseded: "superseded_ack",
}

// maxDropReasons bounds the counters of a link: the switch's own reasons and
// room for policy's. Devices' reasons are numbered from here.
const maxDropReasons = int(numDropReasons) + int(policy.NumReasons)

// deviceDropNames are the reasons of devices.
var deviceDropNames = tunnel.TAPDrops()

// String is the reason's name, stable and fit for a metric label.
func (d DropReason) String() string {
	if d < numDropReasons {
		return dropNames[d]
	}
	if n := int(d) - maxDropReasons; n >= 0 {
		return deviceDropNames[n]
	}
	return "policy_" + policy.Reason(d-numDropReasons).String()
}

// DropReasons lists every reason there is, in order.
func DropReasons() []DropReason {
	var all []DropReason
	for d := dropNone + 1; int(d) < maxDropReasons+len(deviceDropNames); d++ {
		if d != numDropReasons { // policy's zero reason means forwarded
			all = append(all, d)
		}
	}
	return all
}

func dropForPolicy(r policy.Reason) DropReason { return numDropReasons + DropReason(r) }

func dropForFault(f packet.Fault) DropReason {
	switch f {
	case packet.FaultVersion:
		return DropVersion
	case packet.FaultLength:
		return DropLength
	case packet.FaultHeaderLength:
		return DropHeaderLength
	case packet.FaultOptions:
		return DropOptions
	case packet.FaultExtension:
		return DropExtension
	case packet.FaultTransport:
		return DropTransport
	case packet.FaultChecksum:
		return DropChecksum
	case packet.FaultFragment:
		return DropFragment
	default:
		return DropTruncated
	}
}

func dropForDevice(err error) DropReason {
	switch {
	case errors.Is(err, tunnel.ErrFull):
		return DropDeviceFull
	case errors.Is(err, tunnel.ErrDown):
		return DropDeviceDown
	case errors.Is(err, tunnel.ErrFrame):
		return DropDeviceFrame
	default:
		return DropDeviceGone
	}
}

// dropCounters holds one counter per reason.
type dropCounters [maxDropReasons]atomic.Uint64

func (c *dropCounters) add(d DropReason, n int) { c[d].Add(uint64(n)) }

// addDeviceDrops adds what a device has discarded to m, if it does and tells.
func addDeviceDrops(dev tunnel.Device, m map[string]uint64) {
	if c, ok := dev.(tunnel.DropCounter); ok {
		for reason, n := range c.Drops() {
			m[reason] += n
		}
	}
}

// snapshot adds the counters that are not zero to m.
func (c *dropCounters) snapshot(m map[string]uint64) {
	for i := range c {
		if n := c[i].Load(); n > 0 {
			m[DropReason(i).String()] += n
		}
	}
}

// merge adds other's counts to c: a link that leaves takes no count away.
func (c *dropCounters) merge(other *dropCounters) {
	for i := range c {
		c[i].Add(other[i].Load())
	}
}
