package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
)

// chained returns a program that amends the link which a plugin before it in
// the list made. Its configuration has more keys than type usernet's, and
// unknown ones are ignored. The link ends with that plugin's DEL, so that there
// is nothing to collect; and that plugin answers for the daemon's health.
func chained(name string, more map[string]field, add, del, check verb) *program {
	all := maps.Clone(fields)
	maps.Copy(all, more)
	defaults := func() config { return config{Autostart: true} }
	return &program{
		name: name, schema: &schema{fields: all, tolerant: true, defaults: defaults},
		verbs: map[string]verb{cmdAdd: add, cmdDel: del, cmdCheck: check, cmdGC: (*invocation).nothing, cmdStatus: (*invocation).nothing},
	}
}

// nothing is a verb for which there is nothing to do.
func (i *invocation) nothing(context.Context) error { return nil }

// prevResult returns the result of the plugins before this one.
func (i *invocation) prevResult() (*types100.Result, error) {
	if len(i.conf.PrevResult) == 0 {
		return nil, i.notChained()
	}
	return parseResult(i.conf.PrevResult, i.version)
}

// notChained is the error of a plugin that stands where it has nothing to
// amend.
func (i *invocation) notChained() error {
	return fail(types.ErrInvalidNetworkConfig,
		`missing key "prevResult": %s amends what a plugin before it in the list made; put it after bridge or usernet`, i.program.name)
}

// passOn prints the result of the plugins before this one as it came.
func (i *invocation) passOn() error {
	var head struct {
		CNIVersion string `json:"cniVersion"`
	}
	switch {
	case len(i.conf.PrevResult) == 0:
		return i.notChained()
	case json.Unmarshal(i.conf.PrevResult, &head) == nil && head.CNIVersion == i.version:
		_, err := i.Stdout.Write(append(bytes.TrimSpace(i.conf.PrevResult), '\n'))
		return err
	}
	prev, err := i.prevResult()
	if err != nil {
		return err
	}
	return printResult(i.Stdout, prev, i.version)
}

// prevFamilies returns the address families that the interface has by prev.
func (i *invocation) prevFamilies(prev *types100.Result) families {
	var have families
	for _, ip := range prev.IPs {
		if f := ip.Interface; f != nil && (*f < 0 || *f >= len(prev.Interfaces) || prev.Interfaces[*f].Sandbox == "") {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			have.add(a.Unmap())
		}
	}
	return have
}

// ours reports, by an error, that the container's interface was not made by
// usernet for this network. It asks the interface's alias, not the daemon.
func (i *invocation) ours() error {
	target, err := openNetns(i.params.Netns)
	if err != nil {
		return err
	}
	defer target.Close()
	return target.Do(func() error {
		link, err := netlink.LinkByName(i.params.IfName)
		var none netlink.LinkNotFoundError
		if errors.As(err, &none) || err == nil && link.Attrs().Alias != linkAlias(i.key()) {
			return i.foreign()
		}
		return err
	})
}

// foreign is the error of a plugin that follows one which is not usernet's:
// what it would do has no effect on that one's interface.
func (i *invocation) foreign() error {
	return fail(types.ErrInvalidNetworkConfig,
		"%s: no plugin of usernet made the interface %s before it in the list of network %s; use usernet's bridge, or the reference's %[1]s with the reference's bridge",
		i.program.name, i.params.IfName, i.conf.Name)
}

// amended turns the daemon's "no such link" into the cause that it has for a
// plugin in a list.
func (i *invocation) amended(err error) error {
	if control.CodeOf(err) == control.CodeNotFound {
		return i.foreign()
	}
	return err
}

// forgotten returns nil for the errors after which a DEL has nothing left to
// do: the link is gone, or the daemon with all links. The DEL of the plugin that
// made the link sees to the rest.
func forgotten(err error) error {
	if control.CodeOf(err) == control.CodeNotFound || isUnreachable(err) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// undoing runs inverse and says on standard error when it fails.
func (i *invocation) undoing(ctx context.Context, what string, inverse func(context.Context) error) {
	ctx, cancel := undoContext(ctx)
	defer cancel()
	if err := inverse(ctx); err != nil {
		fmt.Fprintf(i.Stderr, "usernet-cni: undo: %s: %v\n", what, err)
	}
}

// inContainer runs fn in the container's namespace, for a DEL: a namespace
// that is gone is no error, and nothing is left to do there.
func (i *invocation) inContainer(fn func() error) error {
	if i.params.Netns == "" {
		return nil
	}
	target, err := netns.Open(i.params.Netns)
	if err != nil {
		return nil
	}
	defer target.Close()
	return target.Do(fn)
}
