package policy

import (
	"net/netip"
	"slices"
	"testing"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func prefixes(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(ss ...string) (out []netip.Addr) {
	for _, s := range ss {
		out = append(out, addr(s))
	}
	return out
}

// testRules are a dual-stack network with a host service and a neighbour.
func testRules() Rules {
	return Rules{
		Network:  prefixes("10.5.0.0/24", "fd05::/64"),
		Gateways: addrs("10.5.0.1", "fd05::1"),
		Services: []Service{
			{Proto: protoTCP, Port: 8080, Target: addrPort("127.0.0.1:80")},
			{Proto: protoUDP, Port: 8125, Target: addrPort("[::1]:8125")},
		},
		Refuse: prefixes("10.6.0.0/24", "fd06::/64"),
	}
}

var (
	testHostAddrs  = addrs("127.0.0.1", "::1", "192.0.2.7", "10.99.0.1", "2001:db8::7", "fe80::7%eth0")
	testBroadcasts = addrs("192.0.2.255")
	testHost       = NewHostAddrs(testHostAddrs, testBroadcasts)
	testLinks      = addrs("10.5.0.9", "fd05::9")
)

func isTestLink(a netip.Addr) bool { return slices.Contains(testLinks, a) }

func compile(t testing.TB, r Rules) *Table {
	t.Helper()
	table, err := Compile(r)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// containerAddr and clientAddr are a source of dst's family: the one a link of
// the network, the other a machine outside.
func containerAddr(dst netip.Addr) netip.AddrPort {
	if dst.Is4() {
		return addrPort("10.5.0.2:40000")
	}
	return addrPort("[fd05::2]:40000")
}

func clientAddr(dst netip.Addr) netip.AddrPort {
	if dst.Is4() {
		return addrPort("198.51.100.9:40000")
	}
	return addrPort("[2001:db8:9::9]:40000")
}
