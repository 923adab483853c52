package netns_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
)

// containerInterface is a usual container's interface.
func containerInterface() netns.Interface {
	return netns.Interface{
		Name:  "eth0",
		Addrs: prefixes("10.88.0.5/16", "fd88::5/64"),
		MTU:   1400,
		Routes: []netns.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.88.0.1"), MTU: 1380},
			{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd88::1"), AdvMSS: 1300},
			{Dst: netip.MustParsePrefix("192.0.2.0/24"), Priority: 7},
			{Dst: netip.MustParsePrefix("198.51.100.0/24"), Gateway: netip.MustParseAddr("203.0.113.9"), Table: 77},
		},
	}
}

func prefixes(list ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// newTUN makes a TUN in the namespace ns and returns its name.
func newTUN(t *testing.T, ns *netns.Handle, name string) (*os.File, string) {
	t.Helper()
	var f *os.File
	nstest.In(t, ns, func() (err error) {
		f, err = tunnel.Create(tunnel.Options{Name: name})
		return err
	})
	t.Cleanup(func() { f.Close() })
	name, err := tunnel.Name(f)
	if err != nil {
		t.Fatal(err)
	}
	return f, name
}

// world is everything that MoveIn and Configure may change, as text.
func world(t *testing.T, ns *netns.Handle) string {
	t.Helper()
	var lines []string
	nstest.In(t, ns, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			a := l.Attrs()
			lines = append(lines, fmt.Sprintf("link %s mtu %d flags %v", a.Name, a.MTU, a.Flags))
			for _, key := range []string{"addr_gen_mode", "accept_ra", "disable_ipv6", "keep_addr_on_down"} {
				key = "ipv6/conf/" + a.Name + "/" + key
				value, err := netns.Sysctl(key)
				if err != nil {
					return err
				}
				lines = append(lines, "sysctl "+key+"="+value)
			}
		}
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			lines = append(lines, fmt.Sprintf("addr %v %v", a.LinkIndex, a))
		}
		// Multicast routes of IPv6 come and go by themselves.
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL,
			&netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Dst == nil || !r.Dst.IP.IsMulticast() {
				lines = append(lines, fmt.Sprintf("route %v", r))
			}
		}
		return nil
	})
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestNetnsMoveInGivesAllThatIsAskedFor(t *testing.T) {
	host, container := nstest.NewNS(t), nstest.NewNS(t)
	f, name := newTUN(t, host, "")
	cfg := containerInterface()
	nstest.In(t, host, func() error { return netns.MoveIn(container, name, cfg) })

	nstest.In(t, container, func() error { return netns.Verify(cfg) })
	nstest.In(t, container, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		var got []string
		for _, a := range addrs {
			got = append(got, fmt.Sprintf("%v brd %v nodad %v", a.IPNet, a.Broadcast, a.Flags&unix.IFA_F_NODAD != 0))
		}
		want := []string{
			"10.88.0.5/16 brd 10.88.255.255 nodad false",
			"fd88::5/64 brd <nil> nodad true", // and no link-local address
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("addresses (-want +got):\n%s", diff)
		}
		for key, want := range map[string]string{"accept_ra": "0", "addr_gen_mode": "1", "disable_ipv6": "0", "keep_addr_on_down": "1"} {
			got, err := netns.Sysctl("ipv6/conf/eth0/" + key)
			if err != nil || got != want {
				t.Errorf("sysctl %s = %q (%v), want %q", key, got, err, want)
			}
		}
		return nil
	})
	checkContainerRoutes(t, container)
	if got, err := tunnel.Name(f); err != nil || got != "eth0" {
		t.Errorf("Name = %q, %v, want eth0", got, err)
	}
	if inode, err := tunnel.NetnsInode(f); err != nil || inode != container.Inode() {
		t.Errorf("NetnsInode = %d, %v, want %d", inode, err, container.Inode())
	}
}

// checkContainerRoutes looks at the routes of containerInterface with ip-route.
func checkContainerRoutes(t *testing.T, container *netns.Handle) {
	t.Helper()
	for family, wants := range map[string][]string{
		"-4": {
			"default via 10.88.0.1 dev eth0 onlink mtu 1380",
			"10.88.0.0/16 dev eth0 proto kernel scope link src 10.88.0.5",
			"192.0.2.0/24 dev eth0 scope link metric 7",
		},
		"-6": {
			"default via fd88::1 dev eth0 metric 1024 onlink advmss 1300",
			"fd88::/64 dev eth0",
		},
	} {
		have := fields(nstest.Exec(t, container, "ip", family, "route"))
		for _, want := range wants {
			if !strings.Contains(have, want) {
				t.Errorf("no route %q among\n%s", want, have)
			}
		}
	}
	if have := fields(nstest.Exec(t, container, "ip", "route", "show", "table", "77")); !strings.Contains(have, "198.51.100.0/24 via 203.0.113.9") {
		t.Errorf("table 77 has no such route:\n%s", have)
	}
}

// fields puts single spaces between the words of each line.
func fields(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.Join(strings.Fields(l), " ")
	}
	return strings.Join(lines, "\n")
}

func TestNetnsMoveInWhereIPv6WasDisabledEverywhere(t *testing.T) {
	host, container := nstest.NewNS(t), nstest.NewNS(t)
	nstest.In(t, container, func() error { return netns.SetSysctl("ipv6/conf/all/disable_ipv6", "1") })
	_, name := newTUN(t, host, "")
	nstest.In(t, host, func() error { return netns.MoveIn(container, name, containerInterface()) })
	// The kernel answers for its own addresses over lo.
	for _, addr := range []string{"::1", "fd88::5"} {
		l := nstest.Listen(t, container, "tcp6", "["+addr+"]:0")
		c, err := nstest.Dial(t, container, "tcp6", l.Addr().String())
		if err != nil {
			t.Errorf("dial %s: %v", addr, err)
			continue
		}
		c.Close()
	}
}

func TestNetnsAddressesSurviveDownAndUp(t *testing.T) {
	host, container := nstest.NewNS(t), nstest.NewNS(t)
	_, name := newTUN(t, host, "")
	cfg := containerInterface()
	cfg.Routes = nil // the kernel drops routes of an interface that goes down
	nstest.In(t, host, func() error { return netns.MoveIn(container, name, cfg) })
	nstest.Exec(t, container, "ip", "link", "set", "eth0", "down")
	nstest.Exec(t, container, "ip", "link", "set", "eth0", "up")
	nstest.In(t, container, func() error { return netns.Verify(cfg) })
}

func TestNetnsMoveInRefusesANameThatIsTaken(t *testing.T) {
	// The kernel finds the new name taken after the move, and before it where
	// the old one is taken as well.
	for _, taken := range [][]string{{"eth0"}, {"eth0", "un0"}} {
		host, container := nstest.NewNS(t), nstest.NewNS(t)
		for _, name := range taken {
			newTUN(t, container, name)
		}
		_, name := newTUN(t, host, "un0")
		before := world(t, host) + world(t, container)
		for what, move := range map[string]func() error{
			"MoveIn": func() error { return netns.MoveIn(container, name, containerInterface()) },
			"Move":   func() error { return netns.Move(container, name, "eth0") },
		} {
			err := host.Do(move)
			if !errors.Is(err, netns.ErrExists) || !strings.Contains(err.Error(), "eth0: an interface of this name exists already") {
				t.Errorf("%s beside %v = %v, want ErrExists that names eth0", what, taken, err)
			}
			if diff := cmp.Diff(before, world(t, host)+world(t, container)); diff != "" {
				t.Errorf("a refused %s beside %v changed (-before +after):\n%s", what, taken, diff)
			}
		}
	}
}

func TestNetnsMoveInWhenTheTargetHasTheTemporaryName(t *testing.T) {
	host, container := nstest.NewNS(t), nstest.NewNS(t)
	_, name := newTUN(t, host, "un0")
	newTUN(t, container, "un0")
	nstest.In(t, host, func() error { return netns.MoveIn(container, name, containerInterface()) })
	nstest.In(t, container, func() error { return netns.Verify(containerInterface()) })
}

// TestNetnsMoveInUndoesEachStep fails one step after another, until none is
// left to fail, and compares both namespaces with what they were.
func TestNetnsMoveInUndoesEachStep(t *testing.T) {
	host, container := nstest.NewNS(t), nstest.NewNS(t)
	// Values that the steps really change, in the target and on lo.
	nstest.In(t, container, func() error { return netns.SetSysctl("ipv6/conf/all/disable_ipv6", "1") })
	_, name := newTUN(t, host, "")
	beforeHost, beforeContainer := world(t, host), world(t, container)
	injected := errors.New("injected")
	var failed []string
	for n := 0; ; n++ {
		step := 0
		err := host.Do(func() error {
			return netns.MoveInBefore(container, name, containerInterface(), func(s string) error {
				if step++; step <= n {
					return nil
				}
				failed = append(failed, s)
				return injected
			})
		})
		if err == nil {
			break
		}
		var stepErr *netns.StepError
		if !errors.Is(err, injected) || !errors.As(err, &stepErr) || stepErr.Step != failed[len(failed)-1] {
			t.Fatalf("MoveIn = %v, want the injected error of step %q", err, failed[len(failed)-1])
		}
		if strings.Contains(err.Error(), "undo") {
			t.Errorf("undo after step %q: %v", stepErr.Step, err)
		}
		if diff := cmp.Diff(beforeHost, world(t, host)); diff != "" {
			t.Errorf("after step %q the origin differs (-before +after):\n%s", stepErr.Step, diff)
		}
		if diff := cmp.Diff(beforeContainer, world(t, container)); diff != "" {
			t.Errorf("after step %q the target differs (-before +after):\n%s", stepErr.Step, diff)
		}
	}
	if len(failed) < 14 {
		t.Errorf("only %d steps were failed: %q", len(failed), failed)
	}
}

// TestNetnsMoveInUndoesWhatTheKernelRefuses makes the kernel itself fail the
// steps that it can be made to fail.
func TestNetnsMoveInUndoesWhatTheKernelRefuses(t *testing.T) {
	host, container := nstest.NewNS(t), nstest.NewNS(t)
	_, name := newTUN(t, host, "")
	before := world(t, host) + world(t, container)
	closed, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	tests := []struct {
		name, from string
		target     *netns.Handle
		change     func(*netns.Interface)
		step       string
		want       error
	}{
		{name: "no such interface", from: "absent0", step: "move absent0"},
		{name: "target closed", target: closed, step: "move", want: os.ErrClosed},
		{name: "address twice", step: "add address 10.88.0.5/16", want: unix.EEXIST,
			change: func(i *netns.Interface) { i.Addrs = append(i.Addrs, i.Addrs[0]) }},
		{name: "gateway is itself", step: "add route 203.0.113.0/24 via 10.88.0.5", want: unix.EINVAL,
			change: func(i *netns.Interface) {
				i.Routes = append(i.Routes, netns.Route{
					Dst: netip.MustParsePrefix("203.0.113.0/24"), Gateway: netip.MustParseAddr("10.88.0.5")})
			}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg, from, target := containerInterface(), name, container
			if test.change != nil {
				test.change(&cfg)
			}
			if test.from != "" {
				from = test.from
			}
			if test.target != nil {
				target = test.target
			}
			err := host.Do(func() error { return netns.MoveIn(target, from, cfg) })
			var step *netns.StepError
			if !errors.As(err, &step) || !strings.HasPrefix(step.Step, test.step) {
				t.Errorf("MoveIn = %v, want a fault in step %q", err, test.step)
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("MoveIn = %v, want %v", err, test.want)
			}
			if diff := cmp.Diff(before, world(t, host)+world(t, container)); diff != "" {
				t.Errorf("a failed MoveIn changed (-before +after):\n%s", diff)
			}
		})
	}
}

func TestNetnsConfigureUndoesEachStep(t *testing.T) {
	injected := errors.New("injected")
	// Taking an interface down takes its routes away; one that was up before
	// stays up.
	for _, state := range []string{"down", "up"} {
		ns := nstest.NewNS(t)
		newTUN(t, ns, "eth0")
		// A link-local address would come a moment after the start, by itself.
		nstest.Exec(t, ns, "ip", "link", "set", "eth0", "addrgenmode", "none")
		nstest.Exec(t, ns, "ip", "link", "set", "eth0", state)
		before := world(t, ns)
		for n := 0; ; n++ {
			step := 0
			err := ns.Do(func() error {
				return netns.ConfigureBefore(containerInterface(), func(string) error {
					if step++; step <= n {
						return nil
					}
					return injected
				})
			})
			if err == nil {
				break
			}
			if !errors.Is(err, injected) {
				t.Fatalf("with %d steps done, of an interface that is %s: %v", n, state, err)
			}
			if diff := cmp.Diff(before, world(t, ns)); diff != "" {
				t.Fatalf("of an interface that is %s, after %v (-before +after):\n%s", state, err, diff)
			}
		}
	}
}
