package netstack

// Temporary: replaced by tcp.go, udp.go, icmp.go and resolver.go. Whoever
// commits the real type deletes its stub here.

import (
	"context"

	"github.com/usernet/usernet/internal/policy"
)

type tcpNAT struct{}

func newTCPNAT(*Switch) (*tcpNAT, error)                            { return &tcpNAT{}, nil }
func (t *tcpNAT) fromContainer(l *Link, f *frame, v policy.Verdict) {}
func (t *tcpNAT) linkGone(l *Link)                                  {}
func (t *tcpNAT) closePublications()                                {}
func (t *tcpNAT) close(ctx context.Context) error                   { return nil }

// Publications is D's.
func (s *Switch) Publications() []int { return nil }

type udpNAT struct{}

func newUDPNAT(*Switch) (*udpNAT, error)                            { return &udpNAT{}, nil }
func (u *udpNAT) fromContainer(l *Link, f *frame, v policy.Verdict) {}
func (u *udpNAT) linkGone(l *Link)                                  {}
func (u *udpNAT) close()                                            {}

type icmpNAT struct{}

func newICMPNAT(*Switch) (*icmpNAT, error)                           { return &icmpNAT{}, nil }
func (n *icmpNAT) fromContainer(l *Link, f *frame, v policy.Verdict) {}
func (n *icmpNAT) linkGone(l *Link)                                  {}
func (n *icmpNAT) close()                                            {}

type resolver struct{}

func newResolver(*Switch) (*resolver, error) { return &resolver{}, nil }
func (r *resolver) linkGone(l *Link)         {}
func (r *resolver) close()                   {}
