package policy

import (
	"fmt"
	"net/netip"
	"testing"
)

// peerWorld is what a network may be to another one, and to its own links.
type peerWorld struct {
	ingress                 Ingress
	portIsolation, internal bool
}

func peerWorlds() (all []peerWorld) {
	for i := range ingressNames {
		for _, isolation := range []bool{false, true} {
			for _, internal := range []bool{false, true} {
				all = append(all, peerWorld{Ingress(i), isolation, internal})
			}
		}
	}
	return all
}

func (w peerWorld) table(t testing.TB) *Table {
	r := testRules()
	r.Ingress, r.PortIsolation, r.Internal = w.ingress, w.portIsolation, w.internal
	return compile(t, r)
}

// TestDecidePeer: two networks are joined when both are open and neither is
// internal; links of one network when nothing keeps them apart.
func TestDecidePeer(t *testing.T) {
	joined := 0
	for _, from := range peerWorlds() {
		a := from.table(t)
		want := Verdict{Action: Forward, Target: TargetLink}
		if from.portIsolation || from.ingress == IngressIsolated {
			want = reject(ReasonPortIsolation)
		}
		if got := a.DecidePeer(a, true); got != want {
			t.Errorf("within %+v: got %+v, want %+v", from, got, want)
		}
		for _, to := range peerWorlds() {
			b := to.table(t)
			want := reject(ReasonOtherNetwork)
			if from.ingress == IngressOpen && to.ingress == IngressOpen && !from.internal && !to.internal {
				want = Verdict{Action: Forward, Target: TargetLink}
				joined++
			}
			if got := a.DecidePeer(b, false); got != want {
				t.Errorf("from %+v to %+v: got %+v, want %+v", from, to, got, want)
			}
			if a.DecidePeer(b, false) != b.DecidePeer(a, false) {
				t.Errorf("%+v and %+v: one way only", from, to)
			}
		}
	}
	if joined != 4 { // with and without isolated ports, each
		t.Errorf("%d pairs are joined, want 4", joined)
	}
}

func TestDecidePeerOfNothingDrops(t *testing.T) {
	open := peerWorld{ingress: IngressOpen}.table(t)
	for _, same := range []bool{false, true} {
		for _, pair := range [][2]*Table{{nil, nil}, {nil, open}, {open, nil}} {
			if v := pair[0].DecidePeer(pair[1], same); v != drop(ReasonInvalid) {
				t.Errorf("same %v: got %+v", same, v)
			}
		}
	}
	zero := new(Table)
	if v := zero.DecidePeer(open, false); v.Action == Forward {
		t.Errorf("the zero table reaches an open network: %+v", v)
	}
	if v := open.DecidePeer(zero, false); v.Action == Forward {
		t.Errorf("an open network reaches the zero table: %+v", v)
	}
}

func TestParseIngress(t *testing.T) {
	for i, name := range ingressNames {
		if got, err := ParseIngress(name); got != Ingress(i) || err != nil || got.String() != name {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if got, err := ParseIngress(""); got != IngressSameBridge || err != nil {
		t.Errorf("empty: %v, %v", got, err)
	}
	if _, err := ParseIngress("Open"); err == nil {
		t.Error("Open: no error")
	}
	if _, err := Compile(Rules{Ingress: 77}); err == nil {
		t.Error("ingress 77 compiles")
	}
	if Ingress(77).String() != "unknown" {
		t.Error(Ingress(77))
	}
}

// TestDecidePublished: a publication opens its own port of the host's
// addresses and of the gateway, and nothing that is refused for another reason.
func TestDecidePublished(t *testing.T) {
	for _, hairpin := range []bool{true, false} {
		for _, internal := range []bool{false, true} {
			r := testRules()
			r.NoHairpin, r.Internal = !hairpin, internal
			table := compile(t, r)
			for _, d := range destinations {
				for _, s := range []string{d.v4, d.v6} {
					if s == "" {
						continue
					}
					for _, proto := range []uint8{protoTCP, protoUDP} {
						dst := netip.AddrPortFrom(addr(s), 9000)
						f := Flow{Origin: FromContainer, Proto: proto, Src: containerAddr(dst.Addr()), Dst: dst}
						want := table.Decide(f, testHost, isTestLink)
						if !internal && (want == reject(ReasonHostAddress) || d.class == "gateway") {
							want = Verdict{Action: Forward, Target: TargetPublication, Addr: dst}
							if !hairpin {
								want = reject(ReasonHairpin)
							}
						}
						f.Published = true
						own := f
						own.OwnPort = true
						wantOwn := want
						if want.Target == TargetPublication {
							wantOwn = reject(ReasonHairpin)
						}
						if got := table.Decide(own, testHost, isTestLink); got != wantOwn {
							t.Errorf("%s, its own port, hairpin %v, internal %v: got %+v, want %+v", d.class, hairpin, internal, got, wantOwn)
						}
						if got := table.Decide(f, testHost, isTestLink); got != want {
							t.Errorf("%s, hairpin %v, internal %v: got %+v, want %+v", d.class, hairpin, internal, got, want)
						}
					}
				}
			}
		}
	}
	// DNS and host services go before publications.
	table := compile(t, testRules())
	for port, want := range map[uint16]Target{53: TargetDNS, 8080: TargetHostService} {
		f := Flow{Origin: FromContainer, Proto: protoTCP, Src: addrPort("10.5.0.2:1"), Dst: netip.AddrPortFrom(addr("10.5.0.1"), port), Published: true}
		if got := table.Decide(f, testHost, isTestLink); got.Target != want {
			t.Error(fmt.Sprint(port), got)
		}
	}
}
