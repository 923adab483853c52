// Package sandbox runs a command in a network of its own.
//
// # Two processes
//
// The parent is the program that calls [Start]. It stays in its own namespaces,
// where the sockets of the sandbox's traffic are opened, and needs no privilege.
// The child is the same executable started again in new network, mount and,
// when the parent lacks the right to make those, user namespaces. [Init] is its
// entry. It prepares the namespaces and then becomes the command by execve: the
// process that the parent started, waits for and signals is the command itself,
// with its environment, directory, descriptors, process group and terminal.
//
// # Life of a sandbox
//
// Both sides are joined by a socket pair, and take turns:
//
//  1. The child creates a TUN device in its network namespace, sends the TUN's
//     descriptor, and prepares what needs no settings.
//  2. The parent attaches the descriptor to a [Network], which leases
//     addresses and publishes ports, and sends the child its settings.
//  3. The child configures the device, puts the generated resolv.conf and hosts
//     in place of the machine's, gives up every privilege that the caller did
//     not have, and says that it is ready.
//  4. The parent commits the link and lets the child go on.
//  5. The child calls execve. Its end of the socket closes with that: the
//     parent reads the end of the stream, or the reason why execve failed.
//
// A TUN that is created in the namespace where it is used keeps that namespace
// alive as long as its descriptor is open, silently; one that is moved in reports
// the namespace's end. Moving takes the kernel 16 to 28 ms, though, half of a
// sandbox's start, and here the parent sees the sandbox's end without the device's
// help: [Process.awaitEnd].
//
// The device is persistent: it ends with its namespace, which the kernel clears
// away by itself. Removing it at the last close of its descriptor would make
// every sandbox's end wait some 20 ms.
//
// # What is left when something ends
//
// Each step of the parent's has an undo. Everything that the child made lives in
// its namespaces and goes with the last process in them. The command is killed
// when the thread that started it ends (PR_SET_PDEATHSIG), so the goroutine
// [Process.spawn] holds its thread until the command has been waited for. What
// the command has started is killed by the reaper, a process beside the parent
// that waits for the parent's death and does nothing else.
//
// A command that ends by itself may leave processes behind, as it may anywhere;
// they go on without a network: the device has no carrier, and the routes through
// it count as none.
//
// # Name files
//
// The generated resolv.conf and hosts are bound over the machine's, in the
// command's mount namespace alone. When the machine replaces its file by another
// (rename over it, as network managers do), the kernel takes the bind off, and
// the command sees the machine's file from then on: names that its own resolver
// answers are no longer found by it, unless the machine's resolvers can be
// reached. Long-running commands on machines that change networks are the ones
// concerned.
//
// # What this is not
//
// The sandbox separates networks. It hides no files and no processes, and a
// command that runs as root can leave it.
package sandbox
