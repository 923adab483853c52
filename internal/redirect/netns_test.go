package redirect

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

func element(k kind, r Rule) nftables.SetElement {
	return nftables.SetElement{Key: k.key(r), Val: binary.BigEndian.AppendUint16(nil, r.Port)}
}

// openIn opens a table in ns, closed at the test's end.
func openIn(t *testing.T, ns *netns.Handle, owner string, rules ...Rule) *os.File {
	t.Helper()
	var f *os.File
	nstest.In(t, ns, func() (err error) {
		f, err = Open(owner, rules)
		return err
	})
	t.Cleanup(func() { f.Close() })
	return f
}

func listIn(t *testing.T, ns *netns.Handle) []Table {
	t.Helper()
	var all []Table
	nstest.In(t, ns, func() (err error) {
		all, err = List()
		return err
	})
	return all
}

// serve answers at an address of one family, and returns the port.
func serve(t *testing.T, ns *netns.Handle, name, proto, host string) uint16 {
	t.Helper()
	family := "6"
	if netip.MustParseAddr(host).Is4() {
		family = "4"
	}
	return nstest.Answer(t, ns, name, proto+family, net.JoinHostPort(host, "0"))
}

// A table leads clients from here and from elsewhere, of both families and both
// protocols, to sockets on the published addresses and no others, with the
// clients' own addresses, for as long as its descriptor is open.
func TestNetnsRedirect(t *testing.T) {
	host, peer := nstest.NewNS(t), nstest.NewNS(t)
	nstest.Veth(t, host, peer, "10.77.0.1/24", "10.77.0.2/24", "fd77::1/64", "fd77::2/64")
	var rules []Rule
	for _, proto := range []string{"tcp", "udp"} {
		for _, at := range []string{"127.0.0.1:8080", "[::1]:8080", "10.77.0.1:8081", "[fd77::1]:8081", "0.0.0.0:9090", "[::]:9090"} {
			r := rule(proto, at, 0)
			r.Port = serve(t, host, "container", proto, r.Host.Addr().String())
			rules = append(rules, r)
		}
	}
	f := openIn(t, host, "web/c1/eth0", rules...)
	want := []Table{{Owner: "web/c1/eth0", Rules: rules}}
	opts := cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.SortSlices(func(a, b Rule) bool { return compareRules(a, b) < 0 })}
	if diff := cmp.Diff(want, listIn(t, host), opts); diff != "" {
		t.Errorf("the kernel has other rules:\n%s", diff)
	}
	for _, proto := range []string{"tcp", "udp"} {
		for _, a := range []struct {
			from   *netns.Handle
			at     string
			client string // "" when nobody answers
		}{
			{host, "127.0.0.1:8080", "127.0.0.1"},
			{host, "[::1]:8080", "::1"},
			{host, "10.77.0.1:8081", "10.77.0.1"},
			{peer, "10.77.0.1:8081", "10.77.0.2"},
			{host, "[fd77::1]:8081", "fd77::1"},
			{peer, "[fd77::1]:8081", "fd77::2"},
			{host, "127.0.0.1:9090", "127.0.0.1"},
			{peer, "10.77.0.1:9090", "10.77.0.2"},
			{host, "[::1]:9090", "::1"},
			{peer, "[fd77::1]:9090", "fd77::2"},
			{peer, "10.77.0.1:8080", ""},
			{host, "127.0.0.1:8081", ""},
			{peer, "[fd77::1]:8080", ""},
		} {
			got := nstest.Ask(t, a.from, proto, a.at)
			if a.client != "" && got != "container "+a.client || a.client == "" && !strings.Contains(got, "refused") {
				t.Errorf("%s %s: got %q, want the client's address %q", proto, a.at, got, a.client)
			}
		}
	}
	f.Close()
	if left := listIn(t, host); len(left) > 0 {
		t.Errorf("left after the descriptor was closed: %v", left)
	}
	if got := nstest.Ask(t, peer, "tcp", "10.77.0.1:9090"); !strings.Contains(got, "refused") {
		t.Errorf("after the descriptor was closed: %q", got)
	}
}

// Others can read the table and neither change nor remove it, and it goes
// without leaving anything.
func TestNetnsRedirectAsNftShowsIt(t *testing.T) {
	host := nstest.NewNS(t)
	at := rule("tcp", "0.0.0.0:8080", 0)
	at.Port = serve(t, host, "container", "tcp", "0.0.0.0")
	f := openIn(t, host, "web/c1/eth0", at, Rule{"udp", netip.MustParseAddrPort("[::1]:53"), 5353})
	out := nstest.Exec(t, host, "nft", "list", "ruleset")
	for _, want := range []string{"usernet/web/c1/eth0/", "flags owner", "tcp . 8080 : " + fmt.Sprint(at.Port), "::1 . udp . 53 : 5353"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	nstest.Exec(t, host, "nft", "flush", "ruleset")
	if got := nstest.Ask(t, host, "tcp", "127.0.0.1:8080"); got != "container 127.0.0.1" {
		t.Errorf("after others flushed all rules: %q", got)
	}
	f.Close()
	if out := nstest.Exec(t, host, "nft", "list", "ruleset"); out != "" {
		t.Errorf("left after the descriptor was closed:\n%s", out)
	}
}

// The holder of the port gets nothing while there is a table, and everything
// after it, clients of UDP that never fall silent included.
func TestNetnsRedirectPastHolder(t *testing.T) {
	host := nstest.NewNS(t)
	// A firewall, without which the kernel tracks no connections but for us.
	nstest.Exec(t, host, "nft", "add table inet firewall; add chain inet firewall out { type filter hook output priority 0; }; "+
		"add rule inet firewall out ct state invalid drop")
	for _, loopback := range []string{"127.0.0.1", "::1"} {
		for _, proto := range []string{"tcp", "udp"} {
			port := serve(t, host, "holder", proto, loopback)
			at := netip.AddrPortFrom(netip.MustParseAddr(loopback), port)
			steady, err := nstest.Dial(t, host, "udp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer steady.Close()
			expect := func(want string) {
				t.Helper()
				got := []string{nstest.Ask(t, host, proto, at.String())}
				if proto == "udp" {
					got = append(got, nstest.AskOver(steady))
				}
				for _, g := range got {
					if g != want+" "+loopback {
						t.Errorf("%s %v: got %q, want %s", proto, at, g, want)
					}
				}
			}
			expect("holder")
			rules := []Rule{{proto, at, serve(t, host, "container", proto, loopback)}}
			f := openIn(t, host, "web/c1/eth0", rules...)
			expect("container")
			f.Close()
			nstest.In(t, host, func() error { Forget(rules); return nil })
			expect("holder")
		}
	}
}

// What the host forwards is not the host's.
func TestNetnsRedirectLeavesForwardedAlone(t *testing.T) {
	router, client, server := nstest.NewNS(t), nstest.NewNS(t), nstest.NewNS(t)
	nstest.Veth(t, router, client, "10.77.0.1/24", "10.77.0.2/24")
	nstest.Veth(t, router, server, "10.78.0.1/24", "10.78.0.2/24")
	nstest.Route(t, client, "0.0.0.0/0", "10.77.0.1")
	nstest.Route(t, server, "0.0.0.0/0", "10.78.0.1")
	nstest.In(t, router, func() error { return netns.SetSysctl("ipv4/ip_forward", "1") })
	port := serve(t, server, "server", "tcp", "10.78.0.2")
	openIn(t, router, "web/c1/eth0", Rule{"tcp", netip.AddrPortFrom(netip.IPv4Unspecified(), port), serve(t, router, "container", "tcp", "0.0.0.0")})
	if got := nstest.Ask(t, client, "tcp", fmt.Sprintf("10.78.0.2:%d", port)); got != "server 10.77.0.2" {
		t.Errorf("through the host: %q", got)
	}
	if got := nstest.Ask(t, client, "tcp", fmt.Sprintf("10.77.0.1:%d", port)); got != "container 10.77.0.2" {
		t.Errorf("to the host: %q", got)
	}
}

// Thousands of ports fit.
func TestNetnsRedirectManyPorts(t *testing.T) {
	host := nstest.NewNS(t)
	var rules []Rule
	for port := range uint16(2000) {
		rules = append(rules, Rule{"tcp", netip.AddrPortFrom(netip.IPv4Unspecified(), 20000+port), 40000 + port})
	}
	openIn(t, host, "web/c1/eth0", rules...)
	if got := listIn(t, host); len(got) != 1 || len(got[0].Rules) != len(rules) || got[0].Rules[1999] != rules[1999] {
		t.Errorf("%d tables", len(got))
	}
}

// childEnv makes the test binary a process that opens a table and waits to be
// killed.
const childEnv = "USERNET_REDIRECT_CHILD"

func childMain() {
	if _, err := Open("web/c1/eth0", []Rule{{"tcp", netip.MustParseAddrPort("127.0.0.1:80"), 8080}}); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("open")
	select {}
}

// A process that is killed leaves no table.
func TestNetnsRedirectEndsWithItsProcess(t *testing.T) {
	host := nstest.NewNS(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	nstest.Start(t, host, cmd)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	if got := listIn(t, host); len(got) != 1 {
		t.Fatalf("tables %v", got)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	nstest.WaitFor(t, 20*time.Second, func() bool { return len(listIn(t, host)) == 0 })
}

// Without the capability the error says so, and nothing is left.
func TestNetnsRedirectWithoutCapability(t *testing.T) {
	host := nstest.NewNS(t)
	err := host.Do(func() error {
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&head, &data[0]); err != nil {
			return err
		}
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&head, &data[0]); err != nil {
			return err
		}
		_, err := Open("web/c1/eth0", []Rule{rule("tcp", "127.0.0.1:80", 8080)})
		return err
	})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v", err)
	}
	if left := listIn(t, host); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A listing holds all rules of a table, or the table not at all, whatever else
// changes meanwhile.
func TestNetnsRedirectListedWhole(t *testing.T) {
	host := nstest.NewNS(t)
	var rules []Rule
	for port := range uint16(1000) {
		rules = append(rules, Rule{"udp", netip.AddrPortFrom(netip.IPv6Unspecified(), 20000+port), 40000 + port})
	}
	openIn(t, host, "web/steady/eth0", rules...)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			err := host.Do(func() error {
				f, err := Open("web/fleeting/eth0", []Rule{rule("tcp", "127.0.0.1:80", 8080), rule("tcp", "[::1]:80", 8080)})
				if err != nil {
					return err
				}
				return f.Close()
			})
			if err != nil {
				done <- err
				return
			}
		}
	}()
	for range 30 {
		err := host.Do(func() error {
			all, err := List()
			if err != nil && strings.Contains(err.Error(), "without end") {
				return nil // that is what it says
			}
			for _, table := range all {
				if want := map[string]int{"web/steady/eth0": 1000, "web/fleeting/eth0": 2}[table.Owner]; want != len(table.Rules) {
					return fmt.Errorf("%d rules of %s, want %d", len(table.Rules), table.Owner, want)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
