// Package plugin is usernet's CNI executable as a library: the six verbs of
// the CNI specification (0.1.0 to 1.1.0) as a thin client of the daemon. It is
// the only package that imports the CNI libraries, and it never imports the
// packet path, so that the executable stays small and starts fast: podman runs
// VERSION of every plugin of every network on every command.
//
// # Theory of operation
//
// [Run] is one invocation: a [Process] goes in (environment, standard streams),
// an exit status comes out. It reads nothing else of the process, so that tests
// run invocations in-process and several at once.
//
// The environment and the configuration are judged completely before anything
// is touched: an unknown key, a value out of range or a namespace that is no
// namespace leaves the machine as it was. DEL is the exception: it takes what
// it can understand (network name, container, interface) and succeeds whatever
// else is missing.
//
// # Life of an ADD
//
//  1. Judge: environment, version, configuration, capability arguments, the
//     namespace (it must be one, and not the plugin's own), the interface name
//     (it must be free).
//  2. The device. Where CNI_NETNS is a path at which the daemon may see the
//     container's end, a mount as most runtimes make it, it is made in the
//     container's namespace, which its descriptor then keeps alive. For other
//     paths (/proc/PID/ns/net), and where the daemon refuses in step 5 for lack of
//     sight, it is made in the plugin's own namespace and sent into the
//     container's at once: such a device's death is visible at its descriptor, but
//     the kernel takes more time for the move than everything else takes, and
//     the next steps go on meanwhile.
//  3. Addresses: the IPAM plugin that ipam.type names is run, or, for
//     ipam.type "usernet", the daemon leases them in step 5.
//  4. One listening socket for each port mapping and address family (see
//     "Published ports"), in the plugin's own namespace, where the runtime's
//     users expect them (a rootless runtime runs plugins in a namespace of its
//     own).
//  5. The daemon gets the descriptors and answers with the addresses. The link
//     is uncommitted: it ends with the connection, so a plugin that dies here
//     leaves nothing; and the device ends with the plugin's descriptor and the
//     daemon's, wherever it is on its way.
//  6. A device on its way is awaited in the container. With the namespace locked against
//     other ADDs it is given addresses and routes, set up, and compared with
//     what was wanted. Default routes of several networks get metrics by
//     the number in the interface's name, so that eth0's is the one in use. Then the
//     sysctls of the configuration are set.
//  7. With "hostAccess", the host's side of the network, unless it is there.
//  8. Commit, then the result is printed in the configuration's version.
//
// Every step puts its inverse on an undo list, which runs in reverse when a
// later step fails; the last step is the printing, because a runtime that did
// not get the result does not know what it would have to delete.
//
// # Addresses
//
// For ipam.type "usernet", the default, the keys of ipam are host-local's, with
// its choice of addresses, so that a configuration moves over by changing the
// type: "ranges" (or "subnet", "rangeStart", "rangeEnd", "gateway" of one
// range), "routes", "resolvConf", and "dataDir", which has no effect since the
// daemon keeps the leases. A container gets one address of every set, those of
// the capability ipRanges first. Unlike with host-local an address rests for
// 60 s after its container has gone, while others are free.
//
//	"ipam": {"ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]], "sticky": true}
//
// With "sticky" a container gets the addresses again that the last container of
// its name had on this network and interface, as far as nobody else has them,
// over restarts of the daemon and of the machine. The name is K8S_POD_NAMESPACE
// and K8S_POD_NAME of CNI_ARGS (podman gives a container's name as the latter)
// or nerdctl's NERDCTL_CNI_DHCP_HOSTNAME; without any of them, as with
// cnitool, the key has no effect. Addresses that were asked for go first.
//
// # TUN or TAP
//
// The key "device" of the configuration says what the container gets: "tun",
// the default, carries IP packets; "tap" carries Ethernet frames to a switch
// that answers for every neighbour (package tunnel), for guests that want a
// wire. The TAP's MAC address is the one that the runtime asked for (CNI_ARGS
// MAC, args.cni.mac, capability mac) or a random one, is what the result
// reports, and is what CHECK looks for.
//
// A TUN has no Ethernet header and hence no MAC address. Results carry one
// nevertheless, because podman refuses a result without: random and locally
// administered, or the one that the runtime asked for (podman network reload
// asks for the one it was told). It is reported and never on a wire.
//
// # DHCP
//
// ipam.type "dhcp" is the reference IPAM plugin, whose daemon asks for an IPv4
// address on the container's interface and renews it. It needs a TAP. The
// switch answers with the address that the daemon has leased to the link, by
// whose end alone it is freed, so nothing depends on the client: DEL has it
// release and goes on when its daemon is gone. Step 3 is empty then, and the
// daemon leases in step 5, from ipam.ranges (the IPAM plugin takes no notice of
// that key) or from the network of this name. Step 6 brings the device up
// without an IPv4 address, runs the IPAM plugin, and configures what it
// returned, which must be the link's. IPv6 addresses are configured as without
// DHCP; DHCPv6 and router advertisements are not served.
//
// Clients inside a container with a TAP are answered too, whichever the type.
//
// # Published ports
//
//	"publish": {"mode": "auto", "defaultHostIP": "127.0.0.1"}
//
// A port mapping without hostIP is published at defaultHostIP, and without that
// at every address of the host, as the reference plugin portmap does and as
// runtimes promise their users; of each family that the container has. One that
// is named may be of the other: the container sees the gateway then. A port
// in use is code 100, which names the holder. The mode says how:
//
//   - listen: the plugin opens a socket on the host port, with its caller's
//     rights and in its caller's namespace, and hands it to the daemon.
//   - redirect: the socket is on another port of the same address, and a rule of
//     nf_tables leads there (package redirect), from the host itself and from
//     elsewhere, past whoever listens on the host port. The client's address is
//     kept. The rule lives by a descriptor that the daemon holds beside the
//     socket: it goes with the link, the publication or the daemon, even if
//     killed, and needs no clean-up by DEL, GC or anybody. It needs Linux 5.12
//     and CAP_NET_ADMIN in the plugin's namespace; without, code 105 says so.
//     Ports that usernet publishes for another container are never taken.
//   - auto, the default: listen, and redirect only where the calling runtime
//     keeps the port for this very container: the runtime's process holds it, or
//     a child of that (nerdctl's "sleep infinity"), or the container's conmon.
//     And for root's podman, which listens on published ports itself after the
//     ADD and fails when the plugin does, unless enable_port_reservation =
//     false in containers.conf, which is read for it. A port of any other
//     process is an error.
//   - none: mappings are accepted and not published, for runtimes that see to
//     them themselves (CRI-O).
//
// # Sysctls, routes, MTU
//
// The key "sysctl" ({"net.ipv4.ip_default_ttl": "33"}) is the reference plugin
// tuning's: keys below net. alone, written with dots or slashes, where a part
// IFNAME stands for the container's interface; args.cni.sysctl beats it key by
// key. A failing ADD sets them back, a DEL does not, as with the reference.
//
// The key "routes" adds routes to those of "ipam" or, where ipam has none, to
// the default routes: dst, gw (without: the gateway, unless scope is link's, 253,
// or narrower), mtu, advmss, priority, table and scope. Routes without a priority that lead where the container has
// a route already get a worse one, so that two networks of a container may both
// bring a default route. The result of version 1.1.0 tells all of it, and CHECK
// compares what the result tells, the sysctls and the MTU with the kernel.
//
// # Host access
//
// With "hostAccess": {"enabled": true} the plugin's own namespace, the node's as
// a rule, reaches the containers at their addresses: kubelet's probes, a
// runtime's own port forwarding and users of the bridge plugin take that for
// granted. The host's side of a network is a TUN in that namespace, called
// "ifname" or "un-" and the network's name, with the gateway's addresses, which
// bring a route for each of the network's prefixes. The first ADD makes it; later
// ones find it, by its alias and in the daemon's word, and mend it when it is
// down, lacks an address or was left half-made by a plugin that was killed. The
// daemon closes it with the last link that asked for it, by DEL, GC or
// otherwise; when the daemon dies it dies, too, and the next ADD makes another.
// Nothing has to be deleted by a plugin, and so nothing is left when none runs.
//
// There is one for each network and namespace that plugins run in; rootless
// runtimes have namespaces of their own. A route or an address that the host has
// already, be it another network's, is an error that names it, as is an interface
// of the same name. Containers gain no way to the host (package netstack). Only
// packets of the host's own addresses enter; with "forward": true also what the
// host forwards for others, which CRI-O's hostPort rules need and which opens
// every port of the containers to whoever the host forwards for.
//
// In the result the host's interface comes first, without sandbox, as the
// reference plugins have it: firewall takes the first for the network's bridge.
//
// # Names in DNS
//
// The network's resolver, at its gateways, answers the name that the runtime has
// for the container: podman's, nerdctl's hostname, and for a pod POD.NAMESPACE,
// because pods of one name in two namespaces are strangers. The bare name of a
// pod is found by "NAMESPACE.usernet.internal" among the search domains. The
// capability aliases adds names, which several containers may share. All are
// found as they are and below usernet.internal; with "dns": {"domain": D} also
// below D, and the container's addresses resolve back to its name there. What
// nobody of the network is called below D is asked of the host's resolvers, as
// D may be a domain that others have names in. For the same reason the search
// domains ("search") name nobody: they are what the container's own resolver
// tries. A name belongs to the link that had it first.
//
// # Bandwidth
//
// The capability bandwidth, and the keys ingressRate, ingressBurst, egressRate
// and egressBurst of the configuration, are limits that the switch keeps; the
// stricter holds. Ingress is into the container. A burst that stands for "no
// choice" (containerd's, CRI-O's) is what the rate carries in 50 ms.
//
// # Policy
//
// The key "ingressPolicy" has the values of the reference plugin firewall, and
// says from where flows come to the network's containers: "same-bridge", the
// default here, from the same network; "open", the reference's default, from
// other networks that are open as well; "isolated" from no container, not even
// of the same network. Published ports are open in any case. Where the
// reference looks at the origin's policy alone, both networks have to be open
// here. "portIsolation" keeps the containers of a network apart as isolated
// bridge ports do: they reach the gateway, the outside, published ports, and
// other open networks. An internal network is joined with no other; ports that
// are published from it work, for who publishes a port opens it.
//
// "hairpin", true unless said otherwise, lets the network's containers reach
// published ports, their own among them, at the host's addresses. The
// publication's container sees the gateway as the client.
//
// All are properties of the network. The last ADD's word counts, also for the
// containers that are there; a network that was made through the API or by the
// daemon's configuration refuses an ADD that wants it otherwise.
//
// # Names of the reference plugins
//
// The program's own name, os.Args[0], decides what it is: [DropInNames], or else
// the plugin of type "usernet". bridge is an ADD as above whose configuration is
// the reference's: a TAP, addresses of host-local leased by the daemon, no name
// servers and no routes that nobody asked for; without "ipam" an interface that
// has no addresses and carries nothing, since the switch forwards IP between
// addresses that it knows, and no Ethernet. "hairpinMode": false, which nobody gets
// who does not say so, keeps a container from its own published ports and from
// nothing else. "vlan", "vlanTrunk" and "disableContainerInterface" are errors
// unless they are off; "forceAddress", "ipMasqBackend", "macspoofchk",
// "enabledad" and, in the switch, "promiscMode" have nothing to change. The
// names that stand behind it in a list amend the daemon's link of the same
// network, container and interface: portmap publishes in one request, all ports
// or none, bandwidth limits, dnsname adds names and points the result to the
// network's resolver, firewall sets the network's policy. tuning and loopback do
// their work in the container's namespace and need no daemon. A name that has
// nothing to do passes the result on; one that would have no effect, because
// what stands before it is not usernet's, is an error. DEL of each takes its
// part back, and DEL of bridge everything. Keys that nobody knows are ignored
// under these names, since
// runtimes leave notes in their lists.
//
// host-local is an IPAM plugin: any plugin that makes an interface may run it with
// its own configuration, of which "ipam", two capability arguments, args and the
// version are read. The daemon leases; the result has addresses, routes and DNS and
// no interface. It touches nothing in the container's namespace, and looks only
// which it is, so that the daemon can see its end. "ipam" may say "socket" and
// "autostart", too; without, those of the running plugin hold if that is
// usernet's.
//
// # The daemon is not there
//
// ADD, GC and STATUS start it unless the configuration says "autostart": false.
// CHECK reports its absence, but that of host-local starts it: leases outlive a
// daemon. One that goes while it is asked is asked again when
// it is back, or the ADD fails as a whole with code 11. DEL never starts it: it removes what it can reach,
// writes a tombstone beside the socket (package control), which the next daemon
// replays before it serves, and succeeds. VERSION does not look for it.
package plugin
