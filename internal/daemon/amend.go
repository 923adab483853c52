package daemon

import (
	"context"
	"fmt"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/netstack"
)

// The steps of an amendment, by the names that Config.fault is asked with.
const (
	stepAmendNames     = "amend names"
	stepAmendBandwidth = "amend bandwidth"
	stepAmendRecord    = "amend record"
)

// AmendLink implements server.Handler: all that is asked for, or nothing.
func (d *Daemon) AmendLink(ctx context.Context, key control.LinkKey, req *control.AmendLinkRequest) (*control.Link, error) {
	unlock, err := d.keys.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l := d.link(key)
	switch {
	case l == nil:
		return nil, noLink(key)
	case l.sl == nil:
		return nil, lostLink(key)
	case !l.alive():
		return nil, noLink(key)
	}
	if err := l.amend(ctx, req); err != nil {
		return nil, fmt.Errorf("amend %s: %w", key, err)
	}
	out := d.describeLink(l)
	d.log.Info("link amended", "link", key.String(), "names", out.Names, "bandwidth", out.Bandwidth)
	return &out, nil
}

// amending is an amendment under way.
type amending struct {
	l         *link
	was, next amendable
	undo      undoList
}

// amend changes what the request names, with the key locked.
func (l *link) amend(ctx context.Context, req *control.AmendLinkRequest) error {
	a := &amending{l: l}
	l.d.mu.Lock()
	a.was, a.next = l.now, l.now
	l.d.mu.Unlock()
	if req.Hostname != nil {
		a.next.Hostname = *req.Hostname
	}
	if req.Aliases != nil {
		a.next.Aliases = *req.Aliases
	}
	if req.Bandwidth != nil {
		a.next.Bandwidth = req.Bandwidth
	}
	if a.next.Bandwidth != nil && *a.next.Bandwidth == (control.Bandwidth{}) {
		a.next.Bandwidth = nil
	}
	if err := checkWishes(&a.next); err != nil {
		return err
	}
	defer a.undo.run(ctx)
	for _, step := range []struct {
		name string
		do   func() error
	}{{stepAmendNames, a.names}, {stepAmendBandwidth, a.bandwidth}, {stepAmendRecord, a.record}} {
		if err := l.d.faultAt(step.name); err != nil {
			return err
		}
		if err := step.do(); err != nil {
			return err
		}
	}
	a.undo.keep()
	return nil
}

// names changes what the DNS answers. The old names are given back when all is
// done, so that they can be kept if it comes to that.
func (a *amending) names() error {
	d, n, key := a.l.d, a.l.net, a.l.key()
	own := a.l.sl.Name()
	d.mu.Lock()
	names := n.reserveNamesLocked(key, own, &nameWishes{a.next.Hostname, a.next.Aliases, a.l.rec.Domain})
	d.mu.Unlock()
	a.next.Names = names.all()
	before, hostname := a.l.sl.Aliases(), a.l.sl.Hostname()
	a.undo.add(func(context.Context) {
		if err := a.l.sl.SetAliases(before, hostname); err != nil {
			d.log.Warn("names not set back", "link", key.String(), "err", err)
		}
		d.mu.Lock()
		n.freeNamesLocked(key, a.was.Names...)
		d.mu.Unlock()
	})
	if err := a.l.sl.SetAliases(names.further(), names.hostname()); err != nil {
		return goneLink(key, err)
	}
	return nil
}

func (a *amending) bandwidth() error {
	a.undo.add(func(context.Context) {
		if err := a.l.sl.SetBandwidth(switchBandwidth(a.was.Bandwidth)); err != nil {
			a.l.d.log.Warn("bandwidth not set back", "link", a.l.key().String(), "err", err)
		}
	})
	if err := a.l.sl.SetBandwidth(switchBandwidth(a.next.Bandwidth)); err != nil {
		return goneLink(a.l.key(), err)
	}
	return nil
}

// record makes the change known and durable.
func (a *amending) record() error {
	d := a.l.d
	set := func(now amendable) {
		d.mu.Lock()
		a.l.now = now
		d.mu.Unlock()
	}
	set(a.next)
	a.undo.add(func(context.Context) { set(a.was) })
	if err := d.recordLink(a.l); err != nil {
		return err
	}
	d.mu.Lock()
	a.l.net.freeNamesLocked(a.l.key(), a.next.Names...)
	d.mu.Unlock()
	return nil
}

// goneLink is the error of a link that ended while it was worked on.
func goneLink(key control.LinkKey, err error) error {
	return control.Errorf(control.CodeNotFound, "link %s has ended: %v", key, err)
}

// switchBandwidth is limits in the switch's words; nil means none.
func switchBandwidth(b *control.Bandwidth) netstack.Bandwidth {
	if b == nil {
		return netstack.Bandwidth{}
	}
	return netstack.Bandwidth{FromContainer: netstack.Rate(b.FromContainer), ToContainer: netstack.Rate(b.ToContainer)}
}
