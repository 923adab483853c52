package plugin

import (
	"cmp"
	"context"
	"fmt"

	"github.com/usernet/usernet/internal/control"
)

// firewallProgram stands for the reference plugin that lets the bridge's
// packets through the host's iptables. None of usernet's packets come there, so
// that there is nothing to let through; what remains is ingressPolicy, a
// property of the network that the switch keeps. Without the key it is open, as
// the reference's: networks that podman makes reach each other unless isolated.
// backend, iptablesAdminChainName and firewalldZone are about the host's rules,
// and ignored.
func firewallProgram() *program {
	return chained(nameFirewall, nil, (*invocation).firewallAdd, (*invocation).nothing, (*invocation).firewallCheck)
}

// firewallAdd sets the policy of a network that ADDs define. What was defined
// by the API or the daemon's configuration stays as it is, and contradicts only
// a key that is there.
func (i *invocation) firewallAdd(ctx context.Context) error {
	if len(i.conf.PrevResult) == 0 {
		return i.notChained()
	}
	if err := i.ours(); err != nil {
		return err
	}
	n, wanted, err := i.ingressPolicy(ctx)
	switch {
	case err != nil:
		return err
	case n.IngressPolicy == wanted:
		return i.passOn()
	}
	set := func(ctx context.Context, policy string) error {
		_, err := i.client.AmendNetwork(ctx, i.conf.Name, control.AmendNetworkRequest{PolicyWishes: control.PolicyWishes{IngressPolicy: policy}})
		return i.amended(err)
	}
	if err := set(ctx, wanted); err != nil {
		return err
	}
	if err = i.done("policy"); err == nil {
		err = i.passOn()
	}
	if err != nil {
		i.undoing(ctx, "policy", func(ctx context.Context) error { return set(ctx, n.IngressPolicy) })
	}
	return err
}

// ingressPolicy returns the network, and the policy that it should have.
func (i *invocation) ingressPolicy(ctx context.Context) (n control.Network, wanted string, err error) {
	if n, err = i.client.Network(ctx, i.conf.Name); err != nil {
		return n, "", i.amended(err)
	}
	own := i.conf.Policy.IngressPolicy
	switch {
	case n.Source == control.SourceAttach:
		return n, cmp.Or(own, control.IngressOpen), nil
	case own == "" || own == n.IngressPolicy:
		return n, n.IngressPolicy, nil
	}
	return n, "", badValue("ingressPolicy", own, fmt.Sprintf("network %s was not made by an ADD and is %s; change the network, or remove the key", n.Name, n.IngressPolicy))
}

func (i *invocation) firewallCheck(ctx context.Context) error {
	if len(i.conf.PrevResult) == 0 {
		return i.notChained()
	}
	if err := i.ours(); err != nil {
		return err
	}
	n, wanted, err := i.ingressPolicy(ctx)
	if err != nil {
		return err
	}
	if n.IngressPolicy != wanted {
		return fail(ErrAttachment, "network %s has the ingress policy %s, not %s; ADD sets it", n.Name, n.IngressPolicy, wanted)
	}
	return nil
}
