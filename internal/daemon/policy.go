package daemon

import (
	"cmp"
	"context"
	"fmt"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/netstack"
)

// The steps of a change of policy, by the names that Config.fault is asked with.
const (
	stepPolicySwitch = "policy switch"
	stepPolicyRecord = "policy record"
)

// networkPolicy is the part of a network's record that may change in its life.
// In memory network.policy has it, and the record's own is not looked at.
type networkPolicy struct {
	IngressPolicy string `json:"ingressPolicy,omitempty"` // empty: control.IngressSameBridge
	PortIsolation bool   `json:"portIsolation,omitempty"`
	NoHairpin     bool   `json:"noHairpin,omitempty"`
}

// with is the policy changed as wished, or says what is wrong with the wishes.
func (p networkPolicy) with(w *control.PolicyWishes) (networkPolicy, error) {
	switch w.IngressPolicy {
	case "":
	case control.IngressOpen, control.IngressSameBridge, control.IngressIsolated:
		p.IngressPolicy = w.IngressPolicy
	default:
		return p, control.Errorf(control.CodeInvalid, "ingressPolicy %q: want %q, %q or %q",
			w.IngressPolicy, control.IngressOpen, control.IngressSameBridge, control.IngressIsolated)
	}
	if w.PortIsolation != nil {
		p.PortIsolation = *w.PortIsolation
	}
	if w.Hairpin != nil {
		p.NoHairpin = !*w.Hairpin
	}
	return p, nil
}

// ingress is the ingress policy, filled in.
func (p networkPolicy) ingress() string { return cmp.Or(p.IngressPolicy, control.IngressSameBridge) }

// same reports whether two policies mean the same.
func (p networkPolicy) same(o networkPolicy) bool {
	p.IngressPolicy, o.IngressPolicy = p.ingress(), o.ingress()
	return p == o
}

func (p networkPolicy) forSwitch() netstack.Policy {
	return netstack.Policy{Ingress: netstack.IngressPolicy(p.ingress()), PortIsolation: p.PortIsolation, NoHairpin: p.NoHairpin}
}

// String is the policy as errors and logs tell it.
func (p networkPolicy) String() string {
	return fmt.Sprintf("ingressPolicy %s, portIsolation %v, hairpin %v", p.ingress(), p.PortIsolation, !p.NoHairpin)
}

// AmendNetwork implements server.Handler.
func (d *Daemon) AmendNetwork(ctx context.Context, name string, req *control.AmendNetworkRequest) (*control.Network, error) {
	unlock, err := d.lockDefinitions(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	n := d.network(name)
	if n == nil {
		return nil, noNetwork(name)
	}
	next, err := n.currentPolicy().with(&req.PolicyWishes)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", name, err)
	}
	if n.rec.Source == control.SourceConfig && !next.same(n.currentPolicy()) {
		return nil, control.Errorf(control.CodeConflict, "network %s comes from the configuration file; change it there and restart the daemon", name)
	}
	if err := d.setPolicy(ctx, n, next); err != nil {
		return nil, err
	}
	return d.describeNetwork(n), nil
}

// wishPolicy brings a network in line with what an attach wants of it. The
// network is held. One that attaches define follows the last word; what was
// defined otherwise is not an attach's to change.
func (d *Daemon) wishPolicy(ctx context.Context, n *network, w *control.PolicyWishes) error {
	now := n.currentPolicy()
	if next, err := now.with(w); err != nil || next.same(now) {
		return err
	}
	unlock, err := d.lockDefinitions(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	now = n.currentPolicy()
	next, err := now.with(w)
	if err == nil && n.rec.Source != control.SourceAttach && !next.same(now) {
		return conflictf("network %s has %v, the request wants %v; change the network (usernet network set %s --help), or leave the keys out of the request", n.rec.Name, now, next, n.rec.Name)
	}
	if err != nil {
		return err
	}
	return d.setPolicy(ctx, n, next)
}

// setPolicy changes a network's policy in the switch and on disk, or neither,
// with definitions locked.
func (d *Daemon) setPolicy(ctx context.Context, n *network, next networkPolicy) error {
	was := n.currentPolicy()
	if next.same(was) {
		return nil
	}
	var undo undoList
	defer undo.run(ctx)
	set := func(p networkPolicy) error {
		d.mu.Lock()
		n.policy = p
		d.mu.Unlock()
		return n.sw.SetPolicy(p.forSwitch())
	}
	if err := d.faultAt(stepPolicySwitch); err != nil {
		return err
	}
	undo.add(func(context.Context) {
		if err := set(was); err != nil {
			d.log.Error("policy not set back", "network", n.rec.Name, "err", err)
		}
	})
	if err := set(next); err != nil {
		return control.Errorf(control.CodeInvalid, "%v", err)
	}
	if err := d.faultAt(stepPolicyRecord); err != nil {
		return err
	}
	if err := d.store.putNetwork(n.record()); err != nil {
		return err
	}
	undo.keep()
	d.log.Info("network amended", "network", n.rec.Name, "policy", next.String())
	return nil
}

// currentPolicy is the network's policy as it is now.
func (n *network) currentPolicy() networkPolicy {
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	return n.policy
}

// record is the network's record as it belongs on disk.
func (n *network) record() *networkRecord {
	rec := *n.rec
	rec.networkPolicy = n.currentPolicy()
	return &rec
}
