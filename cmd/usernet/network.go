package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/control"
)

func (a *app) networkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "network",
		Aliases: []string{"net"},
		Short:   "List, make and remove networks of the daemon",
		Args:    a.group,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.networkListCommand(), a.networkCreateCommand(), a.networkSetCommand(), a.networkRemoveCommand(), a.networkInspectCommand())
	return cmd
}

func (a *app) networkListCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the networks",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			networks, err := a.client().Networks(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(networks)
			}
			t := table{head: []string{"NAME", "GATEWAYS", "MTU", "LINKS", "FREE", "FROM", "EGRESS", "INGRESS"}}
			for _, n := range networks {
				egress := "yes"
				if n.Internal {
					egress = "no"
				}
				t.add(n.Name, list(n.Gateways), strconv.Itoa(n.MTU), strconv.Itoa(len(n.Links)),
					freeAddresses(n.Pool), string(n.Source), egress, ingress(n))
			}
			t.print(a.stdout, a.painter(a.stdout))
			return nil
		},
	})
}

// freeAddresses writes how many leases are still possible; IPv6 alone allows
// more than anybody wants to read.
func freeAddresses(p control.PoolUsage) string {
	switch {
	case p.Exhausted:
		return "none"
	case p.Free > 1_000_000:
		return "plenty"
	}
	return strconv.FormatInt(p.Free, 10)
}

func (a *app) networkCreateCommand() *cobra.Command {
	var (
		subnets, services, allow []string
		mtu                      int
		internal                 bool
		policy                   policyFlags
	)
	cmd := a.jsonFlag(&cobra.Command{
		Use:   "create NAME",
		Short: "Make a network",
		Long: `Makes a network in the daemon. Without --subnet the daemon chooses a free one
of each family; with it, the network has the families that are given.

` + policyHelp,
		Example: `  usernet network create web
  usernet network create db --subnet 10.20.0.0/24 --subnet fd20::/64 --internal
  usernet network create ci --host-service proxy=127.0.0.1:3128
  usernet network create shared --ingress-policy open
  usernet network create tenants --port-isolation`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			req := control.CreateNetworkRequest{Name: argv[0], MTU: mtu, Internal: internal}
			var err error
			if req.Subnets, err = parsePrefixes("subnet", subnets); err != nil {
				return usageError(cmd, err)
			}
			if req.Allow, err = parsePrefixes("allow", allow); err != nil {
				return usageError(cmd, err)
			}
			for _, s := range services {
				h, err := parseHostService(s)
				if err != nil {
					return usageError(cmd, err)
				}
				req.HostServices = append(req.HostServices, control.HostService{Name: h.Name, Target: h.Target})
			}
			req.PolicyWishes = policy.wishes(cmd)
			n, err := a.client().CreateNetwork(cmd.Context(), req)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(n)
			}
			fmt.Fprintf(a.stdout, "%s %s\n", n.Name, list(n.Gateways))
			return nil
		},
	})
	flags := cmd.Flags()
	flags.StringArrayVar(&subnets, "subnet", nil, "`SUBNET` of the network, once per family")
	flags.IntVar(&mtu, "mtu", 0, "MTU in `BYTES` (default 65520)")
	flags.BoolVar(&internal, "internal", false, "no way out: only the network's own containers")
	flags.StringArrayVar(&services, "host-service", nil, "open `NAME=HOST:PORT` of this machine; repeatable")
	flags.StringArrayVar(&allow, "allow", nil, "allow `PREFIX` that is refused by default (never the loopback); repeatable")
	policy.add(cmd)
	return cmd
}

func parsePrefixes(flag string, texts []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	var errs []error
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			err = fmt.Errorf("--%s %q is not understood; write it as 10.9.0.0/24 or fd00:9::/64", flag, s)
		}
		errs = append(errs, err)
		all = append(all, p)
	}
	return all, errors.Join(errs...)
}

func (a *app) networkRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"remove"},
		Short:   "Remove networks that have no links",
		Args:    args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			var errs []error
			for _, name := range names {
				if err := a.client().RemoveNetwork(cmd.Context(), name); err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(a.stdout, name)
			}
			return errors.Join(errs...)
		},
	}
}

func (a *app) networkInspectCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "inspect NAME",
		Short: "Tell all about a network",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			n, err := a.client().Network(cmd.Context(), argv[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(n)
			}
			return a.printNetwork(n)
		},
	})
}

func (a *app) printNetwork(n control.Network) error {
	var services []string
	for _, h := range n.HostServices {
		services = append(services, fmt.Sprintf("%s=%s", h.Name, h.Target))
	}
	var ranges []string
	for _, set := range n.Sets {
		for _, r := range set {
			text := r.Subnet.String()
			if r.RangeStart.IsValid() && r.RangeEnd.IsValid() {
				text += fmt.Sprintf(" (%s to %s)", r.RangeStart, r.RangeEnd)
			}
			ranges = append(ranges, text)
		}
	}
	a.printFields([][2]string{
		{"Name", n.Name},
		{"Defined by", string(n.Source)},
		{"Made", n.Created.Local().Format("2006-01-02 15:04:05")},
		{"Gateways", list(n.Gateways)},
		{"Addresses", strings.Join(ranges, ", ")},
		{"Leased", fmt.Sprintf("%d, resting %d, free %s", n.Pool.Leased, n.Pool.Quarantined, freeAddresses(n.Pool))},
		{"MTU", strconv.Itoa(n.MTU)},
		{"Internal", strconv.FormatBool(n.Internal)},
		{"Ingress policy", n.IngressPolicy},
		{"Port isolation", strconv.FormatBool(n.PortIsolation)},
		{"Hairpin", strconv.FormatBool(n.Hairpin)},
		{"Host services", strings.Join(services, ", ")},
		{"Allowed", list(n.Allow)},
		{"Host access", hostLinks(n.Hosts)},
		{"Links", strings.Join(n.Links, "\n")},
	})
	return nil
}

// hostLinks says by which interfaces the host reaches the network.
func hostLinks(hosts []control.HostLink) string {
	var lines []string
	for _, h := range hosts {
		line := fmt.Sprintf("%s in net:[%d]", h.IfName, h.Netns)
		if h.Forward {
			line += ", for others as well"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// printFields prints names and values below each other; empty values are left
// out, and a value of several lines is indented.
func (a *app) printFields(fields [][2]string) {
	p := a.painter(a.stdout)
	for _, f := range fields {
		if f[1] == "" {
			continue
		}
		value := strings.ReplaceAll(f[1], "\n", "\n"+strings.Repeat(" ", 16))
		fmt.Fprintf(a.stdout, "%s%s%s\n", p.paint(bold, f[0]), strings.Repeat(" ", 16-len(f[0])), value)
	}
}
