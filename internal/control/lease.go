package control

import (
	"net/netip"
	"time"
)

// LeaseRequest asks for addresses without a link (POST /v1/leases), for an
// interface that another plugin makes. They are those of Network, of which no
// link gets them meanwhile. The lease ends by DELETE, by GC of the network, with
// the namespace, or with this boot of the machine; no connection keeps it.
type LeaseRequest struct {
	Network   string       `json:"network"`             // name, as in AttachRequest; the network itself need not exist
	Container string       `json:"container"`           // the runtime's container id, same alphabet
	IfName    string       `json:"ifname"`              // interface name inside the container, 1..15 bytes
	Netns     uint64       `json:"netns,omitempty"`     // inode of the container's network namespace; 0: unknown
	NetnsPath string       `json:"netnsPath,omitempty"` // where the caller found it, absolute; by it the daemon tells whether the namespace is still there
	BootID    string       `json:"bootID,omitempty"`    // as in AttachRequest
	Owner     string       `json:"owner,omitempty"`     // tag of the runtime; GC with the same tag judges this lease
	Sets      [][]Range    `json:"sets"`                // one address per set; must agree with those of a network of this name that has links
	IPs       []netip.Addr `json:"ips,omitempty"`       // wanted addresses out of Sets
	Sticky    string       `json:"sticky,omitempty"`    // as in AttachRequest
	Nonce     string       `json:"nonce,omitempty"`     // names this request; one that is repeated, because the answer was lost, is answered by the same lease instead of a conflict
}

// Key returns the identity of the lease that the request asks for.
func (r *LeaseRequest) Key() LinkKey {
	return LinkKey{Network: r.Network, Container: r.Container, IfName: r.IfName}
}

// Lease is the addresses of an interface that is no link.
type Lease struct {
	ID        string         `json:"id"` // LinkKey.String
	Network   string         `json:"network"`
	Container string         `json:"container"`
	IfName    string         `json:"ifname"`
	Owner     string         `json:"owner,omitempty"`
	Netns     uint64         `json:"netns,omitempty"`     // inode
	NetnsPath string         `json:"netnsPath,omitempty"` // by which the namespace's end is seen; empty: it is not
	Addrs     []netip.Prefix `json:"addrs"`               // one per set, each with the length of its subnet
	Gateways  []netip.Addr   `json:"gateways"`            // one per address, same order
	Since     time.Time      `json:"since"`
}

// LeasesReply answers GET /v1/leases?network=.
type LeasesReply struct {
	Leases []Lease `json:"leases"` // sorted by ID
}

// ReleaseReply answers DELETE /v1/leases/…; releasing what is not held succeeds.
type ReleaseReply struct {
	Released bool `json:"released"` // false: there was nothing to release
}
