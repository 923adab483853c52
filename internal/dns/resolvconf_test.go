package dns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
)

func TestParseResolvConf(t *testing.T) {
	ap := netip.MustParseAddrPort
	tests := []struct {
		name, text string
		want       ResolvConf
	}{
		{"empty", "", ResolvConf{Servers: []netip.AddrPort{ap("127.0.0.1:53")}, Ndots: 1, Attempts: 2}},
		{"usual", "# by dhcp\nsearch lan example.org ; two\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\noptions ndots:3 timeout:1 attempts:3 rotate edns0\n",
			ResolvConf{Servers: []netip.AddrPort{ap("192.0.2.1:53"), ap("[2001:db8::1]:53"), ap("[fe80::1%eth0]:53")},
				Search: []string{"lan", "example.org"}, Ndots: 3, Timeout: time.Second, Attempts: 3, Rotate: true}},
		{"stub", "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n",
			ResolvConf{Servers: []netip.AddrPort{ap("127.0.0.53:53")}, Search: []string{"."}, Ndots: 1, Attempts: 2}},
		{"last of search and domain", "search a b\ndomain c\n",
			ResolvConf{Servers: []netip.AddrPort{ap("127.0.0.1:53")}, Search: []string{"c"}, Ndots: 1, Attempts: 2}},
		{"ceilings", "options ndots:99 timeout:1000 attempts:1000 use-vc\nnameserver ::ffff:192.0.2.1\n",
			ResolvConf{Servers: []netip.AddrPort{ap("192.0.2.1:53")}, Ndots: 15, Timeout: 30 * time.Second, Attempts: 5, UseTCP: true}},
		{"nonsense", "nameserver\nnameserver dns.example\nnameserver 1.2.3\noptions ndots:-1 timeout:0 attempts:x timeout\n\x00\xff\n",
			ResolvConf{Servers: []netip.AddrPort{ap("127.0.0.1:53")}, Ndots: 1, Attempts: 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseResolvConf(strings.NewReader(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add("nameserver 192.0.2.1\noptions rotate timeout:2\nsearch a b c")
	f.Add(strings.Repeat("nameserver 192.0.2.1\n", 100))
	f.Add(strings.Repeat("x", maxResolvConf+10))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseResolvConf(strings.NewReader(text))
		if err != nil && len(text) < maxResolvConf {
			t.Fatalf("a short file is never an error: %v", err)
		}
		if len(c.Servers) == 0 || len(c.Servers) > maxServers || c.Attempts < 1 || c.Attempts > 5 || c.Timeout > 30*time.Second || c.Ndots > 15 {
			t.Fatalf("out of bounds: %+v", c)
		}
		for _, s := range c.Servers {
			if !s.IsValid() || s.Port() != 53 {
				t.Fatalf("server %v", s)
			}
		}
	})
}

// A resolver that appears in resolv.conf is used from the next look at the file
// on; what the old one said is not served from the cache; a file that vanishes
// for a moment changes nothing.
func TestResolvConfIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(server string, rename bool) {
		t.Helper()
		to := path
		if rename {
			to += ".new"
		}
		if err := os.WriteFile(to, []byte("nameserver "+server+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if rename {
			if err := os.Rename(to, path); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("192.0.2.1", false)
	now := time.Now()
	h := newHostResolvers(Config{ResolvConf: path}, now)
	first := h.current(now)
	if got := fmt.Sprint(first.Servers); got != "[192.0.2.1:53]" {
		t.Fatalf("servers %s", got)
	}
	write("192.0.2.22", true)
	if got := h.current(now.Add(recheck / 2)); got != first {
		t.Error("the file was looked at twice within a second")
	}
	second := h.current(now.Add(recheck))
	if got := fmt.Sprint(second.Servers); got != "[192.0.2.22:53]" || second.generation == first.generation {
		t.Errorf("after a rename over the file: servers %s, generation %d", got, second.generation)
	}
	write("192.0.2.3", false) // in place: another size
	third := h.current(now.Add(2 * recheck))
	if got := fmt.Sprint(third.Servers); got != "[192.0.2.3:53]" {
		t.Errorf("after an edit in place: servers %s", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := h.current(now.Add(3 * recheck)); got != third {
		t.Errorf("after the file went: servers %v", got.Servers)
	}
	if got := h.current(now.Add(-time.Hour)); got != third {
		t.Errorf("after the clock went back: servers %v", got.Servers)
	}
}

func TestMissingResolvConf(t *testing.T) {
	h := newHostResolvers(Config{ResolvConf: filepath.Join(t.TempDir(), "none")}, time.Now())
	if got := fmt.Sprint(h.current(time.Now()).Servers); got != "[127.0.0.1:53]" {
		t.Fatalf("servers %s, want what the C library takes", got)
	}
	if _, err := ReadResolvConf(filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) && !strings.Contains(fmt.Sprint(err), "no such file") {
		t.Errorf("error %v", err)
	}
}

// The whole way: the file changes, the next query goes to the new resolver
// although the old one's answer would still be cached.
func TestServerFollowsResolvConf(t *testing.T) {
	one := newUpstream(t, answerWith(t, mdns.RcodeSuccess, []string{"example.org. 600 IN A 192.0.2.1"}, nil))
	two := newUpstream(t, answerWith(t, mdns.RcodeSuccess, []string{"example.org. 600 IN A 192.0.2.2"}, nil))
	s := newServer(t, Config{Upstream: []netip.AddrPort{one.addr}})
	ask(t, s, "example.org", mdns.TypeA)
	old := s.resolvers.list.Load()
	s.resolvers.list.Store(&upstreamList{ResolvConf: ResolvConf{Servers: []netip.AddrPort{two.addr}, Attempts: 1}, generation: old.generation + 1})
	if m := ask(t, s, "example.org", mdns.TypeA); m.Answer[0].(*mdns.A).A.String() != "192.0.2.2" {
		t.Fatalf("the old resolver's answer outlived it: %v", m.Answer)
	}
}

func TestServerOrder(t *testing.T) {
	ap := netip.MustParseAddrPort
	a, b, c := ap("192.0.2.1:53"), ap("192.0.2.2:53"), ap("192.0.2.3:53")
	h := newHostResolvers(Config{Upstream: []netip.AddrPort{a, b, c}}, time.Now())
	list, now := h.list.Load(), time.Now()
	want := func(step string, at time.Time, servers ...netip.AddrPort) {
		t.Helper()
		if got := fmt.Sprint(h.order(list, at)); got != fmt.Sprint(servers) {
			t.Errorf("%s: %s, want %v", step, got, servers)
		}
	}
	want("as written", now, a, b, c)
	want("as written, again", now, a, b, c)
	h.setSilent(a, now.Add(silence))
	want("silent last", now, b, c, a)
	want("forgiven", now.Add(silence), a, b, c)
	h.setAlive(a)
	want("alive again", now, a, b, c)
	rotating := *list
	rotating.Rotate = true
	list = &rotating
	want("rotate", now, a, b, c)
	want("rotate", now, b, c, a)
	want("rotate", now, c, a, b)
	want("rotate", now, a, b, c)
}
