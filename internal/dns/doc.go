// Package dns is the resolver that a network's gateway offers to its
// containers. It knows nothing of packets, links or sockets toward the
// container: its caller hands it one query and writes what it returns.
//
// # Theory of operation
//
// A query arrives at [Server.ServePacket] (UDP rules: the answer is cut to what
// the client can take) or over a connection given to [Server.ServeStream] (TCP
// rules: RFC 7766, several queries in flight on one connection). Both meet in
// the same steps:
//
//  1. The query is bytes from a container and so hostile: at most
//     [Config].MaxQuery bytes, exactly one question, no more than one OPT
//     record. What has no readable header, or is itself an answer, is dropped;
//     what has one is answered FORMERR. Each case has its own counter in
//     [Stats].
//  2. The client's budget: a rate and a number of queries in flight. Over it
//     the answer is REFUSED, so that a client's library moves on at once
//     instead of waiting for a time-out. Other clients notice nothing.
//  3. Local data, which never leaves the process: extra hosts ([Config].Hosts),
//     names of links ([Names]), localhost, everything at and below
//     [Config].Domain, and the reverse names of [Config].Prefixes. A name that
//     exists without an address of the family asked for has an empty answer
//     (NODATA), a name that does not exist inside the own domain is NXDOMAIN;
//     both carry the zone's SOA record so that clients may cache them
//     (RFC 2308 §5).
//  4. With [Config].Internal anything else is REFUSED. Nothing that an internal
//     network asks is ever sent upstream, so DNS is no way out of it.
//  5. The cache, then the host's resolvers. Equal questions in flight share one
//     exchange.
//
// # Upstream
//
// The resolvers are those of [Config].Upstream, or else those of resolv.conf,
// which is looked at again (mtime, inode, size) at most once a second and only
// when a query needs it: VPNs that come and go are followed without a watcher.
// A loopback resolver such as 127.0.0.53 works, because it is this process that
// dials it and never the container. Search lists are parsed for whoever writes
// a container's resolv.conf ([ResolvConf]) and never applied here: a forwarder
// answers the name it was asked.
//
// Each exchange uses a new connected UDP socket (a source port chosen by the
// kernel, a random id, a kernel that discards other senders) and takes only an
// answer whose id and question are those sent. TC leads to TCP with the same
// server; silence, errors and SERVFAIL lead to the next one; a server that
// stayed silent is asked last for half a minute. A server that cannot do EDNS0
// is asked again without it.
//
// # Cache
//
// Bounded in entries and bytes, least recently used goes first. An entry lives
// for the lowest TTL of its records, negative answers by RFC 2308 §5, failures
// for one second (RFC 9520 §3.2). Entries belong to the list of resolvers they
// came from: another list, another cache. One Server serves one network, so
// nothing is learned across networks through it.
//
// # Goroutines
//
// [Server.ServePacket] runs on its caller's goroutine. An upstream exchange
// runs on one of its own so that a caller whose context ends does not take the
// answer away from those who share it; [Server.Close] cancels these and waits.
// ServeStream starts one writer and at most [Config].StreamInFlight workers and
// returns when all have ended.
package dns
