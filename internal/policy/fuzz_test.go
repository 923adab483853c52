package policy

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// slow is Decide once more, written to be seen through: lists, loops, and the
// addresses' bytes. It shares no code and no table with the fast one.
type slow struct {
	rules       Rules
	hosts, bcts []netip.Addr
	links       []netip.Addr
}

func in(a netip.Addr, ps []netip.Prefix) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

func inAny(a netip.Addr, ps ...string) bool { return in(a, prefixes(ps...)) }

func slowPlain(a netip.Addr) netip.Addr {
	if b := a.As16(); a.Is6() && bytes.Equal(b[:12], []byte{10: 0xff, 11: 0xff}) {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return a.WithZone("")
}

func (s *slow) own(a netip.Addr) bool {
	return slices.Contains(s.rules.Gateways, a) || in(a, s.rules.Network)
}

// edge says whether a is the first or last address of one of the prefixes.
func (s *slow) edge(a netip.Addr) bool {
	for _, p := range s.rules.Network {
		free := p.Addr().BitLen() - p.Bits()
		if !p.Contains(a) || free < 2 {
			continue
		}
		if !p.Contains(a.Prev()) || a.Is4() && !p.Contains(a.Next()) {
			return true
		}
	}
	return false
}

func (s *slow) judge(a netip.Addr) Reason {
	if r := s.judgeOne(a); r != ReasonNone {
		return r
	}
	for _, v4 := range slowEmbedded(a) {
		if s.judgeOne(v4) != ReasonNone {
			return ReasonEmbedded
		}
	}
	return ReasonNone
}

func (s *slow) judgeOne(a netip.Addr) Reason {
	switch {
	case inAny(a, "127.0.0.0/8", "::1/128"):
		return ReasonLoopback
	case inAny(a, "0.0.0.0/8", "::/128"):
		return ReasonThisNetwork
	case inAny(a, "224.0.0.0/4", "ff00::/8"):
		return ReasonMulticast
	case a == addr("255.255.255.255"), slices.Contains(s.bcts, a):
		return ReasonBroadcast
	case s.own(a):
		return ReasonNoSuchLink
	case in(a, s.rules.Refuse):
		return ReasonOtherNetwork
	case in(a, s.rules.Allow):
		return ReasonNone
	case slices.Contains(s.hosts, a):
		return ReasonHostAddress
	case slices.Contains(addrs("169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200",
		"192.0.0.192", "fe80::a9fe:a9fe", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"), a):
		return ReasonMetadata
	case inAny(a, "169.254.0.0/16", "fe80::/10"):
		return ReasonLinkLocal
	case inAny(a, "240.0.0.0/4"):
		return ReasonReserved
	}
	return ReasonNone
}

// slowEmbedded lists the IPv4 addresses in a by RFC 6052's table: for each
// prefix length where the four bytes lie and which bytes must be zero.
func slowEmbedded(a netip.Addr) (out []netip.Addr) {
	if a.Is4() {
		return nil
	}
	b := a.As16()
	at := func(i, j, k, l int, not byte) {
		out = append(out, netip.AddrFrom4([4]byte{b[i] ^ not, b[j] ^ not, b[k] ^ not, b[l] ^ not}))
	}
	zero := func(is ...int) bool {
		return !slices.ContainsFunc(is, func(i int) bool { return b[i] != 0 })
	}
	if inAny(a, "64:ff9b:1::/48") {
		if zero(8, 11, 12, 13, 14, 15) {
			at(6, 7, 9, 10, 0)
		}
		if zero(8, 12, 13, 14, 15) {
			at(7, 9, 10, 11, 0)
		}
		short := zero(8, 13, 14, 15)
		if short {
			at(9, 10, 11, 12, 0)
		}
		if !short || !zero(12) {
			at(12, 13, 14, 15, 0)
		}
		return out
	}
	switch {
	case inAny(a, "64:ff9b::/96", "::/96", "::ffff:0:0:0/96"):
		at(12, 13, 14, 15, 0)
	case inAny(a, "2002::/16"):
		at(2, 3, 4, 5, 0)
	case inAny(a, "2001::/32"):
		at(4, 5, 6, 7, 0)
		at(12, 13, 14, 15, 0xff)
	case binary.BigEndian.Uint32(b[8:]) == 0x00005efe, binary.BigEndian.Uint32(b[8:]) == 0x02005efe:
		at(12, 13, 14, 15, 0)
	}
	return out
}

func (s *slow) decide(f Flow) Verdict {
	no := func(r Reason) Verdict {
		if r == ReasonMulticast || r == ReasonBroadcast || r == ReasonFamily || r == ReasonInvalid {
			return Verdict{Reason: r}
		}
		return Verdict{Action: Reject, Reason: r}
	}
	dst := slowPlain(f.Dst.Addr())
	if slowPlain(f.Src.Addr()).Is4() != dst.Is4() {
		if f.Dst.Addr().Is4() || dst.Is6() || f.Origin != FromContainer {
			return no(ReasonFamily)
		}
		if r := s.judge(dst); r != ReasonNone {
			return no(r)
		}
		return no(ReasonEmbedded)
	}
	if f.Origin != FromContainer && f.Origin != FromHost {
		return no(ReasonInvalid)
	}
	goTo := func(t Target) Verdict {
		return Verdict{Action: Forward, Target: t, Addr: netip.AddrPortFrom(dst, f.Dst.Port())}
	}
	if slices.Contains(s.rules.Gateways, dst) {
		if f.Origin == FromHost {
			return no(ReasonNoService)
		}
		return s.gateway(f, dst, goTo, no)
	}
	if s.own(dst) {
		switch {
		case s.edge(dst):
			return no(ReasonBroadcast)
		case slices.Contains(s.links, dst):
			return goTo(TargetLink)
		}
		return no(ReasonNoSuchLink)
	}
	if r := s.judge(dst); r == ReasonMulticast || dst == addr("255.255.255.255") {
		return no(r)
	}
	if f.Origin == FromHost {
		if in(dst, s.rules.Refuse) {
			return no(ReasonOtherNetwork)
		}
		return no(ReasonNoSuchLink)
	}
	if !slices.ContainsFunc(s.rules.Network, func(p netip.Prefix) bool { return p.Addr().Is4() == dst.Is4() }) {
		return no(ReasonFamily)
	}
	if s.rules.Internal {
		return no(ReasonInternal)
	}
	if r := s.judge(dst); r == ReasonHostAddress && f.Published {
		return s.published(goTo, no)
	} else if r == ReasonOtherNetwork && f.Joined {
		return no(ReasonNoSuchLink)
	} else if r != ReasonNone {
		return no(r)
	}
	return goTo(TargetEgress)
}

func (s *slow) published(goTo func(Target) Verdict, no func(Reason) Verdict) Verdict {
	if s.rules.NoHairpin {
		return no(ReasonHairpin)
	}
	return goTo(TargetPublication)
}

func (s *slow) gateway(f Flow, dst netip.Addr, goTo func(Target) Verdict, no func(Reason) Verdict) Verdict {
	transport := f.Proto == 6 || f.Proto == 17
	if transport && f.Dst.Port() == 53 {
		return goTo(TargetDNS)
	}
	for _, svc := range s.rules.Services {
		if transport && svc.Proto == f.Proto && svc.Port == f.Dst.Port() {
			return Verdict{Action: Forward, Target: TargetHostService, Addr: svc.Target}
		}
	}
	if transport && f.Published && !s.rules.Internal {
		return s.published(goTo, no)
	}
	if f.Proto == 1 && dst.Is4() || f.Proto == 58 && dst.Is6() {
		return goTo(TargetGateway)
	}
	return no(ReasonNoService)
}

// fuzzAddr takes an address from 16 bytes: IPv4 from the last four when wanted.
func fuzzAddr(b []byte, v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte(b[12:16]))
	}
	return netip.AddrFrom16([16]byte(b[:16]))
}

// order takes rules from the menu; p is put where it says.
func (s *slow) order(menu uint16, p netip.Prefix) {
	s.rules.Internal = menu&1 != 0
	if menu&2 != 0 {
		s.rules.Network = append(s.rules.Network, p)
	}
	if menu&4 != 0 {
		s.rules.Refuse = append(s.rules.Refuse, p)
	}
	if menu&8 != 0 {
		s.rules.Allow = append(s.rules.Allow, p)
	}
	if menu&16 != 0 {
		s.rules.Network = s.rules.Network[:1]
	}
	s.rules.NoHairpin = menu&32 != 0
}

// FuzzDecide: the fast Decide and CheckDial agree with the slow ones, for rules
// put together from a menu and from prefixes of the input's own.
func FuzzDecide(f *testing.F) {
	for _, d := range destinations {
		for i, s := range []string{d.v4, d.v6} {
			if s == "" {
				continue
			}
			b := addr(s).As16()
			for _, menu := range []uint16{0, 1, 2, 4, 8, 0x1f, 32, 64, 65, 96, 128} {
				f.Add(b[:], b[:], i == 0, uint8(6), uint16(443), menu, uint8(24), uint8(1))
				f.Add(b[:], b[:], false, uint8(17), uint16(53), menu, uint8(48), uint8(2))
			}
		}
	}
	f.Fuzz(func(t *testing.T, dst, own []byte, v4 bool, proto uint8, port, menu uint16, bits, origin uint8) {
		if len(dst) != 16 || len(own) != 16 {
			return
		}
		s := &slow{rules: testRules(), hosts: slices.Clone(testHostAddrs), bcts: testBroadcasts, links: testLinks}
		for i, a := range s.hosts {
			s.hosts[i] = a.WithZone("")
		}
		ownAddr := fuzzAddr(own, v4)
		if ownAddr.Is4In6() {
			return
		}
		ownPrefix, err := ownAddr.Prefix(int(bits) % (ownAddr.BitLen() + 1))
		if err != nil {
			t.Fatal(err)
		}
		s.order(menu, ownPrefix)
		table, err := Compile(s.rules)
		if err != nil {
			return // the menu made rules that Compile refuses
		}
		flow := Flow{Origin: Origin(origin % 4), Proto: proto, Dst: netip.AddrPortFrom(fuzzAddr(dst, v4), port)}
		flow.Published, flow.Joined = menu&64 != 0, menu&128 != 0
		flow.Src = containerAddr(flow.Dst.Addr())
		got := table.Decide(flow, NewHostAddrs(s.hosts, s.bcts), isTestLink)
		if want := s.decide(flow); got != want {
			t.Errorf("rules %+v, flow %+v: got %+v, slow version says %+v", s.rules, flow, got, want)
		}
		want := s.judge(slowPlain(flow.Dst.Addr()))
		if s.rules.Internal {
			want = ReasonInternal
		}
		if got := table.CheckDial(flow.Dst.Addr(), NewHostAddrs(s.hosts, s.bcts)); got != want {
			t.Errorf("rules %+v: CheckDial(%v) = %v, slow version says %v", s.rules, flow.Dst.Addr(), got, want)
		}
	})
}
