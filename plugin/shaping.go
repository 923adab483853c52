package plugin

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/undo"
	"github.com/usernet/usernet/tunnel"
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
	target, err := openNetns(i.params.Netns)
	if err != nil {
		return err
	}
	defer target.Close()
	var taken undo.List
	for _, step := range []func() error{
		func() error { return i.limit(ctx, *wanted, had, &taken) },
		func() error { return i.shortenQueue(target, queueLen(wanted), &taken) },
		i.passOn,
	} {
		if err := step(); err != nil {
			taken.Run()
			return err
		}
	}
	return nil
}

func (i *invocation) limit(ctx context.Context, wanted, had control.Bandwidth, taken *undo.List) error {
	if _, err := i.client.AmendLink(ctx, i.key(), control.AmendLinkRequest{Bandwidth: &wanted}); err != nil {
		return i.amended(err)
	}
	taken.Add(func() {
		i.undoing(ctx, "limit", func(ctx context.Context) error {
			_, err := i.client.AmendLink(ctx, i.key(), control.AmendLinkRequest{Bandwidth: &had})
			return err
		})
	})
	return i.done("limit")
}

// shortenQueue gives the container's own queue that many frames, 0: as many as it
// has. A length that somebody chose stays.
func (i *invocation) shortenQueue(target *netns.Handle, frames int, taken *undo.List) error {
	if frames == 0 {
		return nil
	}
	replace := func(old, length int) (did bool, err error) {
		err = target.Do(func() error {
			did, err = i.replaceQueueLen(old, length)
			return err
		})
		return did, err
	}
	did, err := replace(tunnel.DefaultQueueLen, frames)
	if err != nil {
		return fmt.Errorf("queue length %d of %s in CNI_NETNS=%q: %w", frames, i.params.IfName, i.params.Netns, err)
	}
	if !did {
		return nil
	}
	taken.Add(func() {
		i.undoing(context.Background(), "queue length", func(context.Context) error {
			_, err := replace(frames, tunnel.DefaultQueueLen)
			return err
		})
	})
	return i.done("queue")
}

// replaceQueueLen sets the queue length of the link's interface in the current
// namespace, in frames, if it is old, and reports whether it was. The interface of
// somebody else, as in a namespace that was used again, stays as it is.
func (i *invocation) replaceQueueLen(old, length int) (bool, error) {
	link, err := netlink.LinkByName(i.params.IfName)
	if err != nil || link.Attrs().TxQLen != old || link.Attrs().Alias != linkAlias(i.key()) {
		return false, err
	}
	return true, netlink.LinkSetTxQLen(link, length)
}

// bandwidthDel takes the limits away, also from what a plugin before this one
// was told: it is deleted next.
func (i *invocation) bandwidthDel(ctx context.Context) error {
	wanted := i.conf.bandwidth()
	if wanted == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, detachPatience)
	defer cancel()
	_, err := i.client.AmendLink(ctx, i.key(), control.AmendLinkRequest{Bandwidth: &control.Bandwidth{}})
	return errors.Join(forgotten(err), i.inContainer(func() error {
		frames := queueLen(wanted)
		if frames == 0 {
			return nil
		}
		_, err := i.replaceQueueLen(frames, tunnel.DefaultQueueLen)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		return err
	}))
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
