package netstack

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/usernet/usernet/tunnel"
)

// nic joins the stack to the links: the one LinkEndpoint of a switch's stack.
//
// Towards the stack it offers RXChecksumOffload, which gVisor knows only for a
// whole NIC; [tcpNAT] verifies the rare frame that the kernel does not vouch
// for. Towards the links it offers HostGSO, whose segments leave with a
// checksum for the far kernel to finish, but not TXChecksumOffload: with that,
// SYN and RST would leave without even a pseudo-header sum, and nobody could
// finish them.
type nic struct {
	linkByAddr func(netip.Addr) *Link
	dispatcher atomic.Pointer[dispatcher]
	unroutable atomic.Uint64 // segments to an address that no link holds any more
}

// dispatcher boxes the interface that Attach receives.
type dispatcher struct{ stack.NetworkDispatcher }

var (
	_ stack.LinkEndpoint = (*nic)(nil)
	_ stack.GSOEndpoint  = (*nic)(nil)
)

// inject gives a frame's packet to the stack, views and all. Everything that
// the stack does on its own behalf, the handler of unknown segments included,
// happens before inject returns; endpoints work later, on their own goroutines.
// Reports whether the stack took it.
func (n *nic) inject(f *frame) bool {
	d := n.dispatcher.Load()
	if d == nil {
		return false
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: f.takeBuffer()})
	d.DeliverNetworkPacket(networkProtocol(f.pkt.Src), pkt)
	pkt.DecRef()
	return true
}

// parsed makes a TCP frame's packet what the stack's IP layer would make of it,
// for those who pass that layer by: the switch has read, judged and reassembled
// it. Nil for a packet that the layer has to see: one with options, extension
// headers or padding, or when the NIC is gone.
func (n *nic) parsed(f *frame) *stack.PacketBuffer {
	length := header.IPv4MinimumSize
	if f.pkt.Version == 6 {
		length = header.IPv6MinimumSize
	}
	if f.raw == nil || f.pkt.L4 != length || f.pkt.Len != f.length-tunnel.HeaderLen || !n.IsAttached() {
		return nil
	}
	segment := f.pkt.Payload - f.pkt.L4
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: f.takeBuffer()})
	// Both are in the frame's first view, for they were parsed there.
	_, _ = pkt.NetworkHeader().Consume(length)
	_, _ = pkt.TransportHeader().Consume(segment)
	pkt.NetworkProtocolNumber = networkProtocol(f.pkt.Src)
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	pkt.NICID = nicID
	pkt.RXChecksumValidated = true // see nic
	return pkt
}

// gather is the pooled memory of one WritePackets call.
type gather struct {
	header [tunnel.HeaderLen]byte
	bufs   [][]byte
	flat   []byte // holds what has too many pieces; made when first needed
}

var gathers = sync.Pool{New: func() any { return &gather{bufs: make([][]byte, 0, tunnel.MaxBuffers)} }}

// WritePackets sends segments to the links that hold their destinations. It
// never waits: a device without room loses the segment, and TCP repeats it.
// Its only error is ErrClosedForSend; gVisor panics at others.
func (n *nic) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	g := gathers.Get().(*gather)
	for _, pkt := range pkts.AsSlice() {
		n.write(g, pkt)
	}
	gathers.Put(g)
	return pkts.Len(), nil
}

func (n *nic) write(g *gather, pkt *stack.PacketBuffer) {
	g.collect(pkt)
	if l := n.linkByAddr(destination(g.bufs[1])); l != nil {
		l.sendSegment(pkt, g.bufs)
	} else {
		n.unroutable.Add(1)
	}
	clear(g.bufs)
}

// sendSegment sends a segment of the stack, now or, if it is a bare
// acknowledgement, soon.
func (l *Link) sendSegment(pkt *stack.PacketBuffer, bufs [][]byte) {
	switch {
	case !onlyAcknowledges(pkt):
		l.worker.supersede(l, bufs)
	case l.worker.hold(l, bufs):
		return
	default:
		l.worker.sendHeld()
	}
	l.send(bufs)
}

// collect points bufs at the virtio header and the packet's pieces.
func (g *gather) collect(pkt *stack.PacketBuffer) {
	virtioHeader(pkt).Encode(g.header[:])
	g.bufs = append(g.bufs[:0], g.header[:])
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		if len(g.bufs) == tunnel.MaxBuffers {
			g.flatten(pkt)
			return
		}
		g.bufs = append(g.bufs, b[skip:])
		skip = 0
	}
}

// flatten copies a packet of many small pieces, such as a program makes that
// writes byte by byte, into one.
func (g *gather) flatten(pkt *stack.PacketBuffer) {
	g.flat = g.flat[:0]
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		n := min(skip, len(b))
		skip -= n
		g.flat = append(g.flat, b[n:]...)
	}
	clear(g.bufs)
	g.bufs = append(g.bufs[:1], g.flat)
	g.bufs[0] = g.header[:]
}

// virtioHeader tells the far kernel what is left to do: complete the checksum
// and, for a superframe, split it. The segment size may still be zero, for what
// leaves before the handshake has settled it; there is nothing to split then.
func virtioHeader(pkt *stack.PacketBuffer) (h tunnel.Header) {
	gso := &pkt.GSOOptions
	if gso.Type == stack.GSONone {
		return h
	}
	if gso.NeedsCsum {
		h.Flags = tunnel.FlagNeedsCsum
		h.CsumStart = gso.L3HdrLen
		h.CsumOffset = gso.CsumOffset
	}
	if gso.MSS > 0 && pkt.Data().Size() > int(gso.MSS) {
		h.GSOType = tunnel.GSOTCPv4
		if gso.Type == stack.GSOTCPv6 {
			h.GSOType = tunnel.GSOTCPv6
		}
		h.GSOSize = gso.MSS
		h.HdrLen = uint16(pkt.HeaderSize())
	}
	return h
}

// destination reads the destination from a packet's IP header, which the stack
// keeps in one piece.
func destination(ip []byte) netip.Addr {
	switch {
	case len(ip) >= header.IPv6MinimumSize && ip[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(ip[24:40]))
	case len(ip) >= header.IPv4MinimumSize && ip[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(ip[16:20]))
	}
	return netip.Addr{}
}

// Attach is called by the stack when the NIC is made, and with nil when it is
// removed.
func (n *nic) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		n.dispatcher.Store(nil)
		return
	}
	n.dispatcher.Store(&dispatcher{d})
}

// IsAttached reports whether the stack has the NIC.
func (n *nic) IsAttached() bool { return n.dispatcher.Load() != nil }

// Capabilities: see nic.
func (n *nic) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityRXChecksumOffload }

// SupportedGSO: see nic.
func (n *nic) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize is the longest superframe.
func (n *nic) GSOMaxSize() uint32 { return gsoMaxSize }

// MTU is the longest packet that is not a superframe.
func (n *nic) MTU() uint32 { return stackMTU }

// A TUN has neither link header nor address, and the NIC no goroutines. The
// rest of stack.LinkEndpoint follows from that.

// MaxHeaderLength is zero: no link header.
func (n *nic) MaxHeaderLength() uint16 { return 0 }

// LinkAddress is empty.
func (n *nic) LinkAddress() tcpip.LinkAddress { return "" }

// ARPHardwareType is none: nobody is asked for link addresses.
func (n *nic) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// SetMTU does nothing.
func (n *nic) SetMTU(uint32) {}

// SetLinkAddress does nothing.
func (n *nic) SetLinkAddress(tcpip.LinkAddress) {}

// AddHeader does nothing.
func (n *nic) AddHeader(*stack.PacketBuffer) {}

// ParseHeader does nothing.
func (n *nic) ParseHeader(*stack.PacketBuffer) bool { return true }

// Wait returns at once.
func (n *nic) Wait() {}

// Close does nothing.
func (n *nic) Close() {}

// SetOnCloseAction does nothing.
func (n *nic) SetOnCloseAction(func()) {}
