package daemon

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

// TestNetnsNetworksAreApart: a container of one network does not reach one of
// another, not even by way of the host.
func TestNetnsNetworksAreApart(t *testing.T) {
	r := start(t, testConfig(t))
	a := attach(t, r.Client, request("a"))
	other := request("b")
	other.Network, other.Sets = "net2", sets("10.10.0.0/24", "fd10::/64")
	b := attach(t, r.Client, other)
	for _, p := range b.reply.Addrs {
		l := nstest.Listen(t, b.ns, "tcp", netip.AddrPortFrom(p.Addr(), 80).String())
		go greet(l)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if c, err := nstest.DialContext(ctx, a.ns, "tcp", l.Addr().String()); err == nil {
			c.Close()
			t.Errorf("%v of another network was reached", p)
		}
		cancel()
	}
	st, err := r.Stats(t.Context(), "net")
	if err != nil || st.Networks[0].Drops["policy_other_network"] == 0 {
		t.Errorf("drops %v, %v; want some of policy_other_network", st.Networks[0].Drops, err)
	}
}

// TestNetnsHostAddressesAreFollowed: an address that the host gets while the
// daemon runs is refused to containers from then on.
func TestNetnsHostAddressesAreFollowed(t *testing.T) {
	dir := t.TempDir()
	host := nstest.NewNS(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = testWriter{t}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	nstest.Start(t, host, cmd)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
	c := control.Dial(filepath.Join(dir, "s.sock"))
	box := attach(t, c, request("a"))
	for _, addr := range []string{"203.0.113.7", "2001:db8::7"} {
		add := []string{"ip", "address", "add", addr, "dev", "lo"}
		if strings.Contains(addr, ":") {
			add = append(add, "nodad") // usable at once
		}
		nstest.Exec(t, host, add...)
		go greet(nstest.Listen(t, host, "tcp", net.JoinHostPort(addr, "80")))
		// The kernel tells the daemon in its own time; until then a connection
		// may succeed.
		drops := func() uint64 {
			st, err := c.Stats(t.Context(), "net")
			if err != nil || len(st.Networks) != 1 {
				t.Fatalf("stats %+v, %v", st, err)
			}
			return st.Networks[0].Drops["policy_host_address"]
		}
		before := drops()
		nstest.WaitFor(t, patience, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			conn, err := nstest.DialContext(ctx, box.ns, "tcp", net.JoinHostPort(addr, "80"))
			if err == nil {
				conn.Close()
			}
			return err != nil && drops() > before
		})
	}
}
