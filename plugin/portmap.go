package plugin

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/control"
)

// portmapProgram publishes the port mappings of the runtime at the link that
// the plugin before it made.
func portmapProgram() *program {
	return chained(namePortmap, map[string]field{
		// Rules to be matched by iptables before a port leads anywhere.
		"conditionsV4": refuseConditions("conditionsV4"),
		"conditionsV6": refuseConditions("conditionsV6"),
		// snat, masqAll, markMasqBit, externalSetMarkChain and backend say how
		// answers find back through the kernel's NAT; here they do.
	}, (*invocation).portmapAdd, (*invocation).portmapDel, (*invocation).portmapCheck)
}

func refuseConditions(key string) field {
	return func(_ *config, raw json.RawMessage) error {
		if isEmptyJSON(raw) {
			return nil
		}
		return unsupported(key, raw, "ports are published without iptables; remove the key, and filter in front of the host")
	}
}

func (i *invocation) portmapAdd(ctx context.Context) error {
	if len(i.conf.Runtime.PortMappings) == 0 || i.conf.Publish.Mode == publishNone {
		return i.passOn()
	}
	prev, err := i.prevResult()
	if err != nil {
		return err
	}
	have := i.prevFamilies(prev)
	if have == (families{}) {
		return fail(types.ErrInvalidNetworkConfig, `portmap: "prevResult" has no address of the container to publish ports of`)
	}
	specs, files, err := i.openMappings(ctx, have)
	if err != nil {
		return err
	}
	defer closeAll(files)
	if err := i.done("listen"); err != nil {
		return err
	}
	if _, err := i.client.PublishLink(ctx, i.key(), specs, files...); err != nil {
		return i.amended(err)
	}
	err = i.done("publish")
	if err == nil {
		err = i.passOn()
	}
	if err != nil {
		i.undoing(ctx, "unpublish", func(ctx context.Context) error {
			_, err := i.client.UnpublishLink(ctx, i.key(), specs)
			return err
		})
	}
	return err
}

// portmapDel closes the ports that the runtime still tells of. Those that it
// does not are closed with the link.
func (i *invocation) portmapDel(ctx context.Context) error {
	var specs []control.PublicationSpec
	for n := range i.conf.Runtime.PortMappings {
		m := &i.conf.Runtime.PortMappings[n]
		spec, err := m.spec()
		if err != nil {
			continue // it was not published either
		}
		specs = append(specs, spec)
	}
	if len(specs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, detachPatience)
	defer cancel()
	_, err := i.client.UnpublishLink(ctx, i.key(), specs)
	i.forgetFlows()
	return forgotten(err)
}

func (i *invocation) portmapCheck(ctx context.Context) error {
	prev, err := i.prevResult()
	if err != nil || len(i.conf.Runtime.PortMappings) == 0 {
		return err
	}
	link, err := i.client.Link(ctx, i.key())
	if control.CodeOf(err) == control.CodeNotFound {
		return fail(ErrAttachment, "the daemon has no link %s; DEL and ADD make a new one", i.key())
	}
	if err != nil {
		return fmt.Errorf("check %s: %w", i.key(), err)
	}
	return i.checkPublished(&link, i.prevFamilies(prev))
}
