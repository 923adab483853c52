package netstack

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// hostNS is the namespace that the test's process, and so every host socket, is
// in.
func hostNS(t *testing.T) *netns.Handle {
	t.Helper()
	h, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// pings are what a user may try; each must get all its answers.
func pings(t *testing.T, w *outsideWorld) {
	t.Helper()
	families(t, func(t *testing.T, v4 bool) {
		// One at a time: after a first answer ping waits for others only twice
		// as long as that one took, whatever -W says.
		for _, args := range []string{"-c 1", "-c 1 -s 0", "-c 1 -s 1472", "-c 1 -s 5000", "-c 1 -t 5"} {
			argv := append([]string{"ping", "-n", "-W", "3"}, strings.Fields(args)...)
			argv = append(argv, serverAddr(v4).String())
			out, err := nstest.TryExec(t, w.c.ns, argv...)
			if err != nil || !strings.Contains(out, " 0% packet loss") {
				t.Errorf("%s: %v\n%s\ndrops %v", strings.Join(argv, " "), err, out, w.c.link.Stats().Drops)
			}
		}
		out, err := nstest.TryExec(t, w.c.ns, "ping", "-n", "-c", "1", "-W", "3", "-t", "2", serverAddr(v4).String())
		router := map[bool]string{true: "10.77.0.2", false: "fd77::2"}[v4]
		if err == nil || !regexp.MustCompile(`(?i)from `+regexp.QuoteMeta(router)+`.* (time to live|time exceeded)`).MatchString(out) {
			t.Errorf("ping with a hop limit of 2: %v\n%s", err, out)
		}
		traceroute(t, w, v4, "-I")
	})
}

// traceroute must see the gateway, the router and the server, in that order.
func traceroute(t *testing.T, w *outsideWorld, v4 bool, method string) {
	t.Helper()
	family, hops := "-4", []string{"10.88.0.1", "10.77.0.2", "10.78.0.2"}
	if !v4 {
		family, hops = "-6", []string{"fd00:88::1", "fd77::2", "fd78::2"}
	}
	out := nstest.Exec(t, w.c.ns, "traceroute", "-n", family, "-q", "1", "-w", "2", "-m", "5", method, serverAddr(v4).String())
	lines := strings.Split(strings.TrimSpace(out), "\n")[1:]
	if len(lines) != len(hops) {
		t.Fatalf("traceroute %s: %d hops, want %d\n%s\ndrops %v", method, len(lines), len(hops), out, w.c.link.Stats().Drops)
	}
	for i, want := range hops {
		if f := strings.Fields(lines[i]); len(f) < 2 || f[1] != want {
			t.Errorf("traceroute %s: hop %d is not %s:\n%s", method, i+1, want, out)
		}
	}
}

func TestNetnsPingUnprivileged(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	pings(t, w)
	if err := PingAvailable(); err != nil {
		t.Error(err)
	}
	for _, s := range w.c.link.nat.ping.socketList() {
		if s.raw {
			t.Error("a raw socket where an unprivileged one may be had")
		}
	}
}

func TestNetnsPingRaw(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	sysctl(t, hostNS(t), "net.ipv4.ping_group_range", "1 0")
	// The host's own pings and the container's must not disturb each other.
	done := make(chan string)
	go func() {
		out, _ := nstest.TryExec(t, hostNS(t), "ping", "-n", "-c", "30", "-i", "0.05", "10.78.0.2")
		done <- out
	}()
	pings(t, w)
	if out := <-done; !strings.Contains(out, "30 received") || strings.Contains(out, "DUP") {
		t.Errorf("the host's own ping:\n%s", out)
	}
	for _, s := range w.c.link.nat.ping.socketList() {
		if !s.raw {
			t.Error("an unprivileged socket where none may be had")
		}
	}
	if d := w.c.link.Stats().Drops; d["unsolicited"] != 0 {
		t.Errorf("replies to the host's own ping reached the container's socket: %v", d)
	}
}

func TestNetnsTracerouteUDP(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, nil)
	families(t, func(t *testing.T, v4 bool) { traceroute(t, w, v4, "-U") })
}

func TestNetnsPingLimits(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, func(c *Config) { c.Limits.PingFlows = 2 })
	for range 4 {
		nstest.Exec(t, w.c.ns, "ping", "-n", "-c", "1", "-W", "3", "10.77.0.2")
		if n := w.c.link.nat.ping.size(); n == 2 {
			break
		}
	}
	out, err := nstest.TryExec(t, w.c.ns, "ping", "-n", "-c", "1", "-W", "1", "10.77.0.2")
	if err == nil || w.c.link.Stats().Drops["flow_limit"] == 0 {
		t.Errorf("over the limit: %v, drops %v\n%s", err, w.c.link.Stats().Drops, out)
	}
}

// What policy refuses is refused to pings too, and the container is told.
func TestNetnsPingRefused(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	w := newOutsideWorld(t, func(c *Config) { c.Refuse = []netip.Prefix{netip.MustParsePrefix("10.78.0.0/24")} })
	for target, want := range map[string]string{
		"10.78.0.2": "Packet filtered",
		"10.77.0.1": "Packet filtered", // the host's own address
		"fd77::1":   "Administratively prohibited",
	} {
		out, err := nstest.TryExec(t, w.c.ns, "ping", "-n", "-c", "1", "-W", "2", target)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s", target, err, out)
		}
	}
}
