// Package redirect leads what is sent to a port of the host to a socket on
// another port, by nf_tables, for ports that a process other than the switch
// has to keep: podman and nerdctl reserve the ports that they publish by
// listening on them themselves.
//
// # Whose the rules are
//
// [Open] makes one table, in the current network namespace, and returns the
// netlink socket that owns it (NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h,
// since Linux 5.12). The kernel removes the table, with everything in it, when
// the last descriptor of that socket is closed, by whomever and for whatever
// reason. So there is nothing to take back: the plugin hands the descriptor to
// the daemon, which keeps it beside the socket that the rules lead to, and a
// plugin or a daemon that is killed at any moment leaves no rule that leads
// nowhere. Nobody else may change or delete the table; "nft flush ruleset" and
// the reload of a firewall pass it by.
//
// The daemon needs no privilege to hold the descriptor, and can do nothing
// with it but close it: the kernel asks for CAP_NET_ADMIN of the opener and of
// the sender of each request. So the rules of one request go together: of a
// publication that ends alone the rule stays until the others end, and leads to
// a closed port.
//
// # What is in a table
//
//	table inet usernet/web/3f2a…/eth0/5c1d09be { # flags owner
//		map any4 { type inet_proto . inet_service : inet_service; elements = { tcp . 8080 : 41523 } }
//		map ip4 { type ipv4_addr . inet_proto . inet_service : inet_service; … }
//		chain prerouting { type nat hook prerouting priority dstnat; … }
//		chain output { type nat hook output priority dstnat; … }
//	}
//
// One rule for each kind of host address (all of IPv4, one of IPv4, and the
// same of IPv6) looks the port up in a map, so that there is no rule per port
// and a table appears whole. The rules change the port and leave the address:
// the socket is bound to the very address that is published, and no other
// becomes reachable. "All" means the host's own addresses (fib daddr type
// local), never what the host forwards.
//
// # Datagrams
//
// Connection tracking remembers a UDP conversation for as long as it goes on,
// past the end of its table; a client that never falls silent would be led to
// a closed port for ever. [Open] and [Forget] make the kernel forget the
// conversations of a port.
package redirect
