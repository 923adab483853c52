package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/sandbox"
	"github.com/usernet/usernet/netstack"
)

// plan is what run's flags mean.
type plan struct {
	name    string
	publish []sandbox.Publish
	hosts   []sandbox.HostEntry
	network string // of the daemon; empty: one of its own
	private sandbox.PrivateConfig
}

// ofOwnNetwork are the flags that say what a network is, and so mean nothing for
// one that exists.
var ofOwnNetwork = []string{"subnet", "dns", "mtu", "no-ipv6", "host-service"}

// plan checks all flags and reports all faults.
func (a *app) plan(cmd *cobra.Command, f *runFlags) (*plan, error) {
	p := &plan{name: f.name, network: f.network}
	if p.name == "" {
		p.name = defaultName()
	}
	p.private = sandbox.PrivateConfig{NoIPv6: f.noIPv6, MTU: f.mtu}
	errs := []error{p.checkNetwork(cmd), checkQuiet(f)}
	collect := func(err error) { errs = append(errs, err) }
	for _, s := range f.publish {
		some, err := sandbox.ParsePublish(s)
		collect(err)
		p.publish = append(p.publish, some...)
	}
	for _, s := range f.addHosts {
		h, err := sandbox.ParseHostEntry(s)
		collect(err)
		p.hosts = append(p.hosts, h)
	}
	for _, s := range f.subnets {
		subnet, err := netip.ParsePrefix(s)
		if err != nil {
			err = fmt.Errorf("subnet %q is not understood; write it as 10.9.0.0/24 or fd00:9::/64", s)
		}
		collect(err)
		p.private.Subnets = append(p.private.Subnets, subnet)
	}
	for _, s := range f.dns {
		resolver, err := parseResolver(s)
		collect(err)
		p.private.DNS = append(p.private.DNS, resolver)
	}
	for _, s := range f.hostServices {
		service, err := parseHostService(s)
		collect(err)
		p.private.HostServices = append(p.private.HostServices, service)
	}
	p.private.Hosts = p.hosts
	return p, errors.Join(errs...)
}

func (p *plan) checkNetwork(cmd *cobra.Command) error {
	if p.network == "" {
		return nil
	}
	var given []string
	for _, name := range ofOwnNetwork {
		if cmd.Flags().Changed(name) {
			given = append(given, name)
		}
	}
	if len(given) == 0 {
		return nil
	}
	return fmt.Errorf("%s cannot be chosen for a network that exists; leave it out, or --network %s", joined(given), p.network)
}

func checkQuiet(f *runFlags) error {
	if f.quiet && f.verbose {
		return errors.New("--quiet and --verbose contradict each other")
	}
	return nil
}

// parseResolver reads ADDRESS[:PORT].
func parseResolver(s string) (netip.AddrPort, error) {
	resolver, err := netip.ParseAddrPort(s)
	if addr, addrErr := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); addrErr == nil {
		resolver, err = netip.AddrPortFrom(addr, 53), nil
	}
	if a := resolver.Addr(); err == nil && (a.IsUnspecified() || a.IsMulticast()) {
		return resolver, fmt.Errorf("dns %q: %v is no resolver's address; write the machine's own as 127.0.0.1", s, a)
	}
	if err != nil || resolver.Port() == 0 {
		return resolver, fmt.Errorf("dns %q is not understood; write it as 9.9.9.9, 9.9.9.9:5353 or [2620:fe::fe]:53", s)
	}
	return netip.AddrPortFrom(resolver.Addr().Unmap(), resolver.Port()), nil
}

// parseHostService reads NAME=HOST:PORT.
func parseHostService(s string) (netstack.HostService, error) {
	fault := fmt.Errorf("host service %q is not understood; write it as NAME=ADDRESS:PORT, as in db=127.0.0.1:5432", s)
	name, target, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return netstack.HostService{}, fault
	}
	if port, isLocal := strings.CutPrefix(target, "localhost:"); isLocal {
		target = "127.0.0.1:" + port
	}
	addr, err := netip.ParseAddrPort(target)
	if err != nil || addr.Port() == 0 {
		return netstack.HostService{}, fault
	}
	return netstack.HostService{Name: name, Target: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())}, nil
}
