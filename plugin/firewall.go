package plugin

import (
	"context"
	"encoding/json"
)

// The values of firewall's ingressPolicy.
const (
	policyOpen       = "open"
	policySameBridge = "same-bridge"
	policyIsolated   = "isolated"
)

// firewallProgram stands for the reference plugin that lets the bridge's
// packets through the host's iptables. None of usernet's packets come there, so
// that there is nothing to let through; what remains is ingressPolicy. backend,
// iptablesAdminChainName and firewalldZone are about those rules, and ignored.
func firewallProgram() *program {
	return chained(nameFirewall, map[string]field{"ingressPolicy": decodeIngressPolicy},
		(*invocation).firewallAdd, (*invocation).nothing, (*invocation).firewallCheck)
}

func decodeIngressPolicy(_ *config, raw json.RawMessage) error {
	var policy string
	if err := json.Unmarshal(raw, &policy); err != nil {
		return err
	}
	switch policy {
	case "", policyOpen, policySameBridge:
		// Networks do not reach each other in any case.
		return nil
	case policyIsolated:
		return unsupported("ingressPolicy", raw, "containers of one network reach each other; make a network for each")
	}
	return badValue("ingressPolicy", raw, `want "open", "same-bridge" or "isolated"`)
}

func (i *invocation) firewallAdd(context.Context) error {
	if len(i.conf.PrevResult) == 0 {
		return i.notChained()
	}
	if err := i.ours(); err != nil {
		return err
	}
	return i.passOn()
}

func (i *invocation) firewallCheck(context.Context) error {
	if len(i.conf.PrevResult) == 0 {
		return i.notChained()
	}
	return i.ours()
}
