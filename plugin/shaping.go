package plugin

import (
	"context"
	"fmt"

	"github.com/usernet/usernet/internal/control"
)

// bandwidthProgram limits what the link of the plugin before it carries, by its
// own keys and the capability of its name; of both and of what that plugin was
// told the stricter holds.
func bandwidthProgram() *program {
	return chained(nameBandwidth, nil, (*invocation).bandwidthAdd, (*invocation).bandwidthDel, (*invocation).bandwidthCheck)
}

func (i *invocation) bandwidthAdd(ctx context.Context) error {
	wanted := i.conf.bandwidth()
	if wanted == nil {
		return i.passOn()
	}
	link, err := i.client.Link(ctx, i.key())
	if err != nil {
		return i.amended(err)
	}
	had := control.Bandwidth{}
	if link.Bandwidth != nil {
		had = *link.Bandwidth
	}
	wanted.FromContainer = stricter(wanted.FromContainer, had.FromContainer)
	wanted.ToContainer = stricter(wanted.ToContainer, had.ToContainer)
	if _, err := i.client.AmendLink(ctx, i.key(), control.AmendLinkRequest{Bandwidth: wanted}); err != nil {
		return i.amended(err)
	}
	if err = i.done("limit"); err == nil {
		err = i.passOn()
	}
	if err != nil {
		i.undoing(ctx, "limit", func(ctx context.Context) error {
			_, err := i.client.AmendLink(ctx, i.key(), control.AmendLinkRequest{Bandwidth: &had})
			return err
		})
	}
	return err
}

// bandwidthDel takes the limits away, also from what a plugin before this one
// was told: it is deleted next.
func (i *invocation) bandwidthDel(ctx context.Context) error {
	if i.conf.bandwidth() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, detachPatience)
	defer cancel()
	_, err := i.client.AmendLink(ctx, i.key(), control.AmendLinkRequest{Bandwidth: &control.Bandwidth{}})
	return forgotten(err)
}

func (i *invocation) bandwidthCheck(ctx context.Context) error {
	wanted := i.conf.bandwidth()
	if wanted == nil {
		return nil
	}
	link, err := i.client.Link(ctx, i.key())
	if control.CodeOf(err) == control.CodeNotFound {
		return fail(ErrAttachment, "the daemon has no link %s; DEL and ADD make a new one", i.key())
	}
	if err != nil {
		return fmt.Errorf("check %s: %w", i.key(), err)
	}
	have := control.Bandwidth{}
	if link.Bandwidth != nil {
		have = *link.Bandwidth
	}
	if stricter(have.FromContainer, wanted.FromContainer) != have.FromContainer || stricter(have.ToContainer, wanted.ToContainer) != have.ToContainer {
		return fail(ErrAttachment, "the daemon's link %s is limited to %s, not to %s", i.key(), compact(have), compact(wanted))
	}
	return nil
}
