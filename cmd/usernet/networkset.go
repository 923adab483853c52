package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/control"
)

// policyHelp says what the flags of policyFlags mean together.
const policyHelp = `Containers of one network reach each other, and not those of other networks.
--ingress-policy open joins the network with all others that are open as well:
their containers reach each other by address. --ingress-policy isolated, and
--port-isolation likewise, keep the network's own containers apart; they still
reach the outside, the gateway and published ports. An internal network is
joined with none.

A port that is published at an address of the host can be reached there by
containers too, without opening anything else of the host; --hairpin=false
closes it to this network's containers.`

// policyFlags are the flags for what a network's containers may reach.
type policyFlags struct {
	ingress       string
	portIsolation bool
	hairpin       bool
}

func (p *policyFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&p.ingress, "ingress-policy", "", "who reaches the containers: `POLICY` open, same-bridge (default) or isolated")
	flags.BoolVar(&p.portIsolation, "port-isolation", false, "keep the network's containers apart from each other")
	flags.BoolVar(&p.hairpin, "hairpin", true, "let containers reach published ports at the host's addresses")
}

// wishes are the flags that were given.
func (p *policyFlags) wishes(cmd *cobra.Command) control.PolicyWishes {
	w := control.PolicyWishes{IngressPolicy: p.ingress}
	if cmd.Flags().Changed("port-isolation") {
		w.PortIsolation = &p.portIsolation
	}
	if cmd.Flags().Changed("hairpin") {
		w.Hairpin = &p.hairpin
	}
	return w
}

func (a *app) networkSetCommand() *cobra.Command {
	var policy policyFlags
	cmd := a.jsonFlag(&cobra.Command{
		Use:   "set NAME",
		Short: "Change what a network's containers may reach",
		Long: `Changes a network while it is in use. What is not named stays as it is; flows
between containers that are no longer allowed end at once.

` + policyHelp,
		Example: `  usernet network set web --ingress-policy open
  usernet network set web --port-isolation=false --hairpin=false`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			w := policy.wishes(cmd)
			if w == (control.PolicyWishes{}) {
				return usageError(cmd, errors.New("nothing to change; give --ingress-policy, --port-isolation or --hairpin"))
			}
			n, err := a.client().AmendNetwork(cmd.Context(), argv[0], control.AmendNetworkRequest{PolicyWishes: w})
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(n)
			}
			return a.printNetwork(n)
		},
	})
	policy.add(cmd)
	return cmd
}

// ingress is a network's policy in one word for tables.
func ingress(n control.Network) string {
	if n.PortIsolation && n.IngressPolicy != control.IngressIsolated {
		return n.IngressPolicy + ", ports isolated"
	}
	return n.IngressPolicy
}
