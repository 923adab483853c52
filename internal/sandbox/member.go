package sandbox

import (
	"context"
	"net/netip"
	"os"
	"sync"

	"github.com/usernet/usernet/internal/control"
)

// Member attaches sandboxes to a network of the daemon, beside its containers.
type Member struct {
	client  *control.Client
	network string
}

// NewMember returns the daemon's network of that name. Nothing is asked of the
// daemon before the first Attach.
func NewMember(client *control.Client, network string) *Member {
	return &Member{client: client, network: network}
}

// memberOwner is the tag of run's links, which no runtime's GC judges.
const memberOwner = "usernet run"

// Attach implements Network. The link is an ephemeral one: it ends with this
// process's connection to the daemon, so that a killed process leaves nothing.
func (m *Member) Attach(ctx context.Context, tun *os.File, spec LinkSpec) (Attachment, error) {
	// An attach may create its network; a sandbox joins one that is there.
	network, err := m.client.Network(ctx, m.network)
	if err != nil {
		return nil, err
	}
	request := control.AttachRequest{
		Network: m.network, Container: spec.Name, IfName: spec.IfName, Netns: spec.Netns,
		Owner: memberOwner, Hostname: spec.Name, Ephemeral: true, Sets: network.Sets,
	}
	files := []*os.File{tun}
	for _, p := range spec.Publish {
		request.Publications = append(request.Publications, control.PublicationSpec{
			Proto: p.Proto, HostIP: p.Host.Addr(), HostPort: p.Host.Port(), Port: p.Port,
		})
	}
	attachment, err := m.client.Attach(ctx, request, files...)
	if err != nil {
		return nil, err
	}
	tun.Close() // the daemon has its own descriptor
	return &memberLink{client: m.client, key: request.Key(), attachment: attachment}, nil
}

// memberLink is a link that the daemon holds.
type memberLink struct {
	client     *control.Client
	key        control.LinkKey
	attachment *control.Attachment
	once       sync.Once
	err        error
}

// Settings implements Attachment.
func (a *memberLink) Settings() Settings {
	r := a.attachment.Reply
	s := Settings{
		Addrs: r.Addrs, MTU: r.MTU,
		Nameservers: r.DNS.Nameservers, Search: r.DNS.Search, Options: r.DNS.Options,
	}
	for _, g := range r.Gateways {
		if g.IsValid() {
			s.Gateways = append(s.Gateways, g)
		}
	}
	for _, p := range r.Publications {
		s.Published = append(s.Published, Publish{
			Proto: p.Proto, Host: netip.AddrPortFrom(p.HostIP, p.HostPort), Port: p.Port,
		})
	}
	return s
}

// Commit implements Attachment.
func (a *memberLink) Commit(ctx context.Context) error { return a.attachment.Commit(ctx) }

// Detach implements Attachment. The answer to an explicit request says when the
// link is gone; closing the connection alone would not.
func (a *memberLink) Detach(ctx context.Context) error {
	a.once.Do(func() {
		_, a.err = a.client.Detach(ctx, a.key)
		a.attachment.Close()
	})
	return a.err
}
