package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/usernet/usernet/internal/control"
)

// dnsnameProgram stands for podman's plugin of that name, which runs a
// dnsmasq for each network: the names of the container are told to the
// network's resolver, and the result points to it.
func dnsnameProgram() *program {
	return chained(nameDNSName, map[string]field{"domainName": decodeDomain, "multiDomain": nil},
		(*invocation).dnsnameAdd, (*invocation).dnsnameDel, (*invocation).dnsnameCheck)
}

func decodeDomain(c *config, raw json.RawMessage) error {
	if err := json.Unmarshal(raw, &c.Domain); err != nil {
		return err
	}
	c.Domain = strings.Trim(strings.ToLower(c.Domain), ".")
	return nil
}

// names returns what the container is to be called: its hostname and the
// runtime's aliases, each also below the domain.
func (i *invocation) names() ([]string, error) {
	args, err := parseArgs(i.params.Args)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, name := range append([]string{args.Hostname}, i.conf.Runtime.Aliases...) {
		name = strings.ToLower(name)
		if name == "" || slices.Contains(all, name) {
			continue
		}
		all = append(all, name)
		if i.conf.Domain != "" {
			all = append(all, name+"."+i.conf.Domain)
		}
	}
	return all, nil
}

func (i *invocation) dnsnameAdd(ctx context.Context) error {
	prev, err := i.prevResult()
	if err != nil {
		return err
	}
	names, err := i.names()
	if err != nil {
		return err
	}
	link, err := i.client.Link(ctx, i.key())
	if err != nil {
		return i.amended(err)
	}
	aliases := slices.Clone(link.Aliases)
	for _, n := range names {
		if !slices.Contains(aliases, n) {
			aliases = append(aliases, n)
		}
	}
	if _, err := i.client.AmendLink(ctx, i.key(), control.AmendLinkRequest{Aliases: &aliases}); err != nil {
		return i.amended(err)
	}
	i.pointTo(prev, link.Gateways)
	if err = i.done("names"); err == nil {
		err = printResult(i.Stdout, prev, i.version)
	}
	if err != nil {
		i.undoing(ctx, "names", func(ctx context.Context) error {
			_, err := i.client.AmendLink(ctx, i.key(), control.AmendLinkRequest{Aliases: &link.Aliases})
			return err
		})
	}
	return err
}

// pointTo makes a result name the network's resolver, which answers at the
// gateways, after the name servers that it has.
func (i *invocation) pointTo(r *types100.Result, gateways []netip.Addr) {
	for _, gw := range gateways {
		if gw.IsValid() && !slices.Contains(r.DNS.Nameservers, gw.String()) {
			r.DNS.Nameservers = append(r.DNS.Nameservers, gw.String())
		}
	}
	if d := i.conf.Domain; d != "" && !slices.Contains(r.DNS.Search, d) {
		r.DNS.Search = append(r.DNS.Search, d)
	}
}

// dnsnameDel takes the names away.
func (i *invocation) dnsnameDel(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, detachPatience)
	defer cancel()
	names, err := i.names()
	if err != nil || len(names) == 0 {
		return nil // what cannot be understood was not added either
	}
	link, err := i.client.Link(ctx, i.key())
	if err != nil {
		return forgotten(err)
	}
	left := slices.DeleteFunc(link.Aliases, func(a string) bool { return slices.Contains(names, a) })
	_, err = i.client.AmendLink(ctx, i.key(), control.AmendLinkRequest{Aliases: &left})
	return forgotten(err)
}

func (i *invocation) dnsnameCheck(ctx context.Context) error {
	names, err := i.names()
	if err != nil {
		return err
	}
	link, err := i.client.Link(ctx, i.key())
	if control.CodeOf(err) == control.CodeNotFound {
		return fail(ErrAttachment, "the daemon has no link %s; DEL and ADD make a new one", i.key())
	}
	if err != nil {
		return fmt.Errorf("check %s: %w", i.key(), err)
	}
	for _, n := range names {
		if !slices.Contains(link.Aliases, n) && link.Hostname != n {
			return fail(ErrAttachment, "the daemon's link %s is not called %s", i.key(), n)
		}
	}
	return nil
}
