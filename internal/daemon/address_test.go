package daemon

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/control"
)

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

// TestNetnsIdleNetworkMakesRoom: a runtime removes a network without telling
// anybody, and gives its subnet to the next.
func TestNetnsIdleNetworkMakesRoom(t *testing.T) {
	r := start(t, testConfig(t))
	first := attach(t, r.Client, request("a"))
	next := request("b")
	next.Network, next.Sets = "next", sets("10.9.0.0/24")
	_, err := tryAttach(t, r.Client, next)
	wantCode(t, err, control.CodeNetworkExists)
	if _, err := r.Detach(t.Context(), control.LinkKey{Network: "net", Container: "a", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	attach(t, r.Client, next)
	if _, err := r.Network(t.Context(), "net"); control.CodeOf(err) != control.CodeNotFound {
		t.Errorf("the idle network is still there: %v (was %v)", err, first.reply.Addrs)
	}
	// A network that somebody made is not given up for another's sake.
	if _, err := r.CreateNetwork(t.Context(), control.CreateNetworkRequest{Name: "made", Subnets: []netip.Prefix{netip.MustParsePrefix("10.10.0.0/24")}}); err != nil {
		t.Fatal(err)
	}
	next = request("c")
	next.Network, next.Sets = "other", sets("10.10.0.0/16")
	_, err = tryAttach(t, r.Client, next)
	wantCode(t, err, control.CodeNetworkExists)
}
