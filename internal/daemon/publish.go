package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/netstack"
)

// publication is one publication with its identity in the API.
type publication struct {
	control.Publication
	link *link
	spec *control.PublicationSpec // of the request that made it
	np   *netstack.Publication
}

// publish opens one publication of a link and enters it into the tables. f is
// the socket when the spec says so; it stays the caller's. A redirected one
// keeps r for as long as it is open.
func (l *link) publish(spec *control.PublicationSpec, f *os.File, r *redirect) (*publication, error) {
	cfg := netstack.PublishConfig{Link: l.sl.Name(), Proto: spec.Proto, Port: spec.Port}
	var sock hostSocket
	var socketPort uint16
	if f != nil {
		var err error
		if sock, err = adoptSocket(f, spec); err != nil {
			return nil, err
		}
		cfg.Listener, cfg.PacketConn = sock.listener, sock.packet
		if spec.Redirect {
			cfg.Host = netip.AddrPortFrom(spec.HostIP, spec.HostPort)
			socketPort = sock.port()
			cfg.Ended = r.share()
		}
	} else {
		host := spec.HostIP
		if !host.IsValid() {
			host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		cfg.Host = netip.AddrPortFrom(host, spec.HostPort)
	}
	np, err := l.net.sw.Publish(cfg)
	if err != nil {
		sock.close()
		if cfg.Ended != nil {
			cfg.Ended()
		}
		return nil, publishError(err)
	}
	p := &publication{link: l, spec: spec, np: np, Publication: control.Publication{
		ID: newPublicationID(), Link: l.key().String(), Proto: np.Proto(),
		HostIP: np.Host().Addr(), HostPort: np.Host().Port(), Port: np.Port(), SocketPort: socketPort,
	}}
	l.d.mu.Lock()
	l.pubs[p.ID] = p
	l.d.mu.Unlock()
	return p, nil
}

func publishError(err error) error {
	var code control.Code
	switch {
	case errors.Is(err, netstack.ErrPortInUse):
		code = control.CodePortInUse
	case errors.Is(err, netstack.ErrNoLink):
		code = control.CodeNotFound
	default:
		code = control.CodeInvalid
	}
	return control.Errorf(code, "%v", err)
}

// newPublicationID is random, so that an id from an earlier daemon never
// names another publication.
func newPublicationID() string {
	var b [6]byte
	rand.Read(b[:]) // never fails, by its documentation
	return "p" + hex.EncodeToString(b[:])
}

// closePublication ends a publication and forgets it.
func (d *Daemon) closePublication(p *publication) {
	d.mu.Lock()
	delete(p.link.pubs, p.ID)
	d.mu.Unlock()
	if err := p.np.Close(); err != nil {
		d.log.Warn("publication closed with an error", "publication", p.np.String(), "err", err)
	}
}

// publishedLocked lists a link's publications, by host port.
func (l *link) publishedLocked() []control.Publication {
	var list []control.Publication
	for _, p := range l.pubs {
		list = append(list, p.Publication)
	}
	sortPublications(list)
	return list
}

func sortPublications(list []control.Publication) {
	slices.SortFunc(list, func(a, b control.Publication) int {
		return cmp.Or(cmp.Compare(a.HostPort, b.HostPort), a.HostIP.Compare(b.HostIP), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.ID, b.ID))
	})
}

// publicationsOf lists a new link's publications in the request's order.
func (d *Daemon) publicationsOf(l *link, specs []control.PublicationSpec) []control.Publication {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []control.Publication
	for i := range specs {
		for _, p := range l.pubs {
			if p.spec == &specs[i] {
				list = append(list, p.Publication)
			}
		}
	}
	return list
}

// Publications implements server.Handler.
func (d *Daemon) Publications(context.Context) ([]control.Publication, error) {
	var list []control.Publication
	for _, l := range d.linkList() {
		d.mu.Lock()
		list = append(list, l.publishedLocked()...)
		d.mu.Unlock()
	}
	sortPublications(list)
	return list, nil
}

// Publish implements server.Handler.
func (d *Daemon) Publish(ctx context.Context, req *control.PublishRequest, files []*os.File) (*control.Publication, error) {
	defer closeFiles(files)
	spec := req.PublicationSpec
	if err := checkPublication(&spec); err != nil {
		return nil, err
	}
	sockets, r, err := splitRedirect(files, spec)
	if err != nil {
		return nil, err
	}
	defer r.release()
	var file *os.File
	if spec.FD {
		file = sockets[0]
	}
	l, err := d.oneLink(req.Link)
	if err != nil {
		return nil, err
	}
	unlock, err := d.keys.lock(ctx, l.key())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if d.link(l.key()) != l || !l.alive() {
		return nil, noLink(l.key())
	}
	p, err := l.publish(&spec, file, r)
	if err != nil {
		return nil, fmt.Errorf("publish to %s: %w", l.key(), err)
	}
	if err := d.recordLink(l); err != nil {
		d.closePublication(p)
		return nil, err
	}
	d.log.Info("port published", "publication", p.np.String())
	return &p.Publication, nil
}

// Unpublish implements server.Handler.
func (d *Daemon) Unpublish(ctx context.Context, id string) error {
	for _, l := range d.linkList() {
		d.mu.Lock()
		p := l.pubs[id]
		d.mu.Unlock()
		if p == nil {
			continue
		}
		unlock, err := d.keys.lock(ctx, l.key())
		if err != nil {
			return err
		}
		defer unlock()
		d.closePublication(p)
		return d.recordLink(l)
	}
	return control.Errorf(control.CodeNotFound, "no publication %q", id)
}

// recordLink makes the record of a committed link say what is true now, with
// the key locked.
func (d *Daemon) recordLink(l *link) error {
	d.mu.Lock()
	rec := l.recordLocked()
	known := l.net.links[l.key()] == l
	d.mu.Unlock()
	if !known || rec.State != control.LinkAttached {
		return nil // the commit will record it
	}
	return d.store.putLink(rec)
}
