package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/control"
)

func (a *app) linkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "link",
		Short: "Change a container's link",
		Args:  a.group,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.linkSetCommand())
	return cmd
}

// linkFlags say what is to become of a link.
type linkFlags struct {
	hostname      string
	aliases       []string
	send, receive string
}

func (f *linkFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.hostname, "hostname", "", "its `NAME` in the network's DNS; empty: none but its id")
	flags.StringArrayVar(&f.aliases, "alias", nil, "a further `NAME`, once per name, instead of all that it has; empty: none")
	flags.StringVar(&f.send, "send", "", "most that it sends, `RATE` as 10M (bits a second; k, M, G) or 0, no limit")
	flags.StringVar(&f.receive, "receive", "", "most that it receives, likewise a `RATE`")
}

// request is what the flags that were given ask of a link which has now.
func (f *linkFlags) request(cmd *cobra.Command, now *control.Link) (control.AmendLinkRequest, error) {
	var r control.AmendLinkRequest
	given := cmd.Flags().Changed
	if given("hostname") {
		r.Hostname = &f.hostname
	}
	if given("alias") {
		aliases := []string{}
		for _, name := range f.aliases {
			if name != "" {
				aliases = append(aliases, name)
			}
		}
		r.Aliases = &aliases
	}
	if given("send") || given("receive") {
		r.Bandwidth = new(control.Bandwidth)
		if now.Bandwidth != nil {
			*r.Bandwidth = *now.Bandwidth
		}
	}
	for name, way := range map[string]struct {
		text string
		rate func() *control.Rate
	}{
		"send":    {f.send, func() *control.Rate { return &r.Bandwidth.FromContainer }},
		"receive": {f.receive, func() *control.Rate { return &r.Bandwidth.ToContainer }},
	} {
		if !given(name) {
			continue
		}
		bits, err := parseRate(way.text)
		if err != nil {
			return r, fmt.Errorf("--%s %q: %w", name, way.text, err)
		}
		*way.rate() = control.Rate{BitsPerSecond: bits}
	}
	return r, nil
}

// parseRate reads bits a second, with a letter for thousands of them.
func parseRate(text string) (uint64, error) {
	number, unit := text, 1.0
	for letter, factor := range map[string]float64{"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9} {
		if cut, ok := strings.CutSuffix(text, letter); ok {
			number, unit = cut, factor
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	v = math.Round(v * unit)
	const most = 1 << 53 // as far as numbers of JSON are exact everywhere
	if err != nil || !(v >= 0 && v <= most) {
		return 0, errors.New("want bits a second, as 10M, 1.5G or 64k, or 0 for no limit")
	}
	return uint64(v), nil
}

func (a *app) linkSetCommand() *cobra.Command {
	var f linkFlags
	cmd := a.jsonFlag(&cobra.Command{
		Use:   "set LINK",
		Short: "Change the names and limits of a container's link",
		Long: `Changes a link while it is in use. What is not named stays as it is. A container
that is attached with a limit gets packets of 1,500 bytes and a short queue; one
that gets its first limit here keeps what it has: TCP makes less of a low rate, and
what the container sends may wait for seconds.

` + refHelp,
		Example: `  usernet link set web --alias www --alias api
  usernet link set web --send 10M --receive 50M
  usernet link set web --hostname "" --alias "" --send 0 --receive 0`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeLink,
		RunE: func(cmd *cobra.Command, argv []string) error {
			// What is wrong with the command line shows without a daemon.
			r, err := f.request(cmd, &control.Link{})
			if err != nil {
				return usageError(cmd, err)
			}
			if r == (control.AmendLinkRequest{}) {
				return usageError(cmd, errors.New("nothing to change; give --hostname, --alias, --send or --receive"))
			}
			link, err := a.oneLink(cmd, argv[0])
			if err != nil {
				return err
			}
			if r, err = f.request(cmd, link); err != nil {
				return err
			}
			amended, err := a.client().AmendLink(cmd.Context(), link.Key(), r)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(amended)
			}
			a.printLink(&amended, control.StatsReply{})
			return nil
		},
	})
	f.register(cmd)
	return cmd
}

// oneLink finds the one link that a reference names.
func (a *app) oneLink(cmd *cobra.Command, ref string) (*control.Link, error) {
	links, err := a.client().Links(cmd.Context(), ref)
	switch {
	case err != nil:
		return nil, err
	case len(links) == 1:
		return &links[0], nil
	}
	var ids []string
	for _, l := range links {
		ids = append(ids, l.ID)
	}
	return nil, fmt.Errorf("%q has several links: name one of %s", ref, strings.Join(ids, ", "))
}

// completeLink completes a first argument to what names a link. Shells ask it;
// without a daemon there is nothing to offer.
func (a *app) completeLink(cmd *cobra.Command, argv []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(argv) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	links, err := a.client().Links(cmd.Context(), "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var all []cobra.Completion
	for _, l := range links {
		name := l.Container
		if l.Hostname != "" {
			name = l.Hostname
		}
		all = append(all, cobra.CompletionWithDesc(name, l.ID))
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}
