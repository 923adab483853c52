package ipam

import (
	"net/netip"
	"slices"
	"time"
)

// Owner names the holder of a lease. It is opaque here; two owners are the
// same when their bytes are. Empty is not an owner, and more than
// [MaxOwnerLen] bytes are refused.
type Owner string

// MaxOwnerLen is the longest owner in bytes. It leaves room for a network
// name, a container id and an interface name, each at its longest, and keeps a
// store's key on one page.
const MaxOwnerLen = 1024

// Lease is the addresses that one owner holds. A Lease handed out by this
// package is the caller's own copy.
type Lease struct {
	Owner Owner `json:"owner"`
	// Addrs has one address per range set, in the order of the sets, each with
	// the length of its subnet.
	Addrs []netip.Prefix `json:"addrs"`
	// Gateways has the gateway of Addrs[i]'s range at index i.
	Gateways []netip.Addr `json:"gateways"`
	// Since is when the lease was first given, in UTC.
	Since time.Time `json:"since"`
}

// Holds reports whether a is one of the lease's addresses.
func (l Lease) Holds(a netip.Addr) bool {
	return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// clone gives a copy that shares no memory with l.
func (l Lease) clone() Lease {
	l.Addrs = slices.Clone(l.Addrs)
	l.Gateways = slices.Clone(l.Gateways)
	return l
}
