package daemon

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/usernet/usernet/internal/control"
)

// The steps of PublishLink, by the names that Config.fault is asked with.
const (
	stepPublishAll    = "publish all" // asked before each publication
	stepPublishRecord = "publish record"
)

// PublishLink implements server.Handler: all publications or none.
func (d *Daemon) PublishLink(ctx context.Context, key control.LinkKey, req *control.PublishLinkRequest, files []*os.File) ([]control.Publication, error) {
	defer closeFiles(files) // what is published has a duplicate
	l, unlock, err := d.lockForPorts(ctx, key, req.Publications)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if !l.alive() {
		return nil, noLink(key)
	}
	list, err := l.publishAll(ctx, req.Publications, files)
	if err != nil {
		return nil, fmt.Errorf("publish to %s: %w", key, err)
	}
	return list, nil
}

// lockForPorts checks what a request says of ports and locks the link that it is
// for.
func (d *Daemon) lockForPorts(ctx context.Context, key control.LinkKey, specs []control.PublicationSpec) (l *link, unlock func(), err error) {
	for i := range specs {
		if err := checkPublication(&specs[i]); err != nil {
			return nil, nil, err
		}
	}
	if unlock, err = d.keys.lock(ctx, key); err != nil {
		return nil, nil, err
	}
	if l = d.link(key); l == nil {
		unlock()
		return nil, nil, noLink(key)
	}
	return l, unlock, nil
}

// publishAll opens publications and records them, with the key locked.
func (l *link) publishAll(ctx context.Context, specs []control.PublicationSpec, files []*os.File) ([]control.Publication, error) {
	sockets, r, err := splitRedirect(files, specs...)
	if err != nil {
		return nil, err
	}
	defer r.release()
	var undo undoList
	defer undo.run(ctx)
	var list []control.Publication
	for i := range specs {
		if err := l.d.faultAt(stepPublishAll); err != nil {
			return nil, err
		}
		var f *os.File
		if specs[i].FD {
			f, sockets = sockets[0], sockets[1:]
		}
		p, err := l.publish(&specs[i], f, r)
		if err != nil {
			return nil, err
		}
		undo.add(func(context.Context) { l.d.closePublication(p) })
		list = append(list, p.Publication)
	}
	if err := l.d.faultAt(stepPublishRecord); err != nil {
		return nil, err
	}
	if err := l.d.recordLink(l); err != nil {
		return nil, err
	}
	undo.keep()
	l.d.log.Info("ports published", "link", l.key().String(), "count", len(list))
	return list, nil
}

// UnpublishLink implements server.Handler.
func (d *Daemon) UnpublishLink(ctx context.Context, key control.LinkKey, req *control.UnpublishLinkRequest) ([]control.Publication, error) {
	l, unlock, err := d.lockForPorts(ctx, key, req.Publications)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d.mu.Lock()
	var doomed []*publication
	for _, p := range l.pubs {
		if slices.ContainsFunc(req.Publications, p.describedBy) {
			doomed = append(doomed, p)
		}
	}
	d.mu.Unlock()
	if len(doomed) == 0 {
		return nil, nil
	}
	var list []control.Publication
	for _, p := range doomed {
		d.closePublication(p)
		list = append(list, p.Publication)
	}
	sortPublications(list)
	d.log.Info("ports unpublished", "link", key.String(), "count", len(list))
	return list, d.recordLink(l)
}

// describedBy reports whether a spec means the publication.
func (p *publication) describedBy(s control.PublicationSpec) bool {
	return s.Proto == p.Proto && s.Port == p.Port &&
		(!s.HostIP.IsValid() || s.HostIP == p.HostIP) && (s.HostPort == 0 || s.HostPort == p.HostPort)
}
