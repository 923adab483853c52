package policy

import (
	"fmt"
	"net/netip"
	"testing"
)

// destination is one row of the table: a class of destination with an example
// per family, and what every protocol gets. A family without an example has no
// such class.
type destination struct {
	class     string
	v4, v6    string
	container map[string]Verdict // by protocol; "*" for the others
	hostFlow  Verdict            // the same for every protocol
}

func all(v Verdict) map[string]Verdict { return map[string]Verdict{"*": v} }

func drop(r Reason) Verdict   { return Verdict{Action: Drop, Reason: r} }
func reject(r Reason) Verdict { return Verdict{Action: Reject, Reason: r} }
func to(t Target) Verdict     { return Verdict{Action: Forward, Target: t} }

// protocols are the columns: the port is the destination's.
var protocols = []struct {
	name  string
	proto uint8
	port  uint16
}{
	{"tcp", protoTCP, 443},
	{"tcp/53", protoTCP, 53},
	{"tcp/8080", protoTCP, 8080},
	{"tcp/8125", protoTCP, 8125},
	{"udp", protoUDP, 443},
	{"udp/53", protoUDP, 53},
	{"udp/8080", protoUDP, 8080},
	{"udp/8125", protoUDP, 8125},
	{"icmp", 0, 77}, // the family's own
	{"icmp/other", 255, 77},
	{"sctp", 132, 0},
	{"esp", 50, 0},
	{"hopopt", 0, 0},
}

// outside is what the host gets for all that is no link.
var outside = reject(ReasonNoSuchLink)

var destinations = []destination{
	{"link", "10.5.0.9", "fd05::9", all(to(TargetLink)), to(TargetLink)},
	{"no link", "10.5.0.77", "fd05::77", all(reject(ReasonNoSuchLink)), outside},
	{"network address", "10.5.0.0", "fd05::", all(drop(ReasonBroadcast)), drop(ReasonBroadcast)},
	{"network broadcast", "10.5.0.255", "", all(drop(ReasonBroadcast)), drop(ReasonBroadcast)},
	{"highest address", "", "fd05::ffff:ffff:ffff:ffff", all(reject(ReasonNoSuchLink)), outside},
	{"gateway", "10.5.0.1", "fd05::1", map[string]Verdict{
		"tcp/53": to(TargetDNS), "udp/53": to(TargetDNS), "icmp": to(TargetGateway),
		"tcp/8080": {Action: Forward, Target: TargetHostService, Addr: addrPort("127.0.0.1:80")},
		"udp/8125": {Action: Forward, Target: TargetHostService, Addr: addrPort("[::1]:8125")},
		"*":        reject(ReasonNoService),
	}, reject(ReasonNoService)},
	{"other network", "10.6.0.9", "fd06::9", all(reject(ReasonOtherNetwork)), reject(ReasonOtherNetwork)},
	{"public", "1.1.1.1", "2606:4700::1111", all(to(TargetEgress)), outside},
	{"private", "10.77.0.1", "fd77::1", all(to(TargetEgress)), outside},
	{"shared", "100.64.0.1", "", all(to(TargetEgress)), outside},
	{"loopback", "127.0.0.1", "::1", all(reject(ReasonLoopback)), outside},
	{"loopback end", "127.255.255.255", "", all(reject(ReasonLoopback)), outside},
	{"unspecified", "0.0.0.0", "::", all(reject(ReasonThisNetwork)), outside},
	{"this network", "0.1.2.3", "", all(reject(ReasonThisNetwork)), outside},
	{"host address", "192.0.2.7", "2001:db8::7", all(reject(ReasonHostAddress)), outside},
	{"host bridge", "10.99.0.1", "", all(reject(ReasonHostAddress)), outside},
	{"host link-local", "", "fe80::7", all(reject(ReasonHostAddress)), outside},
	{"host broadcast", "192.0.2.255", "", all(drop(ReasonBroadcast)), outside},
	{"link-local", "169.254.7.7", "fe80::1", all(reject(ReasonLinkLocal)), outside},
	{"metadata", "169.254.169.254", "fd00:ec2::254", all(reject(ReasonMetadata)), outside},
	{"metadata ECS", "169.254.170.2", "fd00:ec2::23", all(reject(ReasonMetadata)), outside},
	{"metadata Azure", "168.63.129.16", "", all(reject(ReasonMetadata)), outside},
	{"metadata Alibaba", "100.100.100.200", "", all(reject(ReasonMetadata)), outside},
	{"metadata Oracle", "192.0.0.192", "", all(reject(ReasonMetadata)), outside},
	{"metadata GCP", "", "fd20:ce::254", all(reject(ReasonMetadata)), outside},
	{"metadata OpenStack", "", "fe80::a9fe:a9fe", all(reject(ReasonMetadata)), outside},
	{"multicast", "224.0.0.251", "ff02::fb", all(drop(ReasonMulticast)), drop(ReasonMulticast)},
	{"multicast end", "239.255.255.255", "ff0e::1", all(drop(ReasonMulticast)), drop(ReasonMulticast)},
	{"broadcast", "255.255.255.255", "", all(drop(ReasonBroadcast)), drop(ReasonBroadcast)},
	{"reserved", "240.0.0.1", "", all(reject(ReasonReserved)), outside},
	{"NAT64 public", "", "64:ff9b::1.1.1.1", all(to(TargetEgress)), outside},
	{"NAT64 loopback", "", "64:ff9b::127.0.0.1", all(reject(ReasonEmbedded)), outside},
	{"NAT64 metadata", "", "64:ff9b::169.254.169.254", all(reject(ReasonEmbedded)), outside},
	{"NAT64 host address", "", "64:ff9b::192.0.2.7", all(reject(ReasonEmbedded)), outside},
	{"NAT64 link", "", "64:ff9b::10.5.0.9", all(reject(ReasonEmbedded)), outside},
	{"NAT64 gateway", "", "64:ff9b::10.5.0.1", all(reject(ReasonEmbedded)), outside},
	{"NAT64 other network", "", "64:ff9b::10.6.0.9", all(reject(ReasonEmbedded)), outside},
	{"NAT64 multicast", "", "64:ff9b::224.0.0.1", all(reject(ReasonEmbedded)), outside},
	{"local NAT64 public", "", "64:ff9b:1::1.1.1.1", all(to(TargetEgress)), outside},
	{"local NAT64 public, other /96", "", "64:ff9b:1:fffe::8.8.4.4", all(to(TargetEgress)), outside},
	{"local NAT64 loopback", "", "64:ff9b:1::127.0.0.1", all(reject(ReasonEmbedded)), outside},
	{"local NAT64 /64 public", "", "64:ff9b:1:7:08:0808:0800:0", all(to(TargetEgress)), outside},
	{"local NAT64 /64 loopback", "", "64:ff9b:1:7:7f:0:100:0", all(reject(ReasonEmbedded)), outside},
	{"local NAT64 /56 metadata", "", "64:ff9b:1:7a9:fe:a9fe::", all(reject(ReasonEmbedded)), outside},
	{"local NAT64 /48 metadata", "", "64:ff9b:1:a9fe:a9:fe00::", all(reject(ReasonEmbedded)), outside},
	{"local NAT64 /48 public", "", "64:ff9b:1:0808:8:800::", all(to(TargetEgress)), outside},
	{"6to4 public", "", "2002:101:101::1", all(to(TargetEgress)), outside},
	{"6to4 loopback", "", "2002:7f00:1::1", all(reject(ReasonEmbedded)), outside},
	{"6to4 host address", "", "2002:c000:207::", all(reject(ReasonEmbedded)), outside},
	{"Teredo public", "", "2001:0:101:101:0:0:f7f7:f7f7", all(to(TargetEgress)), outside},
	{"Teredo server loopback", "", "2001:0:7f00:1:0:0:f7f7:f7f7", all(reject(ReasonEmbedded)), outside},
	{"Teredo client metadata", "", "2001:0:101:101:0:0:5601:5601", all(reject(ReasonEmbedded)), outside},
	{"ISATAP public", "", "2606:4700::5efe:101:101", all(to(TargetEgress)), outside},
	{"ISATAP loopback", "", "2606:4700::5efe:7f00:1", all(reject(ReasonEmbedded)), outside},
	{"ISATAP global bit, loopback", "", "2606:4700::200:5efe:7f00:1", all(reject(ReasonEmbedded)), outside},
	{"compatible loopback", "", "::127.0.0.1", all(reject(ReasonEmbedded)), outside},
	{"translated metadata", "", "::ffff:0:169.254.169.254", all(reject(ReasonEmbedded)), outside},
}

// TestDecideEveryFlow holds every origin × class of destination × protocol ×
// family against the whole verdict.
func TestDecideEveryFlow(t *testing.T) {
	table := compile(t, testRules())
	for _, d := range destinations {
		for _, s := range []string{d.v4, d.v6} {
			if s == "" {
				continue
			}
			dst := addr(s)
			for _, p := range protocols {
				checkRow(t, table, d, dst, p.name, p.proto, p.port)
			}
		}
	}
}

func checkRow(t *testing.T, table *Table, d destination, dst netip.Addr, name string, proto uint8, port uint16) {
	t.Helper()
	own, other := uint8(protoICMP), uint8(protoICMPv6)
	if dst.Is6() {
		own, other = other, own
	}
	switch name {
	case "icmp":
		proto = own
	case "icmp/other":
		proto = other
	}
	want, ok := d.container[name]
	if !ok {
		want = d.container["*"]
	}
	dest := netip.AddrPortFrom(dst, port)
	fill := func(v Verdict) Verdict {
		if v.Action == Forward && !v.Addr.IsValid() {
			v.Addr = dest
		}
		return v
	}
	for _, c := range []struct {
		origin Origin
		src    netip.AddrPort
		want   Verdict
	}{
		{FromContainer, containerAddr(dst), fill(want)},
		{FromHost, clientAddr(dst), fill(d.hostFlow)},
		{0, containerAddr(dst), drop(ReasonInvalid)},
		{77, containerAddr(dst), drop(ReasonInvalid)},
	} {
		f := Flow{Origin: c.origin, Link: "web", Proto: proto, Src: c.src, Dst: dest}
		if got := table.Decide(f, testHost, isTestLink); got != c.want {
			t.Errorf("%s: from %v, %s to %v: got %+v, want %+v", d.class, c.origin, name, dest, got, c.want)
		}
	}
}

// TestDecideMapped: an IPv4-mapped destination is what it maps to, and an IPv6
// packet to it never leaves.
func TestDecideMapped(t *testing.T) {
	table := compile(t, testRules())
	mapped := func(s string) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(addr(s).As16()), 80)
	}
	for _, d := range destinations {
		if d.v4 == "" {
			continue
		}
		f := Flow{Origin: FromContainer, Proto: protoSCTP, Src: addrPort("[fd05::2]:1"), Dst: mapped(d.v4)}
		if v := table.Decide(f, testHost, isTestLink); v.Action == Forward {
			t.Errorf("%s: IPv6 packet to %v is forwarded: %+v", d.class, f.Dst, v)
		}
		if want := d.container["*"]; want.Action != Forward && d.class != "gateway" && d.class != "network address" && d.class != "network broadcast" {
			if v := table.Decide(f, testHost, isTestLink); v != want {
				t.Errorf("%s: IPv6 packet to %v: got %+v, want %+v", d.class, f.Dst, v, want)
			}
		}
		// Without a source, and with a mapped one, it is the IPv4 address.
		want := table.Decide(Flow{Origin: FromContainer, Proto: protoTCP, Dst: netip.AddrPortFrom(addr(d.v4), 80)}, testHost, isTestLink)
		for _, src := range []netip.AddrPort{{}, mapped("10.5.0.2")} {
			f := Flow{Origin: FromContainer, Proto: protoTCP, Src: src, Dst: mapped(d.v4)}
			if got := table.Decide(f, testHost, isTestLink); got != want {
				t.Errorf("%s: %v to %v: got %+v, want %+v as for %s", d.class, src, f.Dst, got, want, d.v4)
			}
		}
	}
}

const protoSCTP = 132

// TestDecideZone: a zone does not hide an address.
func TestDecideZone(t *testing.T) {
	table := compile(t, testRules())
	for s, want := range map[string]Reason{
		"fe80::1%eth0": ReasonLinkLocal, "fe80::7%eth1": ReasonHostAddress, "fe80::a9fe:a9fe%1": ReasonMetadata,
		"::1%lo": ReasonLoopback, "fd06::9%x": ReasonOtherNetwork, "2001:db8::7%x": ReasonHostAddress,
	} {
		f := Flow{Origin: FromContainer, Proto: protoTCP, Dst: netip.AddrPortFrom(addr(s), 80)}
		if got := table.Decide(f, testHost, isTestLink); got != reject(want) {
			t.Errorf("to %s: got %+v, want %v", s, got, want)
		}
		if got := table.CheckDial(addr(s), testHost); got != want {
			t.Errorf("CheckDial(%s) = %v, want %v", s, got, want)
		}
	}
}

// TestZeroDrops: everything that was never set is a drop.
func TestZeroDrops(t *testing.T) {
	var zero Verdict
	if zero.Action != Drop || zero.Target != TargetNone {
		t.Errorf("zero Verdict is %v to %v, want a drop", zero.Action, zero.Target)
	}
	for name, table := range map[string]*Table{"nil": nil, "zero": {}, "no rules": compile(t, Rules{})} {
		for _, d := range destinations {
			for _, s := range []string{d.v4, d.v6} {
				if s == "" {
					continue
				}
				for _, origin := range []Origin{0, FromContainer, FromHost} {
					f := Flow{Origin: origin, Proto: protoTCP, Dst: netip.AddrPortFrom(addr(s), 53)}
					if v := table.Decide(f, nil, func(netip.Addr) bool { return true }); v.Action == Forward {
						t.Errorf("%s table forwards %v flow to %s: %+v", name, origin, s, v)
					}
				}
				if r := table.CheckDial(addr(s), nil); r == ReasonNone {
					t.Errorf("%s table allows to dial %s", name, s)
				}
			}
		}
	}
	if v := compile(t, testRules()).Decide(Flow{}, testHost, isTestLink); v != drop(ReasonInvalid) {
		t.Errorf("zero Flow: got %+v", v)
	}
}

// TestInternal: an internal network ends at its border, whatever was opened,
// and keeps what lies within.
func TestInternal(t *testing.T) {
	rules := testRules()
	rules.Internal = true
	rules.Allow = prefixes("0.0.0.0/0", "::/0")
	table, open := compile(t, rules), compile(t, testRules())
	for _, d := range destinations {
		for _, s := range []string{d.v4, d.v6} {
			if s == "" {
				continue
			}
			for _, port := range []uint16{53, 443, 8080} {
				f := Flow{Origin: FromContainer, Proto: protoTCP, Dst: netip.AddrPortFrom(addr(s), port)}
				got, before := table.Decide(f, testHost, isTestLink), open.Decide(f, testHost, isTestLink)
				want := reject(ReasonInternal)
				switch before.Reason {
				case ReasonMulticast, ReasonNoSuchLink, ReasonNoService:
					want = before
				case ReasonBroadcast:
					if s != "192.0.2.255" { // a broadcast of the outside, unknown inside
						want = before
					}
				}
				if before.Action == Forward && before.Target != TargetEgress {
					want = before
				}
				if got != want {
					t.Errorf("%s: internal network to %v: got %+v, want %+v", d.class, f.Dst, got, want)
				}
			}
			if r := table.CheckDial(addr(s), testHost); r != ReasonInternal {
				t.Errorf("internal network may dial %s: %v", s, r)
			}
		}
	}
}

// TestOneFamily: a family that the network lacks is dropped, not translated.
func TestOneFamily(t *testing.T) {
	for _, c := range []struct{ network, gateway, inside, outside, lacking string }{
		{"10.5.0.0/24", "10.5.0.1", "10.5.0.9", "1.1.1.1", "2606:4700::1111"},
		{"fd05::/64", "fd05::1", "fd05::9", "2606:4700::1111", "1.1.1.1"},
	} {
		table := compile(t, Rules{Network: prefixes(c.network), Gateways: addrs(c.gateway)})
		for dst, want := range map[string]Verdict{
			c.inside:  {Action: Forward, Target: TargetLink, Addr: netip.AddrPortFrom(addr(c.inside), 80)},
			c.outside: {Action: Forward, Target: TargetEgress, Addr: netip.AddrPortFrom(addr(c.outside), 80)},
			c.lacking: drop(ReasonFamily),
		} {
			f := Flow{Origin: FromContainer, Proto: protoTCP, Dst: netip.AddrPortFrom(addr(dst), 80)}
			if got := table.Decide(f, testHost, isTestLink); got != want {
				t.Errorf("network %s to %s: got %+v, want %+v", c.network, dst, got, want)
			}
		}
		// The ends of a flow have one family.
		f := Flow{Origin: FromHost, Proto: protoTCP, Src: netip.AddrPortFrom(addr(c.lacking), 9), Dst: netip.AddrPortFrom(addr(c.inside), 80)}
		if got := table.Decide(f, testHost, isTestLink); got != drop(ReasonFamily) {
			t.Errorf("%v to %v: got %+v, want family", f.Src, f.Dst, got)
		}
	}
}

// TestAllow: a name opens what it names, and never loopback, multicast,
// broadcast, this network or another one.
func TestAllow(t *testing.T) {
	wide := testRules()
	wide.Allow = prefixes("0.0.0.0/0", "::/0")
	table := compile(t, wide)
	for _, d := range destinations {
		for _, s := range []string{d.v4, d.v6} {
			if s == "" {
				continue
			}
			before := compile(t, testRules()).CheckDial(addr(s), testHost)
			want := before
			switch before {
			case ReasonHostAddress, ReasonLinkLocal, ReasonMetadata, ReasonReserved:
				want = ReasonNone
			case ReasonEmbedded:
				switch d.class {
				case "NAT64 metadata", "NAT64 host address", "6to4 host address", "Teredo client metadata",
					"local NAT64 /48 metadata", "translated metadata":
					want = ReasonNone
				}
			}
			if d.class == "local NAT64 /56 metadata" || d.class == "local NAT64 /48 metadata" {
				continue // other readings of the address decide
			}
			if got := table.CheckDial(addr(s), testHost); got != want {
				t.Errorf("%s %s: everything allowed: got %v, want %v (was %v)", d.class, s, got, want, before)
			}
		}
	}
	narrow := testRules()
	narrow.Allow = prefixes("169.254.169.254/32", "2001:db8::7/128")
	table = compile(t, narrow)
	for s, want := range map[string]Reason{
		"169.254.169.254": ReasonNone, "169.254.169.253": ReasonLinkLocal, "64:ff9b::169.254.169.254": ReasonNone,
		"2001:db8::7": ReasonNone, "192.0.2.7": ReasonHostAddress, "127.0.0.1": ReasonLoopback,
	} {
		if got := table.CheckDial(addr(s), testHost); got != want {
			t.Errorf("two addresses allowed: %s: got %v, want %v", s, got, want)
		}
	}
}

// TestDecideAgreesWithCheckDial: what Decide lets out, CheckDial lets out, and
// the other way round, since both guard the same border.
func TestDecideAgreesWithCheckDial(t *testing.T) {
	table := compile(t, testRules())
	for _, d := range destinations {
		for _, s := range []string{d.v4, d.v6} {
			if s == "" {
				continue
			}
			v := table.Decide(Flow{Origin: FromContainer, Proto: protoTCP, Dst: netip.AddrPortFrom(addr(s), 443)}, testHost, isTestLink)
			r := table.CheckDial(addr(s), testHost)
			if out := v.Target == TargetEgress; out != (r == ReasonNone) {
				t.Errorf("%s %s: Decide says %+v, CheckDial says %v", d.class, s, v, r)
			}
		}
	}
}

// TestHostAddrsFollowed: the set of the moment counts.
func TestHostAddrsFollowed(t *testing.T) {
	table := compile(t, testRules())
	f := Flow{Origin: FromContainer, Proto: protoTCP, Dst: addrPort("192.0.2.99:80")}
	if v := table.Decide(f, testHost, isTestLink); v.Action != Forward {
		t.Fatalf("before the host has the address: %+v", v)
	}
	now := NewHostAddrs(append(addrs("::ffff:192.0.2.99"), netip.Addr{}), nil)
	if v := table.Decide(f, now, isTestLink); v != reject(ReasonHostAddress) {
		t.Errorf("after the host got the address: %+v", v)
	}
	if !now.Contains(addr("192.0.2.99")) || now.Contains(netip.Addr{}) || (*HostAddrs)(nil).Contains(addr("1.1.1.1")) {
		t.Error("Contains is wrong about mapped, invalid or nil")
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	table := compile(t, testRules())
	for _, s := range []string{"10.5.0.9", "10.5.0.1", "1.1.1.1", "127.0.0.1", "fd05::9", "2606:4700::1111", "64:ff9b:1::1.1.1.1", "fe80::1%eth0"} {
		f := Flow{Origin: FromContainer, Proto: protoTCP, Src: containerAddr(addr(s)), Dst: netip.AddrPortFrom(addr(s), 53)}
		if n := testing.AllocsPerRun(100, func() {
			table.Decide(f, testHost, isTestLink)
			table.CheckDial(f.Dst.Addr(), testHost)
		}); n != 0 {
			t.Errorf("to %s: %v allocations, want 0", s, n)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	rules := testRules()
	for i := range 64 {
		rules.Refuse = append(rules.Refuse, netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", 100+i)))
	}
	table := compile(b, rules)
	for _, s := range []string{"10.5.0.9", "1.1.1.1", "fd05::9", "2606:4700::1111"} {
		b.Run(s, func(b *testing.B) {
			f := Flow{Origin: FromContainer, Proto: protoTCP, Src: containerAddr(addr(s)), Dst: netip.AddrPortFrom(addr(s), 443)}
			b.ReportAllocs()
			for b.Loop() {
				if table.Decide(f, testHost, isTestLink).Action != Forward {
					b.Fatal("not forwarded")
				}
			}
		})
	}
}
