package netns

import "net/netip"

// Interface says what a container's interface is to look like.
type Interface struct {
	// Name in the target namespace, honoured exactly; at most 15 bytes.
	Name string
	// Addrs are the interface's addresses, each with its subnet's length.
	Addrs []netip.Prefix
	// Routes lead through the interface.
	Routes []Route
	// MTU in bytes; 0 leaves the device's own.
	MTU int
}

// Route is a route through an Interface.
type Route struct {
	// Dst is where the route leads; of length 0 for a default route.
	Dst netip.Prefix
	// Gateway is the next hop; it need not be in a subnet of the interface.
	// Zero: none, the destination is on the link.
	Gateway netip.Addr
	// MTU and AdvMSS in bytes; 0 leaves the kernel's defaults.
	MTU, AdvMSS int
	// Priority is the metric; 0 means the kernel's default.
	Priority int
	// Table is the routing table; 0 means main.
	Table int
	// Scope as in rtnetlink; 0 means universe with a gateway and link
	// without.
	Scope int
}
