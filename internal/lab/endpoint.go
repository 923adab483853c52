package lab

import (
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/usernet/usernet/tunnel"
)

// endpoint joins the container's stack to its device. It is written apart from
// the switch's own, so that a mistake in one is not a mistake in both.
type endpoint struct {
	dev        tunnel.Device
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
	tap        atomic.Pointer[func([]byte)]
	mute       atomic.Bool
	wg         sync.WaitGroup // readLoop
}

func newEndpoint(dev tunnel.Device) *endpoint { return &endpoint{dev: dev} }

// readLoop feeds the stack. New starts it; it ends when the device is closed.
func (e *endpoint) readLoop() {
	buf := make([]byte, tunnel.MaxFrame)
	for {
		n, err := e.dev.ReadFrame([][]byte{buf})
		if err != nil {
			return
		}
		if n > tunnel.HeaderLen {
			e.deliver(buf[tunnel.HeaderLen:n])
		}
	}
}

func (e *endpoint) deliver(ip []byte) {
	if f := e.tap.Load(); f != nil {
		(*f)(ip)
	}
	d := e.dispatcher.Load()
	if d == nil {
		return
	}
	proto := header.IPv4ProtocolNumber
	if ip[0]>>4 == 6 {
		proto = header.IPv6ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(ip)})
	(*d).DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// WritePackets implements stack.LinkWriter.
func (e *endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range pkts.AsSlice() {
		if e.mute.Load() {
			continue
		}
		head := make([]byte, tunnel.HeaderLen)
		offload(pkt).Encode(head)
		view := pkt.ToView()
		err := e.dev.WriteFrame([][]byte{head, view.AsSlice()})
		view.Release()
		if err != nil {
			return 0, &tcpip.ErrNoBufferSpace{}
		}
	}
	return pkts.Len(), nil
}

// offload is what a Linux container leaves to the device: checksums of TCP, and
// segmentation.
func offload(pkt *stack.PacketBuffer) (h tunnel.Header) {
	o := pkt.GSOOptions
	if o.Type == stack.GSONone {
		return h
	}
	if o.NeedsCsum {
		h.Flags, h.CsumStart, h.CsumOffset = tunnel.FlagNeedsCsum, o.L3HdrLen, o.CsumOffset
	}
	if size := pkt.Data().Size(); o.MSS > 0 && size > int(o.MSS) {
		h.GSOType, h.GSOSize, h.HdrLen = tunnel.GSOTCPv4, o.MSS, uint16(pkt.Size()-size)
		if o.Type == stack.GSOTCPv6 {
			h.GSOType = tunnel.GSOTCPv6
		}
	}
	return h
}

// Attach implements stack.NetworkLinkEndpoint.
func (e *endpoint) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		e.dispatcher.Store(nil)
		return
	}
	e.dispatcher.Store(&d)
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (e *endpoint) IsAttached() bool { return e.dispatcher.Load() != nil }

// Capabilities implements stack.NetworkLinkEndpoint.
func (e *endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// SupportedGSO implements stack.GSOEndpoint.
func (e *endpoint) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize implements stack.GSOEndpoint.
func (e *endpoint) GSOMaxSize() uint32 { return tunnel.MaxPacket }

// MTU implements stack.NetworkLinkEndpoint.
func (e *endpoint) MTU() uint32 { return uint32(e.dev.MTU()) }

// MaxHeaderLength implements stack.NetworkLinkEndpoint.
func (e *endpoint) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements stack.NetworkLinkEndpoint.
func (e *endpoint) LinkAddress() tcpip.LinkAddress { return "" }

// ARPHardwareType implements stack.NetworkLinkEndpoint.
func (e *endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// SetMTU implements stack.NetworkLinkEndpoint.
func (e *endpoint) SetMTU(uint32) {}

// SetLinkAddress implements stack.NetworkLinkEndpoint.
func (e *endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// AddHeader implements stack.NetworkLinkEndpoint.
func (e *endpoint) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements stack.NetworkLinkEndpoint.
func (e *endpoint) ParseHeader(*stack.PacketBuffer) bool { return true }

// Wait implements stack.NetworkLinkEndpoint.
func (e *endpoint) Wait() {}

// Close implements stack.NetworkLinkEndpoint.
func (e *endpoint) Close() {}

// SetOnCloseAction implements stack.NetworkLinkEndpoint.
func (e *endpoint) SetOnCloseAction(func()) {}
