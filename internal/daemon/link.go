package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/control/server"
	"github.com/usernet/usernet/netstack"
	"github.com/usernet/usernet/tunnel"
)

// link is one container's attachment.
type link struct {
	d   *Daemon
	net *network
	rec *linkRecord    // not changed once the link is in the tables; what may change is below
	sl  *netstack.Link // nil when lost

	pinned bool // the device keeps the namespace alive: reapEnded sees to the link

	session *server.Session // whose end undoes an uncommitted or ephemeral link
	unbind  func() bool     // stops that

	// Guarded by Daemon.mu.
	state    control.LinkState
	now      amendable
	removing bool // somebody removes it; the key is locked by them
	pubs     map[string]*publication
}

// recordLocked is the record as it belongs on disk, with Daemon.mu held.
func (l *link) recordLocked() *linkRecord {
	rec := *l.rec
	rec.State, rec.amendable, rec.Published = l.state, l.now, l.publishedLocked()
	return &rec
}

func (l *link) key() control.LinkKey { return l.rec.key() }

// alive reports whether the link still has its device and its maker.
func (l *link) alive() bool {
	if l.sl == nil {
		return false
	}
	select {
	case <-l.sl.Done():
		return false
	default:
	}
	return !l.orphaned()
}

// makerGone is closed when the connection that the link depends on has ended.
// It is nil, and so never ready, when the link depends on none. The key is
// locked.
func (l *link) makerGone() <-chan struct{} {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	if l.session == nil || l.state != control.LinkAttaching && !l.rec.Ephemeral {
		return nil
	}
	return l.session.Context().Done()
}

// orphaned reports whether the connection that the link depends on has ended.
func (l *link) orphaned() bool {
	select {
	case <-l.makerGone():
		return true
	default:
		return false
	}
}

// bind ties a link to the connection that made it, with the key locked.
func (l *link) bind(s *server.Session) {
	l.session = s
	l.d.bound.Add(1)
	stop := context.AfterFunc(s.Context(), l.abandon)
	l.unbind = func() bool {
		stopped := stop()
		if stopped {
			l.d.bound.Done()
		}
		return stopped
	}
}

// abandon removes a link whose maker has gone before it committed. It runs
// once, when the connection ends; Run waits for it.
func (l *link) abandon() {
	defer l.d.bound.Done()
	unlock, err := l.d.keys.lock(context.Background(), l.key())
	if err != nil {
		return // the background context has no end
	}
	defer unlock()
	if l.d.link(l.key()) != l || !l.orphaned() {
		return
	}
	if err := l.remove(context.Background(), "its maker went away"); err != nil {
		l.d.log.Error("link not removed whole", "link", l.key().String(), "err", err)
	}
}

// watch removes a link whose device dies. It ends with the device; Run waits
// for it.
func (l *link) watch() {
	defer l.d.watchers.Done()
	<-l.sl.Done()
	l.d.mu.Lock()
	removing := l.removing
	l.d.mu.Unlock()
	if removing || l.d.stopping() {
		return
	}
	unlock, err := l.d.keys.lock(context.Background(), l.key())
	if err != nil {
		return // the background context has no end
	}
	defer unlock()
	if l.d.link(l.key()) != l {
		return
	}
	if err := l.remove(context.Background(), l.cause()); err != nil {
		l.d.log.Error("link not removed whole", "link", l.key().String(), "err", err)
	}
}

// cause is why the link's device has ended. The descriptor says only that the
// interface is gone: with its namespace, or deleted while that lives on, by an
// ADD that failed or by hand.
func (l *link) cause() string {
	if !errors.Is(l.sl.Err(), tunnel.ErrGone) {
		return "its device ended"
	}
	switch fateOf(l.rec.NetnsPath, l.rec.Netns) {
	case fateAlive:
		return "its interface was deleted"
	case fateDead:
		return namespaceEnded
	}
	return "its interface is gone, deleted or with its namespace"
}

// namespaceEnded is why most links end that no DEL has ended.
const namespaceEnded = "its namespace ended"

// remove takes a link out of everything, with its key locked: no flow, then no
// lease, then no record, so that an address is free only when nothing uses it,
// and a crash in between leaves a record that the next start or DEL clears.
// Where lease or record cannot be cleared the link stays listed, as lost, for
// the next DEL or GC to clear: an address that nobody is on record for would
// never be free again.
func (l *link) remove(ctx context.Context, reason string) error {
	d, key := l.d, l.key()
	d.mu.Lock()
	l.removing = true
	d.mu.Unlock()
	if l.unbind != nil {
		l.unbind()
	}
	var slow error
	if l.sl != nil {
		inTime(ctx, func(ctx context.Context) { slow = l.sl.Detach(ctx) }) // publications end with it
	}
	err := l.forget(ctx)
	d.mu.Lock()
	l.net.freeNamesLocked(key)
	if err == nil {
		delete(l.net.links, key)
	} else {
		l.state, l.removing = control.LinkLost, false
	}
	d.mu.Unlock()
	d.releaseHost(ctx, l.net, l.rec.HostNetns)
	d.poke()
	err = errors.Join(slow, err)
	d.log.Info("link removed", "link", key.String(), "reason", reason, "err", err)
	return err
}

// forget releases a link's lease and then deletes its record.
func (l *link) forget(ctx context.Context) error {
	var err error
	if l.net.pool != nil {
		inTime(ctx, func(ctx context.Context) { err = l.net.pool.Release(ctx, linkOwner(l.key())) })
	}
	if err != nil {
		return err
	}
	return l.d.store.deleteLink(l.key())
}

// link returns the link of a key, or nil.
func (d *Daemon) link(key control.LinkKey) *link {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.networks[key.Network]; n != nil {
		return n.links[key]
	}
	return nil
}

// linkList returns all links, by id.
func (d *Daemon) linkList() []*link {
	all := d.links()
	slices.SortFunc(all, func(a, b *link) int { return strings.Compare(a.key().String(), b.key().String()) })
	return all
}

// links returns all links.
func (d *Daemon) links() []*link {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*link
	for _, n := range d.networks {
		for _, l := range n.links {
			all = append(all, l)
		}
	}
	return all
}

func noLink(key control.LinkKey) error {
	return control.Errorf(control.CodeNotFound, "no link %s", key)
}

// Commit implements server.Handler.
func (d *Daemon) Commit(ctx context.Context, key control.LinkKey) error {
	unlock, err := d.keys.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	l := d.link(key)
	if l == nil || !l.alive() {
		return noLink(key)
	}
	d.mu.Lock()
	committed := l.state == control.LinkAttached
	rec := l.recordLocked()
	d.mu.Unlock()
	if committed {
		return nil
	}
	rec.State = control.LinkAttached
	if err := d.store.putLink(rec); err != nil {
		return err
	}
	d.mu.Lock()
	l.state = control.LinkAttached
	d.mu.Unlock()
	if !l.rec.Ephemeral {
		l.unbind()
	}
	return nil
}

// Detach implements server.Handler.
func (d *Daemon) Detach(ctx context.Context, key control.LinkKey) (removed bool, err error) {
	unlock, err := d.keys.lock(ctx, key)
	if err != nil {
		return false, err
	}
	defer unlock()
	l := d.link(key)
	if l != nil {
		err = l.remove(ctx, "detached")
	}
	// The interface may have been another plugin's before.
	_, lerr := d.release(ctx, key, "detached")
	return l != nil, errors.Join(err, lerr)
}

// GC implements server.Handler: the network's links and bare leases with the
// caller's tag that are not in the list go. It goes on past errors and reports
// them all.
func (d *Daemon) GC(ctx context.Context, network string, req *control.GCRequest) (*control.GCReply, error) {
	reply := &control.GCReply{Removed: []string{}, Released: []string{}}
	valid := func(key control.LinkKey) bool {
		return slices.Contains(req.Valid, control.LinkName{Container: key.Container, IfName: key.IfName})
	}
	var errs []error
	for _, l := range d.linkList() {
		key := l.key()
		if key.Network != network || l.rec.Owner != req.Owner || valid(key) {
			continue
		}
		removed, err := d.collect(ctx, l)
		if removed {
			reply.Removed = append(reply.Removed, key.String())
		}
		errs = append(errs, err)
	}
	for _, b := range d.bareLeases(network) {
		if b.note.Owner != req.Owner || valid(b.key) {
			continue
		}
		released, err := d.releaseIf(ctx, b, "garbage collected")
		if released {
			reply.Released = append(reply.Released, b.key.String())
		}
		errs = append(errs, err)
	}
	return reply, errors.Join(errs...)
}

// collect removes one link unless it has changed hands, or is being made and
// so cannot be in any list yet.
func (d *Daemon) collect(ctx context.Context, l *link) (bool, error) {
	unlock, err := d.keys.lock(ctx, l.key())
	if err != nil {
		return false, err
	}
	defer unlock()
	d.mu.Lock()
	fresh := l.state == control.LinkAttaching
	d.mu.Unlock()
	if d.link(l.key()) != l || fresh && l.alive() {
		return false, nil
	}
	return true, l.remove(ctx, "garbage collected")
}
