// Package ipam gives out addresses from pools and remembers, across crashes,
// who holds them. It knows nothing of CNI, of packets or of containers: a
// holder is an opaque [Owner].
//
// # What is given out
//
// A [Pool] serves one network. Its [Config] lists range sets; a set is one or
// more ranges of one family, and every [Lease] holds exactly one address of
// each set. A network with IPv4 and IPv6 has two sets. The schema and the
// choice of addresses are those of the host-local IPAM plugin, so that its
// configurations mean the same here:
//
//   - a set is walked round robin from the address that it gave out last, and
//     that cursor is durable, so that a restart does not begin at the bottom;
//   - a subnet's network address, the broadcast address of an IPv4 subnet and
//     every range's gateway are never given out;
//   - an address may be asked for by value; it is then refused with
//     [ErrInUse], [ErrReserved] or [ErrOutOfRange], never replaced by another.
//
// Nothing is stored or walked per address of a subnet: memory and time depend
// on the number of leases, so that an IPv6 /64 costs the same as an IPv4 /24.
//
// # Life of a lease
//
// [Pool.Acquire] picks the addresses and marks them as taken in memory, writes
// the lease to the [Store], and only then returns it. A process killed at any
// point therefore leaves either no lease or a durable one: an address that a
// caller has seen is never given to a second owner. Asking again for an owner
// that holds a lease returns that lease, so a caller that did not live to see
// the answer just repeats the question. [Pool.Release] is the reverse, and
// releasing what is not held is no error. [Pool.Retain] releases everything
// whose owner is no longer alive, in one transaction; every lease tells the boot
// and the namespace that it was given for, by which a caller may judge that.
//
// A lease outlives a change of configuration: ranges concern what is given
// out, not what is held. [Pool.Redefine] makes such a change while the pool is in
// use.
//
// # Quarantine
//
// A freed address rests for [Config].Quarantine before it is given to another
// owner, so that late packets of old flows do not reach a new container. Time
// of freeing is durable too. When every free address of a set is resting, the
// one that has rested longest is taken: a full network gets a short rest
// rather than an error. An address asked for by value skips its rest, since
// runtimes that reload a network ask for the address they have just released.
//
// # Names
//
// A [Request] may bear a name, which unlike an owner comes again: that of a
// container which is made anew for each version of what it runs. When such a
// lease ends, its addresses do not rest but are kept for the name, durably, and
// the next lease of the name has them again. Others get a kept address last of
// all, after those at rest, the one kept longest first: a name is a preference
// and never a reason to refuse. Names are remembered up to [MaxNames].
//
// # Concurrency
//
// All methods may be called at once from many goroutines. Operations on one
// owner happen one after another; operations of different owners overlap,
// [BoltStore] commits what has gathered meanwhile with one sync, and no lock
// is held during a write. The package starts no goroutine.
package ipam
