package netstack

// Temporary: replaced by tcp.go, udp.go, icmp.go and resolver.go. Whoever
// commits the real type deletes its stub here.

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/usernet/usernet/internal/policy"
)

type udpNAT struct{}

func newUDPNAT(*Switch) (*udpNAT, error)                            { return &udpNAT{}, nil }
func (u *udpNAT) fromContainer(l *Link, f *frame, v policy.Verdict) {}
func (u *udpNAT) linkGone(l *Link)                                  {}
func (u *udpNAT) close()                                            {}

// publish makes the UDP half of a publication on pc, which the half owns once
// start was called; start begins to serve, half.Close ends it and closes pc.
func (u *udpNAT) publish(p *Publication, pc net.PacketConn) (half io.Closer, start func(), err error) {
	return nil, nil, errors.ErrUnsupported
}

type icmpNAT struct{}

func newICMPNAT(*Switch) (*icmpNAT, error)                           { return &icmpNAT{}, nil }
func (n *icmpNAT) fromContainer(l *Link, f *frame, v policy.Verdict) {}
func (n *icmpNAT) linkGone(l *Link)                                  {}
func (n *icmpNAT) close()                                            {}

type resolver struct{}

func newResolver(*Switch) (*resolver, error) { return &resolver{}, nil }
func (r *resolver) linkGone(l *Link)         {}
func (r *resolver) close()                   {}

// serveStream answers the DNS queries of one TCP connection until it ends.
func (r *resolver) serveStream(ctx context.Context, l *Link, c net.Conn) error {
	return errors.ErrUnsupported
}
