// Package packet reads and writes IP packets for the switch. It is a leaf: it
// knows bytes and RFCs, and nothing of links, devices or policy.
//
// # Theory of operation
//
// Bytes from a container are hostile. [Header.Parse] is the one place where they
// are read for the first time: it looks at the first [HeadLen] bytes of a packet,
// copies what the switch decides by into a reusable [Header], and either names
// one [Fault] or guarantees that every offset in the Header lies within the
// packet and that the lengths told by IP, TCP and UDP agree with the packet's.
// Whoever holds a Header without fault may index the packet with it.
//
// What is refused: lengths that disagree in either direction, trailing bytes
// included; wrong IPv4 header checksums; all IPv4 options but padding and router
// alert; IPv6 routing headers, jumbograms, home address options, chains out of
// order or longer than the head; fragments that are empty, tiny, overlong or
// not a multiple of eight. Transport checksums are not judged, because offloads
// hand packets over before their checksum is computed; [ValidL4Checksum] judges
// them for those who know that it is there.
//
// [Checksum] and its relatives return the folded sum, not inverted: sums add up,
// and a device that finishes checksums wants the pseudo header's sum as it is.
//
// The builders ([AppendIP], [AppendUDPHeader], [AppendEcho], [AppendICMPError],
// [AppendTCPReset]) append to the caller's buffer. Those that answer a packet
// return the buffer unchanged when the packet must not be answered, so that no
// two machines can be made to report errors about errors.
//
// [Fragments] splits and [Reassembler] joins. A Reassembler belongs to one link,
// so that its limits punish only that link: it holds bytes, datagrams and time
// within [ReassemblyLimits], evicts the link's own oldest datagram when full,
// and discards datagrams with overlaps or contradictions whole. The oldest goes
// rather than the newest since an incomplete datagram is most often one of which
// a fragment was lost and which will never be complete; refusing the newest
// would let a few lost fragments block the link until their timeout.
//
// # Memory and goroutines
//
// Nothing here starts a goroutine, takes a lock or logs. Nothing on the path of
// every packet allocates, which ordinary tests assert. A Reassembler holds a
// bounded amount of memory while datagrams are incomplete and gives it back in
// [Reassembler.Expire]. Fragments and a busy Reassembler reuse their buffers.
//
// IPv4 and IPv6 are equals: each exported function serves both.
package packet
