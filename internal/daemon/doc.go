// Package daemon is the process that holds the networks: it binds the control
// API to leases, switches and their state on disk.
//
// # Theory of operation
//
// A [Daemon] has one switch (package netstack) per network, one address pool
// (package ipam) per name of a network, and one bbolt file for all of them. [Daemon.Run] takes the
// state directory's lock, opens the file, restores what it can, listens, and
// serves until its context ends or the daemon is idle. It needs no privilege:
// devices and low ports come as descriptors from the plugin. [DropPrivileges]
// gives up those of a daemon that was started as root.
//
// # Life of a link
//
// Attach runs named steps, each with an undo: intent (a record in state
// attaching), lease, device (the descriptor is checked and opened), switch,
// publish. The reply goes out with the link working but bound to the client's
// connection; Commit writes the record in state attached and unbinds it. When
// the connection ends first, because the client gave up or was killed, the link
// is removed. The same holds for ephemeral links at any time.
//
// What a link is limited to and called may be amended while it is attached
// (amend.go): all that is asked for or nothing, on disk before it is
// acknowledged.
//
// A link ends by DEL, by GC, with its connection as above, or by itself: when
// the container's namespace dies the device reports it and the link is removed
// with its lease, without DEL. A device that was made inside the namespace does
// not: it keeps that alive, is pinned. Such a link is taken only with the path at
// which the namespace is mounted, as runtimes mount it, and where this process
// sees that mount; reapEnded removes the link when the path leads elsewhere. What
// still runs in the namespace then has no network any more. Removal goes from the outside in (flows and
// publications, lease, record), so that an address is free only when nothing
// uses it.
//
// # Host links
//
// A link may ask for the host to reach it from one of the host's namespaces
// (hostNetns). The plugin then joins that namespace to the network once, with a
// TUN in it; the host link ends with the last link that asks for it, and its
// device with the descriptor, which takes the interface's addresses and routes
// away without any privilege. Nothing of it is on disk.
//
// # Bare leases
//
// IPAM plugins lease for interfaces that other plugins make: addresses without a
// link ([Daemon.Acquire]). Such a lease is one record in a pool (its note holds
// what the daemon has to know besides), made and ended by one write, with no
// intent and no connection that keeps it. Each network name has one pool, which
// the links of a network that leases its own draw from as well. The pool of a name
// that ever gave a bare lease is on record by itself and outlives the network; its
// ranges are those of the network, or without one of the latest request. A bare
// lease ends by release, by DEL of a link of its key, by GC, with the boot, or when
// reapEnded sees the path of its namespace lead elsewhere. It watches only paths
// at which this process saw the namespace when it leased: of another mount
// namespace's paths it would take every lease for dead.
//
// # Kill and restart
//
// Whatever is acknowledged was on disk before. The descriptors of TUNs and
// listeners live in this process alone, and go with it: after a crash or a
// restart the next daemon forgets intents, records of earlier boots and those of
// namespaces that are no more, and releases their leases (they rest in
// quarantine). The other committed links it lists as lost until DEL, GC, the end
// of their namespace or a new ADD, which gets the same addresses: they stay
// leased, so that nobody else is given them meanwhile. It does not pretend that
// lost links work. Networks stay, except that the configuration file alone decides about
// those that it defined.
//
// # Networks
//
// A network comes from the configuration file, from the API, or from the ranges
// of the first attach that names it; the last kind is redefined by an attach
// with other ranges once it has no links. No two networks overlap, and each
// switch refuses egress to the prefixes of all the others and to the host's own
// addresses, which are followed as they change.
//
// # Locks and goroutines
//
// One operation at a time works on a link (keyLocks), one at a time defines
// networks (lockDefinitions); both may be held over I/O. Daemon.mu guards the
// tables and is never held over I/O. Order: link key, definitions, Daemon.mu.
// pool.using comes between the two. Goroutines: link.watch per link, ending with
// its device; link.abandon, once, for a link whose connection ended; while serving,
// followHost, exitWhenIdle, answer, reapEnded and the one that tells it of mounts.
// Run waits for all of them.
//
// # Bounds
//
// An attach is refused when 90 % of the descriptors are in use. What a container
// can make the daemon hold is bounded by netstack's limits per link, which the
// configuration file sets.
package daemon
