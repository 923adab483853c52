package daemon

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

// reaches reports whether one container gets a greeting from a port of another,
// in both families, which have to agree.
func reaches(t *testing.T, from, to *container) bool {
	t.Helper()
	var got []bool
	for _, p := range to.reply.Addrs {
		l := nstest.Listen(t, to.ns, "tcp", netip.AddrPortFrom(p.Addr(), 0).String())
		go greet(l)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		c, err := nstest.DialContext(ctx, from.ns, "tcp", l.Addr().String())
		cancel()
		if err == nil {
			_, err = io.ReadAll(c)
			c.Close()
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v of %s: %v; a refusal should be told at once", p, to.key, err)
		}
		got = append(got, err == nil)
		l.Close()
	}
	if len(got) != 2 || got[0] != got[1] {
		t.Errorf("%s to %s: reached by family %v", from.key, to.key, got)
	}
	return got[0]
}

// TestNetnsPolicies: networks are joined while both are open, containers of one
// are apart while it isolates them, by amendments and by attaches; a restart
// remembers.
func TestNetnsPolicies(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	req := request("b")
	req.Network, req.Sets = "net2", sets("10.10.0.0/24", "fd10::/64")
	req.IngressPolicy = control.IngressOpen
	a, a2, b := attach(t, r.Client, request("a")), attach(t, r.Client, request("a2")), attach(t, r.Client, req)
	for _, step := range []struct {
		name          string
		wishes        control.PolicyWishes // of a's network
		joined, apart bool
	}{
		{"default", control.PolicyWishes{}, false, false},
		{"open", control.PolicyWishes{IngressPolicy: control.IngressOpen}, true, false},
		{"ports isolated", control.PolicyWishes{PortIsolation: ptr(true)}, true, true},
		{"no longer", control.PolicyWishes{PortIsolation: ptr(false)}, true, false},
		{"isolated", control.PolicyWishes{IngressPolicy: control.IngressIsolated}, false, true},
		{"same-bridge", control.PolicyWishes{IngressPolicy: control.IngressSameBridge, Hairpin: ptr(false)}, false, false},
	} {
		n, err := r.AmendNetwork(t.Context(), "net", control.AmendNetworkRequest{PolicyWishes: step.wishes})
		if err != nil {
			t.Fatal(err)
		}
		if w := step.wishes.IngressPolicy; w != "" && n.IngressPolicy != w {
			t.Errorf("%s: the reply says %s", step.name, n.IngressPolicy)
		}
		for _, pair := range []struct {
			from, to *container
			want     bool
		}{{a, b, step.joined}, {b, a, step.joined}, {a, a2, !step.apart}} {
			if got := reaches(t, pair.from, pair.to); got != pair.want {
				t.Errorf("%s: %s reaches %s: %v", step.name, pair.from.key, pair.to.key, got)
			}
		}
	}
	flows, err := r.Flows(t.Context(), control.FlowQuery{Link: b.key.String()})
	if err != nil {
		t.Fatal(err)
	}
	peers := map[string]bool{}
	for _, f := range flows {
		if f.Verdict == "FORWARDED" {
			peers[f.Link+" "+f.Peer] = true
		}
	}
	if want := map[string]bool{"net/a/eth0 net2/b/eth0": true, "net2/b/eth0 net/a/eth0": true}; !cmp.Equal(peers, want) {
		t.Errorf("flows of b: %v, want %v", peers, want)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	for name, want := range map[string]control.Network{
		"net": {IngressPolicy: control.IngressSameBridge}, "net2": {IngressPolicy: control.IngressOpen, Hairpin: true},
	} {
		n, err := r.Network(t.Context(), name)
		if err != nil || n.IngressPolicy != want.IngressPolicy || n.Hairpin != want.Hairpin || n.PortIsolation {
			t.Errorf("%s after a restart: %+v, %v", name, n, err)
		}
		if p := r.d.network(name).sw.Policy(); string(p.Ingress) != want.IngressPolicy || p.NoHairpin == want.Hairpin {
			t.Errorf("%s: the switch has %+v", name, p)
		}
	}
}

// TestNetnsAttachAmendsPolicy: the last attach's word counts on networks that
// attaches define, and is a conflict on others.
func TestNetnsAttachAmendsPolicy(t *testing.T) {
	r := start(t, testConfig(t))
	attach(t, r.Client, request("a"))
	req := request("b")
	req.IngressPolicy, req.PortIsolation = control.IngressOpen, ptr(true)
	attach(t, r.Client, req)
	attach(t, r.Client, request("c")) // wishes nothing
	if n, err := r.Network(t.Context(), "net"); err != nil || n.IngressPolicy != control.IngressOpen || !n.PortIsolation || !n.Hairpin {
		t.Errorf("%+v, %v", n, err)
	}
	_, err := r.CreateNetwork(t.Context(), control.CreateNetworkRequest{
		Name: "mine", Sets: sets("10.11.0.0/24"), PolicyWishes: control.PolicyWishes{IngressPolicy: control.IngressIsolated},
	})
	if err != nil {
		t.Fatal(err)
	}
	req.Network, req.Sets = "mine", nil
	_, err = tryAttach(t, r.Client, req)
	wantCode(t, err, control.CodeConflict)
	if err == nil || !strings.Contains(err.Error(), "ingressPolicy isolated") || !strings.Contains(err.Error(), "network set mine") {
		t.Errorf("error %v", err)
	}
	req.IngressPolicy, req.PortIsolation = control.IngressIsolated, nil
	attach(t, r.Client, req)
}

func TestPolicyIsJudged(t *testing.T) {
	cfg := testConfig(t)
	file, err := parseFile([]byte("networks: [{name: fixed, subnets: [10.12.0.0/24], ingressPolicy: open, hairpin: false}]"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.File = file
	r := start(t, cfg)
	if n, err := r.Network(t.Context(), "fixed"); err != nil || n.IngressPolicy != control.IngressOpen || n.Hairpin {
		t.Errorf("%+v, %v", n, err)
	}
	bad := control.PolicyWishes{IngressPolicy: "Open"}
	_, err = r.CreateNetwork(t.Context(), control.CreateNetworkRequest{Name: "x", PolicyWishes: bad})
	wantCode(t, err, control.CodeInvalid)
	_, err = r.AmendNetwork(t.Context(), "fixed", control.AmendNetworkRequest{PolicyWishes: bad})
	wantCode(t, err, control.CodeInvalid)
	_, err = r.AmendNetwork(t.Context(), "fixed", control.AmendNetworkRequest{PolicyWishes: control.PolicyWishes{PortIsolation: ptr(true)}})
	wantCode(t, err, control.CodeConflict)
	_, err = r.AmendNetwork(t.Context(), "none", control.AmendNetworkRequest{})
	wantCode(t, err, control.CodeNotFound)
}

// TestPolicyUndoesEveryStep: a change that fails leaves switch and disk as they
// were.
func TestPolicyUndoesEveryStep(t *testing.T) {
	cfg := testConfig(t)
	failAt := failing(&cfg)
	r := start(t, cfg)
	if _, err := r.CreateNetwork(t.Context(), control.CreateNetworkRequest{Name: "n", Sets: sets("10.9.0.0/24")}); err != nil {
		t.Fatal(err)
	}
	want := r.d.network("n").sw.Policy()
	for _, step := range []string{stepPolicySwitch, stepPolicyRecord} {
		failAt(step)
		_, err := r.AmendNetwork(t.Context(), "n", control.AmendNetworkRequest{PolicyWishes: control.PolicyWishes{IngressPolicy: control.IngressOpen}})
		if err == nil || !strings.Contains(err.Error(), "boom") {
			t.Errorf("%s: %v", step, err)
		}
		state, err := r.d.store.load()
		if got := r.d.network("n").sw.Policy(); got != want || err != nil || state.networks[0].IngressPolicy != "" {
			t.Errorf("%s: switch %+v, disk %+v, %v", step, got, state.networks[0].networkPolicy, err)
		}
		if n, err := r.Network(t.Context(), "n"); err != nil || n.IngressPolicy != control.IngressSameBridge {
			t.Errorf("%s: %+v, %v", step, n, err)
		}
	}
}
