package main

import (
	"github.com/spf13/cobra"
)

func (a *app) leasesCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "leases [NETWORK]",
		Short: "List the addresses leased for interfaces of other plugins",
		Long: `Lists the leases that the daemon holds for interfaces which are not its own links:
those of the IPAM plugin host-local ("usernet cni install --drop-in"), run by
plugins such as the reference's bridge and ptp. The addresses of links are shown
by "usernet ps".`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			network := ""
			if len(argv) == 1 {
				network = argv[0]
			}
			leases, err := a.client().Leases(cmd.Context(), network)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(leases)
			}
			t := table{head: []string{"NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "BY", "AGE"}}
			for _, l := range leases {
				t.add(l.Network, shortID(l.Container), l.IfName, addrs(l.Addrs), l.Owner, age(l.Since))
			}
			t.print(a.stdout, a.painter(a.stdout))
			return nil
		},
	})
}
