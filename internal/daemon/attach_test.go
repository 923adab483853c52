package daemon

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

// TestNetnsLimitedLinkHasSmallPackets: TCP cannot pace packets of 64 KiB at a
// low rate; who asks for an MTU gets it all the same.
func TestNetnsLimitedLinkHasSmallPackets(t *testing.T) {
	r := start(t, testConfig(t))
	for mtu, want := range map[int]int{0: 1500, 9000: 9000} {
		req := request(fmt.Sprintf("box-%d", mtu))
		req.MTU, req.Bandwidth = mtu, &control.Bandwidth{ToContainer: control.Rate{BitsPerSecond: 5e6}}
		if a := attach(t, r.Client, req); a.reply.MTU != want {
			t.Errorf("MTU %d asked for: %d, want %d", mtu, a.reply.MTU, want)
		}
	}
}

func TestNetnsAttachGivesNetwork(t *testing.T) {
	r := start(t, testConfig(t))
	a := attach(t, r.Client, request("box-a"))
	req := request("box-b")
	req.Hostname, req.Aliases = "web", []string{"www"}
	b := attach(t, r.Client, req)
	if got := fmt.Sprint(a.reply.Addrs, a.reply.Gateways, a.reply.MTU); got != "[10.9.0.2/24 fd09::2/64] [10.9.0.1 fd09::1] 65520" {
		t.Errorf("reply %s", got)
	}
	if got := fmt.Sprint(a.reply.DNS); got != "{[10.9.0.1 fd09::1]  [usernet.internal] []}" {
		t.Errorf("dns %s", got)
	}
	for _, p := range b.reply.Addrs {
		l := nstest.Listen(t, b.ns, "tcp", netip.AddrPortFrom(p.Addr(), 80).String())
		go greet(l)
		c, err := nstest.Dial(t, a.ns, "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "hello" {
			t.Errorf("container to container over %v: %q, %v", p, got, err)
		}
		c.Close()
	}
	links, err := r.Links(t.Context(), "web")
	if err != nil || len(links) != 1 || links[0].Container != "box-b" || links[0].State != control.LinkAttached {
		t.Fatalf("link by name: %+v, %v", links, err)
	}
	if got := links[0].Names; !slices.Equal(got, []string{"web", "www", "box-b"}) {
		t.Errorf("names %v", got)
	}
	flows, err := r.Flows(t.Context(), control.FlowQuery{Link: "box-a"})
	if err != nil || len(flows) != 2 || flows[0].Link != a.key.String() || flows[0].Peer != b.key.String() || flows[0].Direction != "peer" {
		t.Errorf("flows %+v, %v", flows, err)
	}
	stats, err := r.Stats(t.Context(), "net")
	if err != nil || len(stats.Networks) != 1 || len(stats.Networks[0].Links) != 2 || stats.Networks[0].FromContainerPackets == 0 {
		t.Errorf("stats %+v, %v", stats, err)
	}
	for range 2 {
		removed, err := r.Detach(t.Context(), a.key)
		if err != nil {
			t.Error(err)
		}
		_ = removed
	}
	if removed, err := r.Detach(t.Context(), a.key); removed || err != nil {
		t.Errorf("third detach: %v, %v; want false, nil", removed, err)
	}
	_, err = r.Link(t.Context(), a.key)
	wantCode(t, err, control.CodeNotFound)
}

// greet says hello to everybody until the listener ends.
func greet(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, "hello") // the other side checks
		c.Close()
	}
}

// TestNetnsAttachUndoesEveryStep fails each step in turn and finds the world as
// it was.
func TestNetnsAttachUndoesEveryStep(t *testing.T) {
	cfg := testConfig(t)
	failAt := failing(&cfg)
	r := start(t, cfg)
	keep := attach(t, r.Client, request("keep")) // makes the network, and must not suffer
	req := request("box")
	req.Hostname = "web"
	req.Publications = []control.PublicationSpec{{Proto: "tcp", Port: 80}, {Proto: "tcp", Port: 81, FD: true}}
	lf, port := listenerFile(t)
	tun, _ := tunFile(t)
	before, fds := r.world(t), openFDs(t)
	for _, step := range attachSteps {
		t.Run(step, func(t *testing.T) {
			failAt(step)
			_, err := r.Attach(t.Context(), req, tun, lf)
			if err == nil || !strings.Contains(err.Error(), "attach net/box/eth0: boom") {
				t.Errorf("attach: %v", err)
			}
			if d := cmp.Diff(before, r.world(t)); d != "" {
				t.Errorf("the world before (-) and after (+) differ:\n%s", d)
			}
			nstest.WaitFor(t, patience, func() bool { return openFDs(t) <= fds })
		})
	}
	failAt("")
	// The same request works when nothing fails, and the other link lives.
	a, err := r.Attach(t.Context(), req, tun, lf)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Reply.Publications) != 2 || a.Reply.Publications[1].HostPort != port {
		t.Errorf("publications %+v", a.Reply.Publications)
	}
	a.Close()
	nstest.WaitFor(t, patience, func() bool { return cmp.Equal(before, r.world(t)) })
	if l, err := r.Link(t.Context(), keep.key); err != nil || l.State != control.LinkAttached {
		t.Errorf("the other link: %+v, %v", l, err)
	}
}

// TestNetnsNetworkOfAnAttachUnderWayStays: between its first and last step an
// attach holds the network.
func TestNetnsNetworkOfAnAttachUnderWayStays(t *testing.T) {
	cfg := testConfig(t)
	reached, proceed := make(chan struct{}), make(chan struct{})
	cfg.fault = func(step string) error {
		if step == stepIntent {
			close(reached)
			<-proceed
		}
		return nil
	}
	r := start(t, cfg)
	tun, _ := tunFile(t)
	done := make(chan error, 1)
	go func() {
		a, err := r.Attach(t.Context(), request("a"), tun)
		if err == nil {
			defer a.Close()
			err = a.Commit(t.Context())
		}
		done <- err
	}()
	<-reached
	wantCode(t, r.RemoveNetwork(t.Context(), "net"), control.CodeNetworkInUse)
	close(proceed)
	if err := <-done; err != nil {
		t.Errorf("attach: %v", err)
	}
	if w := r.world(t); len(w.Links) != 1 || len(w.Networks) != 1 {
		t.Errorf("world %+v", w)
	}
}

// listenerFile is a listening socket on a port of 127.0.0.1, as the plugin
// hands it over.
func listenerFile(t *testing.T) (*os.File, uint16) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // the file keeps the socket
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, uint16(ln.Addr().(*net.TCPAddr).Port)
}

func TestNetnsUncommittedLinkEndsWithItsConnection(t *testing.T) {
	r := start(t, testConfig(t))
	tun, _ := tunFile(t)
	a, err := r.Attach(t.Context(), request("box"), tun)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := r.Link(t.Context(), control.LinkKey{Network: "net", Container: "box", IfName: "eth0"}); err != nil || l.State != control.LinkAttaching {
		t.Errorf("before the commit: %+v, %v", l, err)
	}
	a.Close()
	nstest.WaitFor(t, patience, func() bool { w := r.world(t); return len(w.Links)+len(w.Records)+w.Leases+w.Switch+w.Names == 0 })

	// Ephemeral: the same after the commit.
	req := request("box")
	req.Ephemeral = true
	if a, err = r.Attach(t.Context(), req, tun); err != nil {
		t.Fatal(err)
	}
	if err := a.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Commit(t.Context()); err != nil {
		t.Errorf("second commit: %v", err)
	}
	a.Close()
	nstest.WaitFor(t, patience, func() bool { return len(r.world(t).Links) == 0 })
}

func TestNetnsCommittedLinkOutlivesItsConnection(t *testing.T) {
	r := start(t, testConfig(t))
	box := attach(t, r.Client, request("box"))
	box.att.Close()
	// The daemon has seen the connection's end when a later one has been
	// served and the session is over.
	nstest.WaitFor(t, patience, func() bool { return r.d.link(box.key).session.Context().Err() != nil })
	if l, err := r.Link(t.Context(), box.key); err != nil || l.State != control.LinkAttached {
		t.Errorf("link %+v, %v", l, err)
	}
}

func TestNetnsSecondAttachOfAKey(t *testing.T) {
	r := start(t, testConfig(t))
	first := attach(t, r.Client, request("box"))
	tun, _ := tunFile(t)
	_, err := r.Attach(t.Context(), request("box"), tun)
	wantCode(t, err, control.CodeConflict)
	if l, lerr := r.Link(t.Context(), first.key); lerr != nil || l.State != control.LinkAttached {
		t.Errorf("the first link after the conflict: %+v, %v", l, lerr)
	}
	// An uncommitted link whose maker has gone is no obstacle.
	a, err := r.Attach(t.Context(), request("other"), tun)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	tun2, _ := tunFile(t)
	a2, err := r.Attach(t.Context(), request("other"), tun2)
	if err != nil {
		t.Fatalf("attach after the first maker went: %v", err)
	}
	if err := a2.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	a2.Close()
}

// TestNetnsDeadNamespaceIsReclaimed: no DEL ever comes, and link, lease and
// record go within two seconds; a new ADD of the key need not wait.
func TestNetnsDeadNamespaceIsReclaimed(t *testing.T) {
	r := start(t, testConfig(t))
	box := attach(t, r.Client, request("box"))
	began := time.Now()
	if err := box.ns.Close(); err != nil {
		t.Fatal(err)
	}
	nstest.WaitFor(t, patience, func() bool { w := r.world(t); return len(w.Links)+len(w.Records)+w.Leases+w.Switch+w.Names == 0 })
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("reclaimed after %v, want 2 s at most", took)
	}
	box = attach(t, r.Client, request("box"))
	if err := box.ns.Close(); err != nil {
		t.Fatal(err)
	}
	attach(t, r.Client, request("box"))
}

func TestNetnsManyAttachesAtOnce(t *testing.T) {
	checkLeaks(t)
	r := start(t, testConfig(t))
	const n = 50
	tuns := make([]*os.File, n)
	for i := range tuns {
		tuns[i], _ = tunFile(t)
	}
	first := request("first")
	attach(t, r.Client, first) // makes the network, which holds descriptors of its own
	if _, err := r.Detach(t.Context(), first.Key()); err != nil {
		t.Fatal(err)
	}
	fds := openFDs(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	holders := map[netip.Addr]int{}
	began := time.Now()
	for i := range n {
		wg.Go(func() {
			a, err := r.Attach(t.Context(), request(fmt.Sprint("box", i)), tuns[i])
			if err != nil {
				t.Error(err)
				return
			}
			defer a.Close()
			if err := a.Commit(t.Context()); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, p := range a.Reply.Addrs {
				holders[p.Addr()]++
			}
		})
	}
	wg.Wait()
	t.Logf("%d attaches at once took %v", n, time.Since(began))
	if len(holders) != 2*n {
		t.Errorf("%d different addresses, want %d", len(holders), 2*n)
	}
	if w := r.world(t); len(w.Links) != n || len(w.Records) != n || w.Leases != n || w.Switch != n {
		t.Errorf("world %+v, want %d of each", w, n)
	}
	for i := range n {
		wg.Go(func() {
			if removed, err := r.Detach(t.Context(), control.LinkKey{Network: "net", Container: fmt.Sprint("box", i), IfName: "eth0"}); err != nil || !removed {
				t.Errorf("detach: %v, %v", removed, err)
			}
		})
	}
	wg.Wait()
	if w := r.world(t); len(w.Links)+len(w.Records)+w.Leases+w.Switch+w.Names != 0 {
		t.Errorf("left: %+v", w)
	}
	nstest.WaitFor(t, patience, func() bool { return openFDs(t) <= fds+2 }) // the database may hold on to a spare
}
