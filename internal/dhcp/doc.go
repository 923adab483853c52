// Package dhcp answers DHCPv4 clients (RFC 2131) for one container whose
// address is known already.
//
// # Theory of operation
//
// Whoever attaches the container leases its address, and the lease ends with
// the link. DHCP is only the way in which a client learns of it, so there is no
// pool here, no table of clients, no clock and no state: [Lease.Answer] is a
// pure function of a lease and a message. A client that asks for any other
// address is told no (DHCPNAK), so that one that remembers a former network
// starts anew. A client that releases its address is believed, and gets the
// same one when it asks again.
//
// A container is alone on its wire: a message whose hardware address is not its
// own hurts nobody but itself, and relay agents do not exist.
//
// Messages are hostile bytes. They are parsed within the bounds of
// [MaxMessage], and an answer takes nothing from them but the transaction, the
// flags, the hardware address and the client identifier (RFC 6842).
//
// Not here: BOOTP without DHCP's message type, leases on request of a client,
// forced renewal, authentication, and DHCPv6.
package dhcp
