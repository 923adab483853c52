package ipam

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var compareAddrs = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func TestNormalizeFillsInWhatHostLocalWould(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"subnet":"10.88.0.0/16"}`,
			`{"subnet":"10.88.0.0/16","rangeStart":"10.88.0.1","rangeEnd":"10.88.255.254","gateway":"10.88.0.1"}`},
		{`{"subnet":"fd00:88::/64"}`,
			`{"subnet":"fd00:88::/64","rangeStart":"fd00:88::1","rangeEnd":"fd00:88::ffff:ffff:ffff:ffff","gateway":"fd00:88::1"}`},
		{`{"subnet":"10.1.2.0/30"}`,
			`{"subnet":"10.1.2.0/30","rangeStart":"10.1.2.1","rangeEnd":"10.1.2.2","gateway":"10.1.2.1"}`},
		{`{"subnet":"10.1.2.0/24","gateway":"10.1.2.254"}`,
			`{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.1","rangeEnd":"10.1.2.254","gateway":"10.1.2.254"}`},
		// The borders given are inclusive, but for the addresses of the subnet.
		{`{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.0","rangeEnd":"10.1.2.255"}`,
			`{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.1","rangeEnd":"10.1.2.254","gateway":"10.1.2.1"}`},
		{`{"subnet":"fd00::/126","rangeStart":"fd00::","rangeEnd":"fd00::3"}`,
			`{"subnet":"fd00::/126","rangeStart":"fd00::1","rangeEnd":"fd00::3","gateway":"fd00::1"}`},
		{`{"subnet":"::ffff:10.1.2.0/120","rangeStart":"::ffff:10.1.2.9"}`,
			`{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.9","rangeEnd":"10.1.2.254","gateway":"10.1.2.1"}`},
		{`{"subnet":"0.0.0.0/0"}`,
			`{"subnet":"0.0.0.0/0","rangeStart":"0.0.0.1","rangeEnd":"255.255.255.254","gateway":"0.0.0.1"}`},
	} {
		var in Range
		if err := json.Unmarshal([]byte(c.in), &in); err != nil {
			t.Fatal(err)
		}
		cfg, err := Config{Sets: sets([]Range{in})}.Normalize()
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		got, _ := json.Marshal(cfg.Sets[0][0])
		if string(got) != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.in, got, c.want)
		}
		again, err := cfg.Normalize()
		if err != nil || !cmp.Equal(again.Sets, cfg.Sets, compareAddrs) {
			t.Errorf("%s: normalizing twice: %+v, %v", c.in, again.Sets, err)
		}
		if cfg.Quarantine != 60*time.Second || cfg.Now == nil {
			t.Errorf("%s: quarantine %s, clock given: %t", c.in, cfg.Quarantine, cfg.Now != nil)
		}
	}
}

func TestOpenRefusesBadConfig(t *testing.T) {
	for _, c := range []struct {
		name string
		sets string
		want []string // parts of the message, one per fault
	}{
		{"nothing", `[]`, []string{"no range set"}},
		{"empty set", `[[]]`, []string{"set 0: no range"}},
		{"no subnet", `[[{}]]`, []string{"set 0 range 0: no subnet"}},
		{"too small", `[[{"subnet":"10.0.0.0/31"}],[{"subnet":"10.0.1.0/32"}],[{"subnet":"fd00::/127"}],[{"subnet":"fd01::/128"}]]`,
			[]string{"set 0 range 0: subnet 10.0.0.0/31 is too small", "use /30 or shorter", "set 1 range 0: subnet 10.0.1.0/32",
				"set 2 range 0: subnet fd00::/127", "use /126 or shorter", "set 3 range 0: subnet fd01::/128"}},
		{"host bits", `[[{"subnet":"10.0.0.7/24"}]]`, []string{"10.0.0.7/24 has host bits set", "10.0.0.0/24"}},
		{"outside the subnet", `[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1","rangeEnd":"10.1.0.1","gateway":"fd00::1"}]]`,
			[]string{"rangeStart 10.0.1.1 is not in subnet 10.0.0.0/24", "rangeEnd 10.1.0.1 is not", "gateway fd00::1 is not"}},
		{"zone", `[[{"subnet":"fe80::/64","gateway":"fe80::1%eth0"}]]`, []string{"gateway fe80::1%eth0 has a zone"}},
		{"reversed", `[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}]]`,
			[]string{"rangeStart 10.0.0.9 is after rangeEnd 10.0.0.8"}},
		{"gateway is broadcast", `[[{"subnet":"10.0.0.0/24","gateway":"10.0.0.255"}],[{"subnet":"fd00::/64","gateway":"fd00::"}]]`,
			[]string{"gateway 10.0.0.255 is the network or broadcast", "gateway fd00:: is the network"}},
		{"only broadcast", `[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.255","rangeEnd":"10.0.0.255"}]]`,
			[]string{"holds only the network or broadcast address"}},
		{"only gateway", `[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.1","rangeEnd":"10.0.0.1"}]]`,
			[]string{"set 0: 10.0.0.1-10.0.0.1 holds no address besides gateways"}},
		{"mixed families", `[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]`,
			[]string{"set 0 range 1: subnet fd00::/64 is not of the same family as 10.0.0.0/24"}},
		{"overlap in a set", `[[{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.20"},{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.20"}]]`,
			[]string{"set 0 range 1: 10.0.0.20-10.0.0.254 overlaps 10.0.0.1-10.0.0.20 of set 0 range 0"}},
		{"overlap of sets", `[[{"subnet":"10.0.0.0/16"}],[{"subnet":"fd00::/64"}],[{"subnet":"10.0.3.0/24"}]]`,
			[]string{"set 2 range 0: subnet 10.0.3.0/24 overlaps subnet 10.0.0.0/16 of set 0 range 0"}},
		{"several", `[[{"subnet":"10.0.0.0/31"},{"subnet":"10.9.0.1/24"}],[]]`,
			[]string{"set 0 range 0", "set 0 range 1", "set 1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var sets [][]Range
			if err := json.Unmarshal([]byte(c.sets), &sets); err != nil {
				t.Fatal(err)
			}
			p, err := Open(t.Context(), Config{Sets: sets}, NewMemStore())
			if err == nil {
				t.Fatalf("opened %v", p)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("message lacks %q:\n%v", w, err)
				}
			}
		})
	}
}

func TestRangesOfOneSubnetMayShareIt(t *testing.T) {
	cfg := Config{Sets: sets([]Range{
		span("10.0.0.0/24", "", "10.0.0.3"),
		{Subnet: netip.MustParsePrefix("10.0.0.0/24"), Start: netip.MustParseAddr("10.0.0.9"),
			End: netip.MustParseAddr("10.0.0.11"), Gateway: netip.MustParseAddr("10.0.0.2")},
	})}
	p := open(t, cfg, NewMemStore())
	var got []string
	for _, o := range []Owner{"a", "b", "c", "d"} {
		got = append(got, acquire(t, p, o)...)
	}
	// Neither range's gateway is given out by the other.
	want := []string{"10.0.0.3/24", "10.0.0.9/24", "10.0.0.10/24", "10.0.0.11/24"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	gateways := []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("10.0.0.2/24")}
	if d := cmp.Diff(gateways, p.Gateways(), compareAddrs); d != "" {
		t.Error(d)
	}
}
