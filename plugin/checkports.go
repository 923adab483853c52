package plugin

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/portowner"
	"github.com/usernet/usernet/internal/redirect"
)

// specs returns the publications that mappings to a container are.
func (p *publishConf) specs(mappings []portMapping, have families) ([]control.PublicationSpec, error) {
	var specs []control.PublicationSpec
	if p.Mode == publishNone {
		return nil, nil
	}
	for n := range mappings {
		m := &mappings[n]
		hosts, err := p.hostIPs(m, have)
		if err != nil {
			return nil, err
		}
		for _, host := range hosts {
			specs = append(specs, control.PublicationSpec{Proto: m.Protocol, HostIP: host, HostPort: uint16(m.HostPort), Port: uint16(m.ContainerPort)})
		}
	}
	return specs, nil
}

// checkPublished compares the port mappings with what the daemon publishes at a
// link, and that with the sockets and redirects of the plugin's namespace.
func (i *invocation) checkPublished(l *control.Link, have families) error {
	specs, err := i.conf.Publish.specs(i.conf.Runtime.PortMappings, have)
	if err != nil || len(specs) == 0 {
		return err
	}
	var rules []redirect.Rule
	tables, err := redirect.List()
	if err != nil && !errors.Is(err, redirect.ErrUnavailable) {
		return err
	}
	for _, t := range tables {
		if t.Of(i.key().String()) {
			rules = append(rules, t.Rules...)
		}
	}
	for _, spec := range specs {
		what := fmt.Sprintf("%s/%s to port %d", netip.AddrPortFrom(spec.HostIP, spec.HostPort), spec.Proto, spec.Port)
		p, ok := published(spec, l.Publications)
		if !ok {
			return fail(ErrAttachment, "the daemon's link %s does not publish %s", i.key(), what)
		}
		if fault := publicationFault(p, rules); fault != "" {
			return fail(ErrAttachment, "the daemon's link %s publishes %s, but %s; DEL and ADD make a new one", i.key(), what, fault)
		}
	}
	return nil
}

// publicationFault says what a publication lacks in this namespace, or "".
func publicationFault(p control.Publication, rules []redirect.Rule) string {
	at := netip.AddrPortFrom(p.HostIP, p.HostPort)
	socket := at
	if p.SocketPort != 0 {
		rule := redirect.Rule{Proto: p.Proto, Host: at, Port: p.SocketPort}
		if !slices.Contains(rules, rule) {
			return fmt.Sprintf("there is no redirect of %s", rule)
		}
		socket = netip.AddrPortFrom(p.HostIP, p.SocketPort)
	}
	if len(portowner.All(p.Proto, socket)) == 0 {
		return fmt.Sprintf("no socket is open on %s/%s in the plugin's network namespace", socket, p.Proto)
	}
	return ""
}
