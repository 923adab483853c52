// Package policy decides what becomes of a flow. It is a leaf: it knows
// addresses and rules, and neither packets nor sockets.
//
// # Theory of operation
//
// [Rules] are plain data. [Compile] checks them, names every fault at once, and
// makes an immutable [Table]. [Table.Decide] is a pure function from a [Flow]
// to a [Verdict]: it opens no socket, takes no lock and allocates nothing. Every
// alias and rewrite happens inside it (a host service's port on the gateway
// becomes the service's address), so that nothing can change an address after
// it was judged. The zero Verdict drops, the zero Table drops, an unknown origin
// drops; a caller switches over [Verdict.Action] with a default that drops.
//
// Decide judges the address that the container names. Between that and the
// socket may lie a resolver, a redirect or a mistake, so [Table.CheckDial] judges
// the final address again, just before connect(2) or sendto(2).
//
// Packets between links are [Table.DecidePeer]'s, which is asked for each, with
// the tables of both networks.
//
// # The baseline
//
// Always refused towards the outside: loopback, 0.0.0.0/8, the host's own
// addresses ([HostAddrs]), link-local, cloud metadata, multicast, broadcast, the
// reserved 240.0.0.0/4, this network's own prefixes and those of others. IPv6
// addresses that carry an IPv4 address (IPv4-mapped, NAT64 with the well-known
// and the local prefix, 6to4, Teredo, ISATAP, IPv4-translated and -compatible)
// are judged with what they carry, in each reading that is possible.
//
// Rules.Allow opens what is named in it: the host's addresses, link-local,
// metadata, reserved. It never opens loopback and 0.0.0.0/8, for which there are
// host services; nor multicast and broadcast, which the switch does not carry;
// nor other networks. A wide prefix in Allow, such as 0.0.0.0/0, opens the former
// and leaves the latter shut.
//
// Multicast, broadcast and a family that the network does not have are dropped
// silently: container kernels send such packets unasked, and nobody waits for an
// answer. All else is rejected, so that programs fail at once instead of waiting
// for a timeout. [Reason] says why, as a metric label and as a sentence for
// people.
//
// # Memory and goroutines
//
// A Table and a HostAddrs never change. Their owner keeps each behind an atomic
// pointer and swaps the whole. There are no goroutines here.
package policy
