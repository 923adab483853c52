// Package usernet runs commands in networks of their own, without root, bridges
// or firewall rules.
//
// [Command] is an [exec.Cmd] with a network: a TUN device in namespaces of the
// command's, and a switch in this process that connects it with the outside
// through ordinary sockets. Programs that use it call [Init] first in main:
//
//	func main() {
//		usernet.Init()
//		cmd := usernet.Command("curl", "-s", "https://example.com")
//		cmd.Stdout = os.Stdout
//		if err := cmd.Run(); err != nil {
//			log.Fatal(err)
//		}
//	}
//
// Several commands share a [Network], in which they find each other by name.
// What a command gets: IPv4 and IPv6, a resolver that knows the network's names
// and forwards the rest, ping, the outside, published ports. What it does not
// get: the host's loopback and the host's own addresses, unless a
// [netstack.HostService] opens a single port of them.
//
// # Map of the module
//
// Programs with namespaces of their own, such as container runtimes, use the
// parts directly:
//
//   - [github.com/usernet/usernet/netstack] is the switch: links, NAT,
//     publications, DNS, policy, flows. Its documentation tells the life of a
//     packet and of a flow.
//   - [github.com/usernet/usernet/tunnel] makes, checks and opens TUN
//     descriptors, and wraps devices of wireguard's tun package.
//   - [github.com/usernet/usernet/ipam] leases addresses, durably.
//
// Beside the library there are two programs. cmd/usernet is the command line:
// run, the daemon that holds networks for containers, and its clients.
// cmd/usernet-cni is the CNI plugin, which asks the daemon.
//
// # Requirements
//
// Linux with /dev/net/tun that the caller may open, and either root or the right
// to make user namespaces. "usernet doctor" says what a machine lacks, and so do
// the errors of [Cmd.Start].
package usernet
