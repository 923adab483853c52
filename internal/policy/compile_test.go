package policy

import (
	"net/netip"
	"strings"
	"testing"
)

// TestCompileFaults: each rule that cannot be meant is named with its value.
func TestCompileFaults(t *testing.T) {
	mapped := netip.PrefixFrom(netip.AddrFrom16(addr("10.0.0.0").As16()), 104)
	for _, c := range []struct {
		name  string
		rules Rules
		want  string
	}{
		{"zero prefix", Rules{Network: []netip.Prefix{{}}}, "network prefix invalid Prefix: not a prefix"},
		{"mapped prefix", Rules{Refuse: []netip.Prefix{mapped}}, "refused prefix ::ffff:10.0.0.0/104: IPv4-mapped"},
		{"loopback network", Rules{Network: prefixes("127.5.0.0/24")}, "network prefix 127.5.0.0/24: overlaps 127.0.0.0/8"},
		{"network around loopback", Rules{Network: prefixes("::/0")}, "network prefix ::/0: overlaps"},
		{"multicast network", Rules{Network: prefixes("ff05::/64")}, "multicast"},
		{"reserved network", Rules{Network: prefixes("240.5.0.0/24")}, "reserved"},
		{"zero gateway", Rules{Gateways: []netip.Addr{{}}}, "gateway address invalid IP"},
		{"zoned gateway", Rules{Gateways: addrs("fe80::1%eth0")}, "gateway address fe80::1%eth0"},
		{"loopback gateway", Rules{Gateways: addrs("127.0.0.1")}, "gateway address 127.0.0.1: is a loopback address"},
		{"ICMP service", Rules{Services: []Service{{Proto: 1, Port: 7, Target: addrPort("127.0.0.1:7")}}}, "IP protocol 1"},
		{"service on port 0", Rules{Services: []Service{{Proto: 6, Target: addrPort("127.0.0.1:7")}}}, "port 0"},
		{"service on port 53", Rules{Services: []Service{{Proto: 17, Port: 53, Target: addrPort("127.0.0.1:53")}}}, "port 53 of the gateway is the resolver's"},
		{"service without target", Rules{Services: []Service{{Proto: 6, Port: 80}}}, "lacks an address or a port"},
		{"service to port 0", Rules{Services: []Service{{Proto: 6, Port: 80, Target: addrPort("127.0.0.1:0")}}}, "target 127.0.0.1:0 lacks"},
		{"service twice", Rules{Services: []Service{
			{Proto: 6, Port: 80, Target: addrPort("127.0.0.1:1")},
			{Proto: 6, Port: 80, Target: addrPort("127.0.0.1:2")},
		}}, "port 80 is taken by the service to 127.0.0.1:1"},
		{"allow loopback", Rules{Allow: prefixes("127.0.0.1/32")}, "--host-service"},
		{"allow IPv6 loopback", Rules{Allow: prefixes("::1/128")}, "allowed prefix ::1/128"},
		{"allow unspecified", Rules{Allow: prefixes("0.0.0.0/32")}, "this_network"},
		{"allow multicast", Rules{Allow: prefixes("224.0.0.0/4")}, "multicast"},
		{"allow broadcast", Rules{Allow: prefixes("255.255.255.255/32")}, "broadcast"},
	} {
		table, err := Compile(c.rules)
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		if table != nil {
			t.Errorf("%s: a table besides the error", c.name)
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %q does not say %q", c.name, err, c.want)
		}
	}
}

// TestCompileAllFaults: one run names them all.
func TestCompileAllFaults(t *testing.T) {
	_, err := Compile(Rules{
		Network:  prefixes("127.0.0.0/8"),
		Gateways: addrs("224.0.0.1"),
		Services: []Service{{Proto: 6}},
		Refuse:   []netip.Prefix{{}},
		Allow:    prefixes("::1/128"),
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"127.0.0.0/8", "224.0.0.1", "port 0", "refused prefix", "::1/128"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not mention %q", err, want)
		}
	}
}

// TestCompileKeepsNothing: later changes to the rules change no table.
func TestCompileKeepsNothing(t *testing.T) {
	rules := testRules()
	table := compile(t, rules)
	rules.Gateways[0] = addr("10.5.0.200")
	rules.Services[0].Target = addrPort("127.0.0.1:22")
	v := table.Decide(Flow{Origin: FromContainer, Proto: protoTCP, Dst: addrPort("10.5.0.1:8080")}, nil, nil)
	if v.Addr != addrPort("127.0.0.1:80") {
		t.Errorf("after a change of the rules: %+v", v)
	}
}

// TestUnmaskedAndSmallPrefixes: host bits in a prefix do not matter, and a
// prefix of one or two addresses has no network and broadcast address.
func TestUnmaskedAndSmallPrefixes(t *testing.T) {
	everyone := func(netip.Addr) bool { return true }
	table := compile(t, Rules{Network: prefixes("10.5.0.77/24", "10.8.0.0/31", "10.9.0.5/32", "fd05::7/64", "fd08::/127", "fd09::5/128")})
	for s, want := range map[string]Verdict{
		"10.5.0.0": drop(ReasonBroadcast), "10.5.0.255": drop(ReasonBroadcast), "10.5.0.77": to(TargetLink),
		"10.8.0.0": to(TargetLink), "10.8.0.1": to(TargetLink), "10.9.0.5": to(TargetLink),
		"fd05::": drop(ReasonBroadcast), "fd05::ffff:ffff:ffff:ffff": to(TargetLink),
		"fd08::": to(TargetLink), "fd08::1": to(TargetLink), "fd09::5": to(TargetLink),
	} {
		got := table.Decide(Flow{Origin: FromContainer, Proto: protoUDP, Dst: netip.AddrPortFrom(addr(s), 9)}, nil, everyone)
		got.Addr = netip.AddrPort{}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", s, got, want)
		}
	}
}

// TestNames: names are stable, distinct and fit for metric labels, and every
// reason tells people something.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for r := range NumReasons {
		name := r.String()
		if name == "" || seen[name] || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("reason %d: name %q is empty, taken or no label", r, name)
		}
		seen[name] = true
		if len(r.Text()) < 15 {
			t.Errorf("reason %v: text %q", r, r.Text())
		}
	}
	for c := range numClasses {
		if c.String() == "" || c.String() == "unknown" {
			t.Errorf("class %d has no name", c)
		}
	}
	for _, c := range []struct{ got, want string }{
		{Drop.String(), "drop"}, {Reject.String(), "reject"}, {Forward.String(), "forward"}, {Action(9).String(), "unknown"},
		{FromContainer.String(), "container"}, {FromHost.String(), "host"}, {Origin(0).String(), "unknown"},
		{TargetEgress.String(), "egress"}, {TargetHostService.String(), "host_service"}, {Target(99).String(), "unknown"},
		{NumReasons.String(), "unknown"}, {ReasonNoSuchLink.String(), "no_such_link"}, {numClasses.String(), "unknown"},
		{ReasonLoopback.Text(), "host loopback is refused; open it with --host-service"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
	if NumReasons.Text() == "" {
		t.Error("an unknown reason has no text")
	}
}
