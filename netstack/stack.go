package netstack

import (
	"fmt"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// This file is the only place where gVisor is tuned. Each knob has gVisor's
// default, our value and the reason. "Our link" is a TUN: lossless, in order,
// some 50 µs there and back.
const (
	// nicID is the stack's only NIC; every link hangs on it, told apart by
	// address.
	nicID tcpip.NICID = 1

	// stackMTU is what the NIC claims. gVisor's default is the endpoint's own
	// figure. A segment's size follows from the MSS that the container
	// announces, which its own MTU decides, so the NIC claims the most that IP
	// can carry and links of one network may differ.
	stackMTU = 65535

	// gsoMaxSize is the longest superframe, IP header included. gVisor's
	// default is no segmentation offload. Whole superframes are worth about
	// ten times the throughput of MTU-sized packets.
	gsoMaxSize = 65535

	// Buffers per connection and direction. gVisor: 4 KiB, 1 MiB, 4 MiB. On
	// our link 1 MiB is twenty times the bandwidth-delay product; the window
	// announced is half the receive buffer. The maximum stays at gVisor's: it
	// is reached only by a bulk flow whose reader keeps up.
	tcpBufferMin     = 4 << 10
	tcpBufferDefault = 1 << 20
	tcpBufferMax     = 4 << 20

	// tcpTimeWait: gVisor 60 s. TIME_WAIT guards against old segments and a
	// lost last ACK; our link neither delays nor loses. An endpoint that waits
	// holds 6 KB and, were a container to use the port again, a SYN.
	tcpTimeWait = time.Second

	// tcpFinWait2: gVisor 60 s. Runs only once both directions have ended, that is
	// for a container that never closes its side of a connection that the
	// relay has given up.
	tcpFinWait2 = 10 * time.Second

	// tcpCongestion: gVisor "reno" as well, named so that a changed default
	// does not change us. Cubic is tuned for long fat paths and measured no
	// better on ours (16.0 against 18.4 Gbit/s, noise 2).
	tcpCongestion = "reno"

	// tcpSACK: gVisor on. Costs nothing while nothing is lost, and a full
	// device queue is a loss.
	tcpSACK = true

	// tcpRecovery: gVisor RACK. RACK takes the jitter of goroutine wake-ups
	// for loss: 6 to 9 spurious recoveries a second on a lossless TUN, none
	// without it.
	tcpRecovery = tcpip.TCPRecovery(0)

	// Keepalive towards both ends: gVisor 2 h, 75 s, 9. A peer that vanished
	// without a word must not hold an endpoint and a host socket for hours.
	keepaliveIdle     = 60 * time.Second
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 5

	// keepaliveAfter is the age at which a connection of a relay gets it:
	// short ones are spared the calls and timers.
	keepaliveAfter = 10 * time.Second

	// handshakeTimeout bounds the container's half of a new connection. gVisor
	// gives up after 127 s of retransmitted SYN-ACKs, and holds the request's
	// slot meanwhile.
	handshakeTimeout = 10 * time.Second

	// orphanTimeout bounds how long data and FIN of a relay that has ended may
	// wait for the container. gVisor: 15 retransmissions, or for ever behind a
	// zero window.
	orphanTimeout = 60 * time.Second

	// maxRequests bounds the SYNs whose host side is being dialled, over all
	// links; over it SYNs are dropped, and the container's kernel repeats
	// them. Per link [Limits].Dials rules: 128 by default, so 64 links must
	// misbehave at once to get here.
	maxRequests = 8192
)

// newStack makes the stack that terminates TCP. All of its packets go through
// nic. unknown is asked about segments that no endpoint takes.
//
// HandleLocal stays off: two ends in one stack would bypass the links. There is
// no queueing discipline: a TUN takes one frame per system call, so a queue
// would only add a goroutine. UDP and ICMP are not registered; the switch
// carries them outside of the stack.
func newStack(nic stack.LinkEndpoint, register func(*stack.Stack)) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	if err := tune(s); err != nil {
		s.Destroy()
		return nil, err
	}
	// Before the NIC exists: a packet must never meet a stack without handler.
	register(s)
	if err := s.CreateNIC(nicID, nic); err != nil {
		s.Destroy()
		return nil, fmt.Errorf("create the stack's NIC: %w", tcpipError(err))
	}
	// Any destination is ours to terminate, any source ours to use: the far
	// end that the container sees is the one it dialled, or its real client.
	for what, err := range map[string]tcpip.Error{
		"promiscuous mode": s.SetPromiscuousMode(nicID, true),
		"spoofing":         s.SetSpoofing(nicID, true),
	} {
		if err != nil {
			s.Destroy()
			return nil, fmt.Errorf("set the stack's NIC to %s: %w", what, tcpipError(err))
		}
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	return s, nil
}

// tune sets TCP's options.
func tune(s *stack.Stack) error {
	sack := tcpip.TCPSACKEnabled(tcpSACK)
	recovery := tcpRecovery
	congestion := tcpip.CongestionControlOption(tcpCongestion)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	timeWait := tcpip.TCPTimeWaitTimeoutOption(tcpTimeWait)
	finWait2 := tcpip.TCPLingerTimeoutOption(tcpFinWait2)
	options := []tcpip.SettableTransportProtocolOption{
		&sack, &recovery, &congestion, &moderate, &timeWait, &finWait2,
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax},
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax},
	}
	for _, o := range options {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set TCP option %T: %w", o, tcpipError(err))
		}
	}
	return nil
}

// setKeepalive makes the stack notice a container that is gone.
func setKeepalive(ep tcpip.Endpoint) {
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	// Options of an endpoint of this protocol; they cannot be refused.
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	ep.SocketOptions().SetKeepAlive(true)
}
