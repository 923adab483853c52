package daemon

import (
	"context"
	"errors"
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
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

func TestNetnsAttachGivesNetwork(t *testing.T) {
	r := start(t, testConfig(t))
	a := attach(t, r.Client, request("box-a"))
	req := request("box-b")
	req.Hostname, req.Aliases = "web", []string{"www"}
	b := attach(t, r.Client, req)
	if got := fmt.Sprint(a.reply.Addrs, a.reply.Gateways, a.reply.MTU); got != "[10.9.0.2/24 fd09::2/64] [10.9.0.1 fd09::1] 1500" {
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
	boom := errors.New("boom")
	var failing string
	var mu sync.Mutex
	cfg.fault = func(step string) error {
		mu.Lock()
		defer mu.Unlock()
		if step == failing {
			return boom
		}
		return nil
	}
	r := start(t, cfg)
	keep := attach(t, r.Client, request("keep")) // makes the network, and must not suffer
	req := request("box")
	req.Hostname = "web"
	req.Publications = []control.PublicationSpec{{Proto: "tcp", Port: 80}, {Proto: "tcp", Port: 81, FD: true}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	lf, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer lf.Close()
	tun, _ := tunFile(t)
	before, fds := r.world(t), openFDs(t)
	for _, step := range attachSteps {
		t.Run(step, func(t *testing.T) {
			mu.Lock()
			failing = step
			mu.Unlock()
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
	mu.Lock()
	failing = ""
	mu.Unlock()
	// The same request works when nothing fails, and the other link lives.
	a, err := r.Attach(t.Context(), req, tun, lf)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Reply.Publications) != 2 || a.Reply.Publications[1].HostPort != uint16(ln.Addr().(*net.TCPAddr).Port) {
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

func TestNetnsAddresses(t *testing.T) {
	r := start(t, testConfig(t))
	addr := netip.MustParseAddr
	req := request("a")
	req.IPs = []netip.Addr{addr("10.9.0.77"), addr("fd09::77")}
	if got := fmt.Sprint(attach(t, r.Client, req).reply.Addrs); got != "[10.9.0.77/24 fd09::77/64]" {
		t.Errorf("static addresses: %s", got)
	}
	tests := []struct {
		name string
		edit func(*control.AttachRequest)
		code control.Code
		says string
	}{
		{"taken", func(q *control.AttachRequest) { q.IPs = []netip.Addr{addr("10.9.0.77")} }, control.CodeAddressInUse, "net/a/eth0"},
		{"out of range", func(q *control.AttachRequest) { q.IPs = []netip.Addr{addr("10.8.0.7")} }, control.CodeOutOfRange, "10.8.0.7"},
		{"gateway", func(q *control.AttachRequest) { q.IPs = []netip.Addr{addr("10.9.0.1")} }, control.CodeOutOfRange, "10.9.0.1"},
		{"other ranges", func(q *control.AttachRequest) { q.Sets = sets("10.99.0.0/24") }, control.CodeConflict, "10.99.0.0/24"},
		{"delegated addresses", func(q *control.AttachRequest) {
			q.Sets, q.Addrs = nil, []netip.Prefix{netip.MustParsePrefix("10.9.0.8/24")}
		}, control.CodeConflict, "leases its own"},
		{"internal", func(q *control.AttachRequest) { q.Internal = true }, control.CodeConflict, "internal"},
		{"no network", func(q *control.AttachRequest) { q.Network, q.Sets = "nowhere", nil }, control.CodeNotFound, `"nowhere"`},
		{"overlap", func(q *control.AttachRequest) { q.Network, q.Sets = "other", sets("10.9.0.0/16") }, control.CodeNetworkExists, "network net"},
		{"ifname", func(q *control.AttachRequest) { q.IfName = "a/b" }, control.CodeInvalid, `"a/b"`},
		{"MTU", func(q *control.AttachRequest) { q.MTU = 70000 }, control.CodeInvalid, "70000"},
		{"hostname", func(q *control.AttachRequest) { q.Hostname = "a b" }, control.CodeInvalid, `"a b"`},
		{"boot", func(q *control.AttachRequest) { q.BootID = "x" }, control.CodeInvalid, "bootID"},
		{"protocol", func(q *control.AttachRequest) {
			q.Publications = []control.PublicationSpec{{Proto: "sctp", Port: 5}}
		}, control.CodeInvalid, "sctp"},
		{"dns", func(q *control.AttachRequest) { q.DNS = &control.DNSConf{Search: []string{"a\nnameserver x"}} }, control.CodeInvalid, "white space"},
	}
	tun, _ := tunFile(t)
	before := r.world(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := request("b")
			tt.edit(&req)
			_, err := r.Attach(t.Context(), req, tun)
			wantCode(t, err, tt.code)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v does not say %q", err, tt.says)
			}
		})
	}
	if d := cmp.Diff(before, r.world(t)); d != "" {
		t.Errorf("refused requests changed the world:\n%s", d)
	}
}

func TestNetnsExhaustionIsSaid(t *testing.T) {
	r := start(t, testConfig(t))
	small := func(name string) control.AttachRequest {
		req := request(name)
		req.Sets = sets("10.9.0.0/30") // one address beside the gateway
		return req
	}
	attach(t, r.Client, small("a"))
	tun, _ := tunFile(t)
	_, err := r.Attach(t.Context(), small("b"), tun)
	wantCode(t, err, control.CodeExhausted)
	st, err := r.Status(t.Context(), "net")
	if err != nil || st.Ready || len(st.Problems) != 1 || st.Problems[0].Code != control.CodeExhausted || st.Problems[0].Object != "net" {
		t.Errorf("status %+v, %v", st, err)
	}
	if st, err = r.Status(t.Context(), "other"); err != nil || !st.Ready {
		t.Errorf("status of another network %+v, %v", st, err)
	}
}

func TestNetnsDelegatedAddresses(t *testing.T) {
	r := start(t, testConfig(t))
	delegated := func(name string, addrs ...string) control.AttachRequest {
		req := request(name)
		req.Sets = nil
		for _, a := range addrs {
			req.Addrs = append(req.Addrs, netip.MustParsePrefix(a))
		}
		return req
	}
	a := delegated("a", "10.9.0.5/24", "fd09::5/64")
	a.Gateways = []netip.Addr{netip.MustParseAddr("10.9.0.254"), {}}
	box := attach(t, r.Client, a)
	if got := fmt.Sprint(box.reply.Addrs, box.reply.Gateways); got != "[10.9.0.5/24 fd09::5/64] [10.9.0.254 fd09::1]" {
		t.Errorf("reply %s", got)
	}
	tun, _ := tunFile(t)
	_, err := r.Attach(t.Context(), delegated("b", "10.9.0.5/24"), tun)
	wantCode(t, err, control.CodeConflict) // another gateway
	b := delegated("b", "10.9.0.5/24", "fd09::6/64")
	b.Gateways = a.Gateways
	_, err = r.Attach(t.Context(), b, tun)
	wantCode(t, err, control.CodeAddressInUse)
	_, err = r.Attach(t.Context(), request("c"), tun) // ranges on such a network
	wantCode(t, err, control.CodeConflict)
	_, err = r.Attach(t.Context(), delegated("d", "10.77.0.1/32"), tun)
	wantCode(t, err, control.CodeInvalid)
}

// TestNetnsNetworkOfAttachesIsRedefinedWhenEmpty: a runtime changes its
// configuration between containers.
func TestNetnsNetworkOfAttachesIsRedefinedWhenEmpty(t *testing.T) {
	r := start(t, testConfig(t))
	box := attach(t, r.Client, request("a"))
	wantCode(t, r.RemoveNetwork(t.Context(), "net"), control.CodeNetworkInUse)
	if err := r.RemoveNetwork(t.Context(), "net"); !strings.Contains(err.Error(), "net/a/eth0") {
		t.Errorf("error %q does not name the link", err)
	}
	if _, err := r.Detach(t.Context(), box.key); err != nil {
		t.Fatal(err)
	}
	req := request("a")
	req.Sets = sets("10.55.0.0/24")
	if got := fmt.Sprint(attach(t, r.Client, req).reply.Addrs); got != "[10.55.0.2/24]" {
		t.Errorf("after the change: %s", got)
	}
}

func TestNetnsDescriptorsAreChecked(t *testing.T) {
	r := start(t, testConfig(t))
	tun, _ := tunFile(t)
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	_, err = r.Attach(t.Context(), request("a"), file)
	wantCode(t, err, control.CodeDescriptor)

	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	uf, err := udp.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer uf.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tf, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tf.Close()
	port := uint16(tcp.Addr().(*net.TCPAddr).Port)
	before := r.world(t)
	for _, tt := range []struct {
		spec control.PublicationSpec
		file *os.File
		says string
	}{
		{control.PublicationSpec{Proto: "tcp", Port: 80, FD: true}, file, "no socket"},
		{control.PublicationSpec{Proto: "tcp", Port: 80, FD: true}, uf, "not a TCP"},
		{control.PublicationSpec{Proto: "udp", Port: 80, FD: true}, tf, "not a UDP"},
		{control.PublicationSpec{Proto: "tcp", Port: 80, HostPort: port + 1, FD: true}, tf, fmt.Sprint("bound to port ", port)},
		{control.PublicationSpec{Proto: "tcp", Port: 80, HostIP: netip.MustParseAddr("127.0.0.2"), FD: true}, tf, "bound to 127.0.0.1"},
	} {
		req := request("a")
		req.Publications = []control.PublicationSpec{tt.spec}
		_, err := r.Attach(t.Context(), req, tun, tt.file)
		wantCode(t, err, control.CodeDescriptor)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("error %v does not say %q", err, tt.says)
		}
	}
	after := r.world(t)
	before.Networks, after.Networks = nil, nil // made by the first attach, kept
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("refused requests changed the world:\n%s", d)
	}
}

func TestNetnsPublications(t *testing.T) {
	r := start(t, testConfig(t))
	box := attach(t, r.Client, request("box"))
	go greet(nstest.Listen(t, box.ns, "tcp", netip.AddrPortFrom(box.reply.Addrs[0].Addr(), 80).String()))
	p, err := r.Publish(t.Context(), control.PublishRequest{Link: "box", PublicationSpec: control.PublicationSpec{Proto: "tcp", Port: 80}})
	if err != nil {
		t.Fatal(err)
	}
	host := netip.AddrPortFrom(p.HostIP, p.HostPort).String()
	if p.HostIP != netip.MustParseAddr("127.0.0.1") || p.HostPort == 0 {
		t.Errorf("published on %s, want a port of 127.0.0.1", host)
	}
	if got, err := readFrom(host); err != nil || got != "hello" {
		flows, ferr := r.Flows(t.Context(), control.FlowQuery{})
		stats, serr := r.Stats(t.Context(), "")
		t.Errorf("published port: %q, %v; flows %+v, %v; stats %+v, %v", got, err, flows, ferr, stats, serr)
	}
	_, err = r.Publish(t.Context(), control.PublishRequest{Link: "box", PublicationSpec: control.PublicationSpec{Proto: "tcp", Port: 81, HostPort: p.HostPort}})
	wantCode(t, err, control.CodePortInUse)
	if list, err := r.Publications(t.Context()); err != nil || len(list) != 1 || list[0] != p {
		t.Errorf("list %+v, %v", list, err)
	}
	if l, err := r.Link(t.Context(), box.key); err != nil || len(l.Publications) != 1 {
		t.Errorf("link %+v, %v", l, err)
	}
	if err := r.Unpublish(t.Context(), p.ID); err != nil {
		t.Error(err)
	}
	wantCode(t, r.Unpublish(t.Context(), p.ID), control.CodeNotFound)
	if _, err := readFrom(host); err == nil {
		t.Error("the port still answers")
	}
	for _, ref := range []string{"", "nothing", "net/x/eth0"} {
		_, err := r.Publish(t.Context(), control.PublishRequest{Link: ref, PublicationSpec: control.PublicationSpec{Proto: "tcp", Port: 80}})
		if code := control.CodeOf(err); code != control.CodeNotFound && code != control.CodeInvalid {
			t.Errorf("publish to %q: %v", ref, err)
		}
	}
}

func readFrom(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestNetnsNames(t *testing.T) {
	r := start(t, testConfig(t))
	long := strings.Repeat("0123456789abcdef", 4)
	ask := func(container, ifname, hostname string, aliases ...string) []string {
		req := request(container)
		req.IfName, req.Hostname, req.Aliases = ifname, hostname, aliases
		l, err := r.Link(t.Context(), attach(t, r.Client, req).key)
		if err != nil {
			t.Fatal(err)
		}
		return l.Names
	}
	for _, tt := range []struct {
		got  []string
		want string
	}{
		{ask("one", "eth0", "Web", "www"), "[web www one]"},
		{ask("two", "eth0", "web", "www"), "[www two]"},     // the hostname is taken, the alias is shared
		{ask("three", "eth0", "", "one", "web"), "[three]"}, // aliases do not answer for others' own names
		{ask(long, "eth0", ""), "[0123456789ab]"},
		{ask("one", "eth1", ""), "[one-eth1]"},
		{ask("gateway", "eth0", "gateway"), "[gateway-eth0]"},
		{ask("odd_.name.", "eth0", "h"), "[h " + hashName(control.LinkKey{Network: "net", Container: "odd_.name.", IfName: "eth0"}) + "]"},
	} {
		if got := fmt.Sprint(tt.got); got != tt.want {
			t.Errorf("names %s, want %s", got, tt.want)
		}
	}
	links, err := r.Links(t.Context(), "01234567")
	if err != nil || len(links) != 1 {
		t.Errorf("by prefix: %v, %v", links, err)
	}
	if _, err := r.Links(t.Context(), "012"); control.CodeOf(err) != control.CodeNotFound {
		t.Errorf("a prefix of three characters: %v", err)
	}
}

func TestNetnsGCIsScoped(t *testing.T) {
	r := start(t, testConfig(t))
	a := attach(t, r.Client, request("a"))
	attach(t, r.Client, request("b"))
	foreign := request("foreign")
	foreign.Owner = "other"
	attach(t, r.Client, foreign)
	elsewhere := request("elsewhere")
	elsewhere.Network, elsewhere.Sets = "net2", sets("10.10.0.0/24")
	attach(t, r.Client, elsewhere)
	got, err := r.GC(t.Context(), "net", control.GCRequest{Owner: "test", Valid: []control.LinkName{{Container: "a", IfName: "eth0"}}})
	if err != nil || !slices.Equal(got.Removed, []string{"net/b/eth0"}) {
		t.Errorf("removed %v, %v; want b only", got.Removed, err)
	}
	if got, err = r.GC(t.Context(), "net", control.GCRequest{Owner: "test"}); err != nil || !slices.Equal(got.Removed, []string{a.key.String()}) {
		t.Errorf("nothing valid: removed %v, %v", got.Removed, err)
	}
	if got, err = r.GC(t.Context(), "unknown", control.GCRequest{}); err != nil || len(got.Removed) != 0 {
		t.Errorf("unknown network: removed %v, %v", got.Removed, err)
	}
	if w := r.world(t); !slices.Equal(w.Links, []string{"net/foreign/eth0", "net2/elsewhere/eth0"}) {
		t.Errorf("left: %v", w.Links)
	}
}

func TestNetnsCaptureIsPcapng(t *testing.T) {
	r := start(t, testConfig(t))
	a, b := attach(t, r.Client, request("a")), attach(t, r.Client, request("b"))
	l := nstest.Listen(t, b.ns, "tcp", netip.AddrPortFrom(b.reply.Addrs[0].Addr(), 80).String())
	go greet(l)
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := r.Capture(ctx, control.CaptureQuery{Network: "net"}, pw)
		pw.CloseWithError(io.EOF)
		done <- err
	}()
	file, err := pcapgo.NewNgReader(pr, pcapgo.NgReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := nstest.Dial(t, a.ns, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	seen := map[int]bool{}
	for range 2 {
		data, info, err := file.ReadPacketData()
		if err != nil {
			t.Fatal(err)
		}
		seen[info.InterfaceIndex] = true
		if info.Length < 40 || data[0]>>4 != 4 {
			t.Errorf("packet of %d bytes begins with %#x", info.Length, data[0])
		}
	}
	if file.LinkType() != layers.LinkTypeRaw || !seen[0] || !seen[1] {
		t.Errorf("link type %v, interfaces %v; want raw IP and both links", file.LinkType(), seen)
	}
	intf, err := file.Interface(0)
	if err != nil || intf.Name != a.key.String() {
		t.Errorf("interface %+v, %v", intf, err)
	}
	cancel()
	go io.Copy(io.Discard, pr) //nolint:errcheck // only drains the pipe
	if err := <-done; err != nil {
		t.Errorf("Capture: %v", err)
	}
	wantCode(t, r.Capture(t.Context(), control.CaptureQuery{Link: "nobody"}, io.Discard), control.CodeNotFound)
}

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

func TestNetnsManyAttachesAtOnce(t *testing.T) {
	checkLeaks(t)
	r := start(t, testConfig(t))
	const n = 50
	tuns := make([]*os.File, n)
	for i := range tuns {
		tuns[i], _ = tunFile(t)
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
