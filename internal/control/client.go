package control

import (
	"context"
	"io"
	"net/url"
	"os"
	"strconv"
)

// Client speaks to one daemon. Its methods mirror the routes and are safe for
// concurrent use; each call is one connection, except that an [Attachment]
// keeps its connection until it is closed. The zero Client uses
// [DefaultSocket].
//
// Errors from the daemon are *[Error]; a daemon that is not there is
// [ErrNotRunning], one that is not usernet [ErrForeign].
type Client struct {
	Socket string // path; empty: DefaultSocket()
}

// Dial returns a client of the socket at path; empty means [DefaultSocket]. It
// does not connect: the first call does.
func Dial(path string) *Client { return &Client{Socket: path} }

func (c *Client) path() string {
	if c.Socket == "" {
		return DefaultSocket()
	}
	return c.Socket
}

// Attachment is a link that this process made. Until Commit succeeds the
// daemon removes the link as soon as the connection goes, be it by Close or
// because the process died.
type Attachment struct {
	Reply AttachReply

	key  LinkKey
	conn *session
}

// Attach makes a link. files are the request's descriptors in the order that
// [AttachRequest] says; the caller keeps them and may close them after Attach
// returns. The caller must Close the attachment.
func (c *Client) Attach(ctx context.Context, req AttachRequest, files ...*os.File) (*Attachment, error) {
	s := newSession(c.path(), files)
	var reply AttachReply
	if err := s.call(ctx, "POST", "/v1/links", &req, &reply); err != nil {
		s.close()
		return nil, err
	}
	return &Attachment{Reply: reply, key: req.Key(), conn: s}, nil
}

// Commit makes the link outlive the connection (not when it is ephemeral).
// Committing twice is no error.
func (a *Attachment) Commit(ctx context.Context) error {
	return a.conn.call(ctx, "POST", linkPath(a.key)+"/commit", nil, nil)
}

// Close ends the connection, and with it the link unless it was committed.
func (a *Attachment) Close() error {
	a.conn.close()
	return nil
}

// Links lists links; ref selects by id, container id, unique prefix of a
// container id (at least 4 characters), or name; empty selects all. A ref that
// matches nothing is CodeNotFound.
func (c *Client) Links(ctx context.Context, ref string) ([]Link, error) {
	var r LinksReply
	err := c.call(ctx, "GET", "/v1/links"+query("ref", ref), nil, &r)
	return r.Links, err
}

// Link returns one link.
func (c *Client) Link(ctx context.Context, key LinkKey) (Link, error) {
	var r Link
	err := c.call(ctx, "GET", linkPath(key), nil, &r)
	return r, err
}

// AmendLink changes what req names of an attached link, and returns the link as
// it is now.
func (c *Client) AmendLink(ctx context.Context, key LinkKey, req AmendLinkRequest) (Link, error) {
	if req.Aliases != nil && *req.Aliases == nil {
		req.Aliases = &[]string{} // null would mean that they stay
	}
	var r Link
	err := c.call(ctx, "PATCH", linkPath(key), &req, &r)
	return r, err
}

// Detach removes a link, with the lease of the same key if there is one, and
// reports whether there was a link.
func (c *Client) Detach(ctx context.Context, key LinkKey) (removed bool, err error) {
	var r DetachReply
	err = c.call(ctx, "DELETE", linkPath(key), nil, &r)
	return r.Removed, err
}

// Acquire leases addresses without a link.
func (c *Client) Acquire(ctx context.Context, req LeaseRequest) (Lease, error) {
	var r Lease
	err := c.call(ctx, "POST", "/v1/leases", &req, &r)
	return r, err
}

// Leases lists the leases without a link; an empty network selects all.
func (c *Client) Leases(ctx context.Context, network string) ([]Lease, error) {
	var r LeasesReply
	err := c.call(ctx, "GET", "/v1/leases"+query("network", network), nil, &r)
	return r.Leases, err
}

// Lease returns one lease.
func (c *Client) Lease(ctx context.Context, key LinkKey) (Lease, error) {
	var r Lease
	err := c.call(ctx, "GET", keyPath("leases", key), nil, &r)
	return r, err
}

// Release ends a lease and reports whether there was one.
func (c *Client) Release(ctx context.Context, key LinkKey) (released bool, err error) {
	var r ReleaseReply
	err = c.call(ctx, "DELETE", keyPath("leases", key), nil, &r)
	return r.Released, err
}

// Networks lists the networks.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	var r NetworksReply
	err := c.call(ctx, "GET", "/v1/networks", nil, &r)
	return r.Networks, err
}

// Network returns one network.
func (c *Client) Network(ctx context.Context, name string) (Network, error) {
	var r Network
	err := c.call(ctx, "GET", "/v1/networks/"+url.PathEscape(name), nil, &r)
	return r, err
}

// CreateNetwork makes a network.
func (c *Client) CreateNetwork(ctx context.Context, req CreateNetworkRequest) (Network, error) {
	var r Network
	err := c.call(ctx, "POST", "/v1/networks", &req, &r)
	return r, err
}

// AmendNetwork changes what req names of a network, and returns the network as
// it is now.
func (c *Client) AmendNetwork(ctx context.Context, name string, req AmendNetworkRequest) (Network, error) {
	var r Network
	err := c.call(ctx, "PATCH", "/v1/networks/"+url.PathEscape(name), &req, &r)
	return r, err
}

// RemoveNetwork removes a network that has no links.
func (c *Client) RemoveNetwork(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "/v1/networks/"+url.PathEscape(name), nil, nil)
}

// AttachHost joins a namespace of the host's to a network by a TUN in it, which
// the caller keeps and may close.
func (c *Client) AttachHost(ctx context.Context, network string, req AttachHostRequest, tun *os.File) (HostLink, error) {
	s := newSession(c.path(), []*os.File{tun})
	defer s.close()
	var r HostLink
	err := s.call(ctx, "POST", "/v1/networks/"+url.PathEscape(network)+"/hosts", &req, &r)
	return r, err
}

// GC removes the links and leases of a network that are not valid any more.
func (c *Client) GC(ctx context.Context, network string, req GCRequest) (GCReply, error) {
	var r GCReply
	err := c.call(ctx, "POST", "/v1/networks/"+url.PathEscape(network)+"/gc", &req, &r)
	return r, err
}

// Publications lists the publications of all links.
func (c *Client) Publications(ctx context.Context) ([]Publication, error) {
	var r PublicationsReply
	err := c.call(ctx, "GET", "/v1/publications", nil, &r)
	return r.Publications, err
}

// Publish adds a publication. With req.FD set files holds its one socket, and
// with req.Redirect the nf_tables socket after it; the caller keeps them.
func (c *Client) Publish(ctx context.Context, req PublishRequest, files ...*os.File) (Publication, error) {
	s := newSession(c.path(), files)
	defer s.close()
	var r Publication
	err := s.call(ctx, "POST", "/v1/publications", &req, &r)
	return r, err
}

// PublishLink adds publications to a link, all or none, and returns them in the
// request's order. files are the request's descriptors, which the caller keeps.
func (c *Client) PublishLink(ctx context.Context, key LinkKey, specs []PublicationSpec, files ...*os.File) ([]Publication, error) {
	s := newSession(c.path(), files)
	defer s.close()
	var r PublicationsReply
	err := s.call(ctx, "POST", linkPath(key)+"/publications", &PublishLinkRequest{Publications: specs}, &r)
	return r.Publications, err
}

// UnpublishLink removes the publications of a link that one of specs describes,
// and returns those that it removed.
func (c *Client) UnpublishLink(ctx context.Context, key LinkKey, specs []PublicationSpec) ([]Publication, error) {
	var r PublicationsReply
	err := c.call(ctx, "POST", linkPath(key)+"/unpublish", &UnpublishLinkRequest{Publications: specs}, &r)
	return r.Publications, err
}

// Unpublish removes a publication by its id.
func (c *Client) Unpublish(ctx context.Context, id string) error {
	return c.call(ctx, "DELETE", "/v1/publications/"+url.PathEscape(id), nil, nil)
}

// Flows lists the open flows and those that ended lately.
func (c *Client) Flows(ctx context.Context, q FlowQuery) ([]Flow, error) {
	var r FlowsReply
	err := c.call(ctx, "GET", "/v1/flows"+query("network", q.Network, "link", q.Link), nil, &r)
	return r.Flows, err
}

// Stats returns counters; an empty network selects all.
func (c *Client) Stats(ctx context.Context, network string) (StatsReply, error) {
	var r StatsReply
	err := c.call(ctx, "GET", "/v1/stats"+query("network", network), nil, &r)
	return r, err
}

// Capture copies a pcapng stream to w until ctx ends (nil) or the daemon ends
// it (nil) or w fails.
func (c *Client) Capture(ctx context.Context, q CaptureQuery, w io.Writer) error {
	s := newSession(c.path(), nil)
	defer s.close()
	snap := ""
	if q.SnapLen != 0 {
		snap = strconv.Itoa(q.SnapLen)
	}
	body, done, err := s.do(ctx, "GET", "/v1/capture"+query("link", q.Link, "network", q.Network, "snaplen", snap), nil)
	if err != nil {
		return err
	}
	defer done()
	_, err = io.Copy(w, body)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Status returns the daemon's own view of its health; network narrows the
// problems to those that concern it.
func (c *Client) Status(ctx context.Context, network string) (StatusReply, error) {
	var r StatusReply
	err := c.call(ctx, "GET", "/v1/status"+query("network", network), nil, &r)
	return r, err
}

// Version returns what the daemon is.
func (c *Client) Version(ctx context.Context) (VersionReply, error) {
	var r VersionReply
	err := c.call(ctx, "GET", "/v1/version", nil, &r)
	return r, err
}

func (c *Client) call(ctx context.Context, method, path string, body, reply any) error {
	s := newSession(c.path(), nil)
	defer s.close()
	return s.call(ctx, method, path, body, reply)
}

func linkPath(k LinkKey) string { return keyPath("links", k) }

func keyPath(of string, k LinkKey) string {
	return "/v1/" + of + "/" + url.PathEscape(k.Network) + "/" + url.PathEscape(k.Container) + "/" + url.PathEscape(k.IfName)
}

// query encodes key, value pairs, leaving out the empty values.
func query(pairs ...string) string {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	if len(v) == 0 {
		return ""
	}
	return "?" + v.Encode()
}
