package policy

import (
	"net/netip"
	"slices"
)

// Decide gives the verdict on f. host is the host's own addresses at this
// moment; isLink says whether a link of this network has an address, and nil
// says that none has. Decide takes no lock, allocates nothing and changes
// nothing, so it may be called for every packet.
//
// The order is: the gateway; this network; what no network forwards (multicast,
// broadcast); a family that the network lacks; an internal network's border;
// then the outside, judged as CheckDial does. TargetEgress is given for every IP
// protocol: one that the switch cannot carry outside is for the switch to
// reject.
func (t *Table) Decide(f Flow, host *HostAddrs, isLink func(netip.Addr) bool) Verdict {
	if t == nil || !f.Dst.Addr().IsValid() {
		return refused(ReasonInvalid)
	}
	dst, src := plain(f.Dst.Addr()), f.Src.Addr()
	if src.IsValid() && src.Unmap().Is4() != dst.Is4() {
		return refused(t.mixed(f, dst, host))
	}
	switch f.Origin {
	case FromContainer:
		return t.fromContainer(f, dst, host, isLink)
	case FromHost:
		return t.fromHost(f, dst, isLink)
	}
	return refused(ReasonInvalid)
}

// refused is the verdict that names r.
func refused(r Reason) Verdict {
	if r.silent() {
		return Verdict{Action: Drop, Reason: r}
	}
	return Verdict{Action: Reject, Reason: r}
}

func forward(to Target, addr netip.Addr, port uint16) Verdict {
	return Verdict{Action: Forward, Target: to, Addr: netip.AddrPortFrom(addr, port)}
}

// mixed is the reason to refuse a flow whose ends differ in family. The likely
// one is an IPv6 packet to an IPv4-mapped address: what the sender is after
// tells more than that it may not be written so.
func (t *Table) mixed(f Flow, dst netip.Addr, host *HostAddrs) Reason {
	if !f.Dst.Addr().Is4In6() || f.Origin != FromContainer {
		return ReasonFamily
	}
	if r := t.judge(dst, host); r != ReasonNone {
		return r
	}
	return ReasonEmbedded
}

func (t *Table) fromContainer(f Flow, dst netip.Addr, host *HostAddrs, isLink func(netip.Addr) bool) Verdict {
	// The network's own addresses come first for speed: they take the path on
	// which every packet asks, and Compile keeps them apart from noise.
	if slices.Contains(t.gateways, dst) {
		return t.toGateway(f, dst)
	}
	if v, ok := t.toNetwork(dst, f.Dst.Port(), isLink); ok {
		return v
	}
	switch {
	case isNoise(dst):
		return refused(classes[Classify(dst)].reason)
	case dst.Is4() && !t.has4 || dst.Is6() && !t.has6:
		return refused(ReasonFamily)
	case t.internal:
		return refused(ReasonInternal)
	}
	switch r := t.judge(dst, host); {
	case r == ReasonHostAddress && f.Published:
		return t.toPublication(f, dst)
	case r == ReasonOtherNetwork && f.Joined:
		return refused(ReasonNoSuchLink) // else the packet would not have come here
	case r != ReasonNone:
		return refused(r)
	}
	return forward(TargetEgress, dst, f.Dst.Port())
}

// toPublication decides about a port of the host's own address that leads to a
// link: the one part of the host that whoever published it has opened. It is
// never dialled by way of the host, whose other services stay out of reach even
// if the publication ends meanwhile.
func (t *Table) toPublication(f Flow, dst netip.Addr) Verdict {
	if t.noHairpin || f.OwnPort {
		return refused(ReasonHairpin)
	}
	return forward(TargetPublication, dst, f.Dst.Port())
}

// isNoise says whether a is multicast or the limited broadcast.
func isNoise(a netip.Addr) bool {
	c := Classify(a)
	return c == ClassMulticast || c == ClassBroadcast
}

// toGateway decides about what the gateway itself serves.
func (t *Table) toGateway(f Flow, dst netip.Addr) Verdict {
	port := f.Dst.Port()
	switch f.Proto {
	case protoTCP, protoUDP:
		if port == portDNS {
			return forward(TargetDNS, dst, port)
		}
		if target, ok := t.services[servicePort{f.Proto, port}]; ok {
			return Verdict{Action: Forward, Target: TargetHostService, Addr: target}
		}
		if f.Published && !t.internal { // on all of the host's addresses, of which the gateway is one
			return t.toPublication(f, dst)
		}
	case protoICMP:
		if dst.Is4() {
			return forward(TargetGateway, dst, port)
		}
	case protoICMPv6:
		if dst.Is6() {
			return forward(TargetGateway, dst, port)
		}
	}
	return refused(ReasonNoService)
}

// toNetwork decides about the addresses of this network; false for others.
// Nothing in the network's prefixes ever leaves it.
func (t *Table) toNetwork(dst netip.Addr, port uint16, isLink func(netip.Addr) bool) (Verdict, bool) {
	if !t.network.Lookup(dst) {
		return Verdict{}, false
	}
	if slices.Contains(t.edges, dst) {
		return refused(ReasonBroadcast), true
	}
	if isLink == nil || !isLink(dst) {
		return refused(ReasonNoSuchLink), true
	}
	return forward(TargetLink, dst, port), true
}

// fromHost decides about flows into the network: publications and dials through
// the switch. They lead to links and nowhere else.
func (t *Table) fromHost(f Flow, dst netip.Addr, isLink func(netip.Addr) bool) Verdict {
	if slices.Contains(t.gateways, dst) {
		return refused(ReasonNoService)
	}
	if v, ok := t.toNetwork(dst, f.Dst.Port(), isLink); ok {
		return v
	}
	switch {
	case isNoise(dst):
		return refused(classes[Classify(dst)].reason)
	case t.refuse.Lookup(dst):
		return refused(ReasonOtherNetwork)
	}
	return refused(ReasonNoSuchLink)
}

// CheckDial judges the address that an egress socket is about to connect or
// send to, after every rewrite: in net.Dialer.Control and before a UDP send.
// ReasonNone allows it. It does not serve TargetHostService, whose address the
// rules name. A nil Table and an internal network allow nothing.
func (t *Table) CheckDial(final netip.Addr, host *HostAddrs) Reason {
	switch {
	case t == nil || !final.IsValid():
		return ReasonInvalid
	case !t.has4 && !t.has6:
		return ReasonInvalid // no rules: the zero Table
	case t.internal:
		return ReasonInternal
	}
	return t.judge(plain(final), host)
}

// judge is the baseline for a, a plain address outside: what is always refused
// unless it is opened by name. An IPv6 address is judged with every IPv4 address
// that it may lead to.
func (t *Table) judge(a netip.Addr, host *HostAddrs) Reason {
	if r := t.judgeAlone(a, host); r != ReasonNone {
		return r
	}
	e := embeddedIn(a)
	for _, v4 := range e.addrs[:e.n] {
		if t.judgeAlone(v4, host) != ReasonNone {
			return ReasonEmbedded
		}
	}
	return ReasonNone
}

// judgeAlone is judge without a look at embedded addresses.
func (t *Table) judgeAlone(a netip.Addr, host *HostAddrs) Reason {
	class := Classify(a)
	switch {
	case neverAllowed(class):
		return classes[class].reason
	case host.isBroadcast(a):
		return ReasonBroadcast
	case t.isOwn(a):
		return ReasonNoSuchLink
	case t.refuse.Lookup(a):
		return ReasonOtherNetwork
	case t.allow.Lookup(a):
		return ReasonNone
	case host.Contains(a):
		return ReasonHostAddress
	}
	return classes[class].reason
}

// isOwn says whether a lies in this network or is its gateway: the host has no
// business to dial it, since no packet of the network leaves by the host.
func (t *Table) isOwn(a netip.Addr) bool {
	return slices.Contains(t.gateways, a) || t.network.Lookup(a)
}
