// Package netstack is the switch: it joins containers to a network and the
// network to the outside, in one process, with no privilege.
//
// # What there is
//
// A [Switch] is one network. A [Link] is one container's attachment: a
// tunnel.Device whose far end is an interface in the container's namespace,
// the addresses leased to it, and its names. A [Publication] is a listener on
// the host that leads to a port of a link. A [Flow] is one conversation.
// Several switches live in one process; they know of each other only if they
// share a [Fabric].
//
// # Life of a packet
//
// Each link has its place on one worker, an event loop that waits for the
// devices of its links and for the host sockets of their flows (worker.go,
// internal/eventloop). It reads a frame, which is a virtio header and an IP
// packet of up to 64 KiB that the container's kernel has not cut into segments,
// scattered over a few views so that its headers lie together (frame.go). It
// then decides, without a lock and without allocating:
//
//  1. Headers are parsed once. What no honest kernel sends is dropped.
//  2. The source must be leased to the link. Protocols that configure
//     networks (router advertisements, redirects, DHCP, neighbour discovery)
//     end here; where [LinkConfig].DHCP says so, DHCPv4 is answered (dhcp.go).
//  3. If the destination is a link, of this network or of one that policy joins
//     it with (fabric.go), both networks' rules are asked, and the frame is
//     forwarded (forward.go): hop limit less one, and the same bytes are
//     written to the other device. Of a run of bare TCP acknowledgements that
//     lie in the device together only each flow's last is (passing.go).
//     Checksums and segmentation that the first kernel left open stay open
//     and the second completes them, so a frame costs two system calls for up
//     to 64 KiB. gVisor has no part in it, and TCP between containers
//     outlives this process.
//     A published port at one of the host's addresses leads to its link the
//     same way, with both ends of the packet rewritten (hairpin.go).
//  4. Else policy decides on the final target, once per flow for TCP. A
//     refusal is answered so that clients fail at once.
//  5. TCP goes to the gVisor stack, where it is terminated; UDP and ICMP echo
//     go to host sockets without gVisor; whole DNS queries to the gateway go
//     to the resolver. Datagrams of one flow that the reader finds one after
//     another leave by one system call (udp_gather.go), and what a host socket
//     has one after another goes to the container as one superframe. Where they
//     come densely the worker sleeps between its rounds, so that more of them
//     gather (udp_crowd.go).
//
// Every packet that goes no further increments exactly one counter, named by
// its [DropReason], on the link that it came from or was meant for.
//
// # Life of a TCP flow
//
// A SYN leads to a dial of the host side first. Only when that has succeeded
// is the container's handshake completed; a refusal becomes a reset, an
// unreachable host an ICMP error, silence stays silence. Then a relay, on the
// link's worker, carries bytes between the gVisor endpoint and the host socket,
// holding no buffer while idle, and carries half-closes and resets across
// (relay.go). The host socket of a short one serves the next to the same address
// (spare.go). A client of a publication is dialled through from its own address, so
// that the container sees who calls.
//
// # Host links
//
// [Switch.AttachHost] joins a device in a namespace of the host's, so that the
// host itself reaches the containers at their addresses. The host has the
// gateway's addresses there, as on a kernel bridge. A packet from the host opens
// a flow; a packet from a container that answers one of those flows, or is an
// ICMP error about one, goes to the host; every other is judged as if there were
// no host link. So containers can open nothing to the host by it, and what the
// gateway serves itself (names, host services, publications for clients on
// loopback) it serves beside the host: an address and port of the gateway belong
// to one flow toward a container, the host's or the switch's, and whoever comes
// second gets an error at once (DropFlowTaken). Fragmented answers are put
// together before they are judged. Between host and container no hop limit is
// decremented: they are neighbours.
//
// # Bounds
//
// [Limits] bound every table per link, so one container can exhaust only
// itself. The stack's sockets are bounded by TCPFlows and by the buffer
// maxima in stack.go. A host link holds at most 65,536 flows.
//
// # Goroutines
//
// One worker per processor that Go uses, up to four; gVisor's TCP processors,
// likewise, which have next to nothing to do (inbox.go); one per TCP flow while the
// embedder's own function dials it, or while it comes in by a publication until the
// container has answered; one per conversation with the resolver over TCP; one
// reader per link whose device cannot be watched, such as a wireguard tun.Device;
// one acceptor per publication of TCP; a sweeper that runs only while it has
// something to sweep.
// Each is a named method, started by what it belongs to and waited for by what
// ends that: Detach for a link's, Shutdown for the rest.
//
// # Locks
//
// Tables that packets read (links by address, rules, names, host addresses)
// are immutable values behind atomic pointers; Switch.mu serialises their
// replacement. Locks of flows and NAT tables are leaves: none is held while
// another is taken or while a socket or device is written.
//
// # What it does not do
//
// No fragmentation of what forbids it, no translation between families, no
// application gateways, no forwarding between networks that overlap.
package netstack
