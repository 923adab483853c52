package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/netstack"
)

// resolveFrom asks the network's DNS for a name's IPv4 address from within a
// container; an invalid address means that there is none.
func resolveFrom(t *testing.T, c *container, name string) netip.Addr {
	t.Helper()
	addrs, err := resolverOf(c).LookupNetIP(t.Context(), "ip4", name+".usernet.internal.")
	if e := (*net.DNSError)(nil); errors.As(err, &e) && e.IsNotFound {
		return netip.Addr{}
	} else if err != nil {
		t.Fatal(err)
	}
	return addrs[0].Unmap()
}

// resolverOf asks the network's DNS from within a container.
func resolverOf(c *container) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return nstest.DialContext(ctx, c.ns, network, netip.AddrPortFrom(c.reply.Gateways[0], 53).String())
	}}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func ptr[T any](v T) *T { return &v }

// TestNetnsAmendLink: names and bandwidth change while the link is attached,
// what is not named stays, and a restart remembers it.
func TestNetnsAmendLink(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	req := request("box")
	req.Hostname, req.Aliases = "web", []string{"www"}
	box, other := attach(t, r.Client, req), attach(t, r.Client, request("other"))
	limits := &control.Bandwidth{ToContainer: control.Rate{BitsPerSecond: 8e6, BurstBits: 8e4}}
	for _, step := range []struct {
		req   control.AmendLinkRequest
		names []string
		limit *control.Bandwidth
	}{
		{control.AmendLinkRequest{Bandwidth: limits}, []string{"web", "www", "box"}, limits},
		{control.AmendLinkRequest{Aliases: &[]string{"db", "DB", "other"}}, []string{"web", "db", "box"}, limits},
		{control.AmendLinkRequest{Hostname: ptr("other")}, []string{"db", "box"}, limits}, // another's own name
		{control.AmendLinkRequest{Hostname: ptr("new"), Bandwidth: &control.Bandwidth{}}, []string{"new", "db", "box"}, nil},
		{control.AmendLinkRequest{Aliases: new([]string)}, []string{"new", "box"}, nil},
	} {
		l, err := r.AmendLink(t.Context(), box.key, step.req)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(l.Names, step.names) || !cmp.Equal(l.Bandwidth, step.limit) {
			t.Errorf("names %v, bandwidth %+v; want %v, %+v", l.Names, l.Bandwidth, step.names, step.limit)
		}
		for _, name := range step.names[:len(step.names)-1] {
			if got := resolveFrom(t, other, name); got != box.reply.Addrs[0].Addr() {
				t.Errorf("%s is %v, want %v", name, got, box.reply.Addrs[0].Addr())
			}
		}
	}
	if got := resolveFrom(t, other, "web"); got.IsValid() {
		t.Errorf("the old hostname still resolves: %v", got)
	}
	// The old hostname is free for another.
	if l, err := r.AmendLink(t.Context(), other.key, control.AmendLinkRequest{Hostname: ptr("web")}); err != nil || !slices.Contains(l.Names, "web") {
		t.Errorf("amend other: %+v, %v", l, err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	if l, err := r.Link(t.Context(), box.key); err != nil || l.Hostname != "new" || len(l.Aliases) != 0 {
		t.Errorf("after a restart: %+v, %v", l, err)
	}
	_, err := r.AmendLink(t.Context(), box.key, control.AmendLinkRequest{})
	wantCode(t, err, control.CodeNotFound) // lost
}

// TestNetnsDomain: what a link's dns says is its domain is one of the
// network's, for both families and back, over amendments, and for its own names
// only; what is not known below it is asked upstream.
func TestNetnsDomain(t *testing.T) {
	r := start(t, testConfig(t))
	req := request("box")
	req.Hostname, req.Aliases, req.DNS = "Web", []string{"www", "db.corp.example"}, &control.DNSConf{Domain: "Corp.Example."}
	box, other := attach(t, r.Client, req), attach(t, r.Client, request("other"))
	link, err := r.Link(t.Context(), box.key)
	if want := []string{"web", "www", "db.corp.example", "box", "web.corp.example", "www.corp.example", "box.corp.example"}; err != nil || !slices.Equal(link.Names, want) {
		t.Fatalf("names %v, %v, want %v", link.Names, err, want)
	}
	resolver := resolverOf(other)
	check := func(back string, names ...string) {
		t.Helper()
		for _, addr := range box.reply.Addrs {
			network := "ip4"
			if addr.Addr().Is6() {
				network = "ip6"
			}
			for _, name := range names {
				got, err := resolver.LookupNetIP(t.Context(), network, name+".")
				if err != nil || len(got) != 1 || got[0].Unmap() != addr.Addr() {
					t.Errorf("%s is %v, %v, want %v", name, got, err, addr.Addr())
				}
			}
			if got, err := resolver.LookupAddr(t.Context(), addr.Addr().String()); err != nil || !slices.Equal(got, []string{back + "."}) {
				t.Errorf("%v is %v, %v, want %s", addr.Addr(), got, err, back)
			}
		}
	}
	check("web.corp.example", "web", "www.corp.example", "WEB.corp.example", "box.corp.example", "web.usernet.internal")
	if l, err := r.AmendLink(t.Context(), other.key, control.AmendLinkRequest{Aliases: &[]string{"web.corp.example"}}); err != nil || slices.Contains(l.Names, "web.corp.example") {
		t.Errorf("another link takes the name: %+v, %v", l, err)
	}
	if _, err := r.AmendLink(t.Context(), box.key, control.AmendLinkRequest{Hostname: ptr("new")}); err != nil {
		t.Fatal(err)
	}
	check("new.corp.example", "new.corp.example", "www.corp.example")
	if l, err := r.AmendLink(t.Context(), other.key, control.AmendLinkRequest{Aliases: &[]string{"web.corp.example"}}); err != nil || !slices.Contains(l.Names, "web.corp.example") {
		t.Errorf("the old name is not free: %+v, %v", l, err)
	}
	bad := request("bad")
	bad.DNS = &control.DNSConf{Domain: "-x"}
	_, err = tryAttach(t, r.Client, bad)
	wantCode(t, err, control.CodeInvalid)
}

func TestNetnsAmendRefuses(t *testing.T) {
	r := start(t, testConfig(t))
	box := attach(t, r.Client, request("box"))
	for _, req := range []control.AmendLinkRequest{
		{Hostname: ptr("no spaces")},
		{Aliases: &[]string{"-x"}},
		{Aliases: ptr(make([]string, maxAliases+1))},
		{Bandwidth: &control.Bandwidth{ToContainer: control.Rate{BurstBits: 8}}},
		{Bandwidth: &control.Bandwidth{FromContainer: control.Rate{BitsPerSecond: 8, BurstBits: maxBurst + 1}}},
	} {
		_, err := r.AmendLink(t.Context(), box.key, req)
		wantCode(t, err, control.CodeInvalid)
	}
	_, err := r.AmendLink(t.Context(), control.LinkKey{Network: "net", Container: "none", IfName: "eth0"}, control.AmendLinkRequest{})
	wantCode(t, err, control.CodeNotFound)
}

// TestNetnsAmendUndoesEveryStep: an amendment that fails leaves the link as it
// was.
func TestNetnsAmendUndoesEveryStep(t *testing.T) {
	cfg := testConfig(t)
	failAt := failing(&cfg)
	r := start(t, cfg)
	req := request("box")
	req.Hostname, req.Bandwidth = "web", &control.Bandwidth{FromContainer: control.Rate{BitsPerSecond: 8e6}}
	box := attach(t, r.Client, req)
	before, err := r.Link(t.Context(), box.key)
	if err != nil {
		t.Fatal(err)
	}
	world := r.world(t)
	amend := control.AmendLinkRequest{Hostname: ptr("x"), Aliases: &[]string{"y"}, Bandwidth: &control.Bandwidth{}}
	for _, step := range []string{stepAmendNames, stepAmendBandwidth, stepAmendRecord} {
		failAt(step)
		if _, err := r.AmendLink(t.Context(), box.key, amend); err == nil || !strings.Contains(err.Error(), "amend net/box/eth0: boom") {
			t.Errorf("%s: %v", step, err)
		}
		after, err := r.Link(t.Context(), box.key)
		if d := cmp.Diff(asJSON(t, before), asJSON(t, after)); d != "" || err != nil {
			t.Errorf("%s: %v, the link before (-) and after (+) differ:\n%s", step, err, d)
		}
		if d := cmp.Diff(world, r.world(t)); d != "" {
			t.Errorf("%s: the world before (-) and after (+) differ:\n%s", step, d)
		}
		sl := r.d.network("net").sw.Link("box")
		if got := sl.Aliases(); !slices.Equal(got, []string{"web"}) {
			t.Errorf("%s: the switch has aliases %v", step, got)
		}
		if got := sl.Bandwidth(); got != (netstack.Bandwidth{FromContainer: netstack.Rate{BitsPerSecond: 8e6}}) {
			t.Errorf("%s: the switch has bandwidth %v", step, got)
		}
	}
}
