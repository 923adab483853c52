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

// MaxNoteLen is the longest note in bytes: room for a path (PATH_MAX) and more.
const MaxNoteLen = 8192

// Request is what an owner asks [Pool.Acquire] for. Only Owner is required.
type Request struct {
	// Owner is who will hold the lease.
	Owner Owner
	// Want lists addresses to be had by value, at most one of each range set.
	Want []netip.Addr
	// Name makes the addresses sticky: they are the ones that the last lease of
	// this name had, as far as nobody else holds them. Empty: not sticky. The
	// limit is that of an owner.
	Name string
	// BootID and Netns are kept with the lease, see [Lease].
	BootID string
	Netns  uint64
	// Note is kept with the lease, see [Lease]. It has at most [MaxNoteLen]
	// bytes.
	Note string
}

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
	// Name is what the addresses stick to; empty: to nothing.
	Name string `json:"name,omitempty"`
	// BootID and Netns say where the addresses are in use: the boot of the
	// machine (proc(5), boot_id) and the inode of the network namespace. A lease
	// of another boot, or of a namespace that is no more, can be released; the
	// pool leaves that to its caller. Empty and 0: unknown.
	BootID string `json:"bootID,omitempty"`
	Netns  uint64 `json:"netns,omitempty"`
	// Note is the caller's own, and opaque here: what it has to know of the lease
	// when nothing else remembers it.
	Note string `json:"note,omitempty"`
}

// Memory is what is remembered of a name that holds no lease.
type Memory struct {
	Addrs []netip.Addr `json:"addrs"` // of its last lease
	At    time.Time    `json:"at"`    // when that ended, in UTC
}

// Holds reports whether a is one of the lease's addresses.
func (l Lease) Holds(a netip.Addr) bool {
	return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// hosts gives the addresses without their subnets' lengths.
func (l Lease) hosts() []netip.Addr {
	all := make([]netip.Addr, len(l.Addrs))
	for i, p := range l.Addrs {
		all[i] = p.Addr()
	}
	return all
}

// clone gives a copy that shares no memory with l.
func (l Lease) clone() Lease {
	l.Addrs = slices.Clone(l.Addrs)
	l.Gateways = slices.Clone(l.Gateways)
	return l
}
