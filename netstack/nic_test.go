package netstack

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

// outgoing builds a packet as the stack hands it to its NIC: IPv4 and TCP
// headers in one view, the payload in pieces.
func outgoing(dst netip.Addr, gso stack.GSO, pieces ...[]byte) *stack.PacketBuffer {
	var payload buffer.Buffer
	for _, p := range pieces {
		b := buffer.MakeWithData(p)
		payload.Merge(&b) // Append would join small pieces
	}
	size := int(payload.Size())
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.IPv4MinimumSize + header.TCPMinimumSize, Payload: payload,
	})
	tcp := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize))
	tcp.Encode(&header.TCPFields{SrcPort: 80, DstPort: 1234, DataOffset: header.TCPMinimumSize})
	ip := header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize))
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + header.TCPMinimumSize + size), TTL: 64, Protocol: 6,
		SrcAddr: tcpip.AddrFrom4([4]byte{198, 51, 100, 7}), DstAddr: tcpipAddr(dst),
	})
	pkt.GSOOptions = gso
	return pkt
}

func writeOne(t *testing.T, n *nic, pkt *stack.PacketBuffer) {
	t.Helper()
	var list stack.PacketBufferList
	list.PushBack(pkt)
	if sent, err := n.WritePackets(list); sent != 1 || err != nil {
		t.Errorf("WritePackets: %d, %v", sent, err)
	}
}

func TestNICWritesSuperframes(t *testing.T) {
	h := newHarness(t, nil)
	e := h.attach("web", 2, nil)
	payload := bytes.Repeat([]byte("superframe"), 6000)
	gso := stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: 16, MSS: 1460, L3HdrLen: 20, MaxSize: gsoMaxSize}
	for _, tt := range []struct {
		name   string
		gso    stack.GSO
		pieces [][]byte
		want   tunnel.Header
	}{
		{"superframe", gso, [][]byte{payload[:10000], payload[10000:]},
			tunnel.Header{Flags: tunnel.FlagNeedsCsum, GSOType: tunnel.GSOTCPv4, GSOSize: 1460, HdrLen: 40, CsumStart: 20, CsumOffset: 16}},
		{"one segment", gso, [][]byte{payload[:1460]},
			tunnel.Header{Flags: tunnel.FlagNeedsCsum, CsumStart: 20, CsumOffset: 16}},
		{"no MSS yet", func() stack.GSO { g := gso; g.MSS = 0; return g }(), [][]byte{payload[:2000]},
			tunnel.Header{Flags: tunnel.FlagNeedsCsum, CsumStart: 20, CsumOffset: 16}},
		{"no offload", stack.GSO{}, [][]byte{payload[:100]}, tunnel.Header{}},
		{"written byte by byte", gso, bytesOf(payload[:300]),
			tunnel.Header{Flags: tunnel.FlagNeedsCsum, CsumStart: 20, CsumOffset: 16}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pkt := outgoing(e.v4, tt.gso, tt.pieces...)
			writeOne(t, h.s.tcp.nic, pkt)
			pkt.DecRef()
			hdr, got := e.receive()
			if hdr != tt.want {
				t.Errorf("virtio header %+v, want %+v", hdr, tt.want)
			}
			if want := bytes.Join(tt.pieces, nil); !bytes.Equal(got[40:], want) {
				t.Errorf("%d bytes of payload, or others than the %d sent", len(got)-40, len(want))
			}
		})
	}
	gone := outgoing(netip.MustParseAddr("10.88.0.99"), stack.GSO{}, payload[:10])
	writeOne(t, h.s.tcp.nic, gone)
	gone.DecRef()
	if n := h.s.tcp.nic.unroutable.Load(); n != 1 {
		t.Errorf("unroutable %d, want 1", n)
	}
	e.quiet()
}

func bytesOf(b []byte) (pieces [][]byte) {
	for i := range b {
		pieces = append(pieces, b[i:i+1])
	}
	return pieces
}

// Nothing is allocated per packet on the way out.
func TestNICWriteDoesNotAllocate(t *testing.T) {
	s, l, _, _ := forwarder(t, 1000, false)
	gso := stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: 16, MSS: 1460, L3HdrLen: 20}
	pkt := outgoing(l.addrs[0], gso, make([]byte, 30000), make([]byte, 30000))
	defer pkt.DecRef()
	g := &gather{bufs: make([][]byte, 0, tunnel.MaxBuffers)}
	if n := testing.AllocsPerRun(1000, func() { s.tcp.nic.write(g, pkt) }); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

func TestTCPIPErrors(t *testing.T) {
	for _, tt := range []struct {
		err  tcpip.Error
		want error
	}{
		{nil, nil},
		{&tcpip.ErrConnectionRefused{}, syscall.ECONNREFUSED},
		{&tcpip.ErrConnectionReset{}, syscall.ECONNRESET},
		{&tcpip.ErrAborted{}, syscall.ECONNABORTED},
		{&tcpip.ErrTimeout{}, syscall.ETIMEDOUT},
		{&tcpip.ErrHostUnreachable{}, syscall.EHOSTUNREACH},
		{&tcpip.ErrClosedForSend{}, syscall.EPIPE},
		{&tcpip.ErrPortInUse{}, syscall.EADDRINUSE},
		{&tcpip.ErrClosedForReceive{}, os.ErrClosed},
	} {
		got := tcpipError(tt.err)
		if !errors.Is(got, tt.want) && !(tt.want == os.ErrClosed && errors.Is(got, ErrClosed)) {
			t.Errorf("%v becomes %v, want %v", tt.err, got, tt.want)
		}
	}
	if got := tcpipError(&tcpip.ErrMulticastInputCannotBeOutput{}); got == nil || got.Error() == "" {
		t.Errorf("an error without counterpart becomes %v", got)
	}
}

// Whether a packet passes the stack's IP layer by or has to go through it, for
// options or padding, a container learns the same: a segment of no connection
// is reset.
func TestSegmentsReachTheStackEitherWay(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		for _, tt := range []struct {
			name   string
			change func([]byte) []byte
			parsed bool
		}{
			{"plain", func(p []byte) []byte { return p }, true},
			{"options", func(p []byte) []byte { return withIPOptions(p) }, false},
		} {
			t.Run(fmt.Sprintf("v4=%v/%s", v4, tt.name), func(t *testing.T) {
				h := newHarness(t, nil)
				e := h.attach("web", 2, nil)
				pkt := tt.change(ackPacket(ap(e.addr(v4), 1234), ap(outsideOf(v4), 80)))
				f := frameOf(t, pkt)
				if p := h.s.tcp.nic.parsed(f); (p != nil) != tt.parsed {
					t.Errorf("passes the IP layer by: %v, want %v", p != nil, tt.parsed)
				} else if p != nil {
					p.DecRef()
				}
				e.send(pkt)
				_, got := e.receive()
				if p := parse(t, got); p.TCPFlags != packet.FlagRST || p.DstPort != 1234 {
					t.Errorf("answer %+v, want a reset", p)
				}
			})
		}
	}
}

// frameOf is a frame as a link's reader has it.
func frameOf(t *testing.T, pkt []byte) *frame {
	t.Helper()
	f := new(frame)
	t.Cleanup(f.release)
	raw := append(make([]byte, tunnel.HeaderLen), pkt...)
	left := raw
	for _, b := range f.prepare() {
		left = left[copy(b, left):]
	}
	if reason := f.decode(len(raw)); reason != dropNone {
		t.Fatalf("decode: %v", reason)
	}
	return f
}

func outsideOf(v4 bool) netip.Addr {
	if v4 {
		return netip.MustParseAddr("198.51.100.7")
	}
	return netip.MustParseAddr("2001:db8::7")
}

// ackPacket is an acknowledgement without data.
func ackPacket(src, dst netip.AddrPort) []byte {
	b := packet.AppendIP(nil, packet.ProtoTCP, src.Addr(), dst.Addr(), 64, 0, header.TCPMinimumSize, 0, true)
	tcp := header.TCP(make([]byte, header.TCPMinimumSize))
	tcp.Encode(&header.TCPFields{
		SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: 1, AckNum: 2,
		DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck, WindowSize: 1000,
	})
	sum := packet.Checksum(tcp, packet.PseudoHeaderSum(packet.ProtoTCP, src.Addr(), dst.Addr(), len(tcp)))
	tcp.SetChecksum(^sum)
	return append(b, tcp...)
}

// withIPOptions puts four bytes of padding options into an IPv4 header, or a
// destination options header behind an IPv6 one.
func withIPOptions(p []byte) []byte {
	if p[0]>>4 == 4 {
		p = slices.Insert(p, header.IPv4MinimumSize, 1, 1, 1, 1)
		ip := header.IPv4(p)
		ip.SetHeaderLength(header.IPv4MinimumSize + 4)
		ip.SetTotalLength(uint16(len(p)))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		return p
	}
	p = slices.Insert(p, header.IPv6MinimumSize, packet.ProtoTCP, 0, 1, 4, 0, 0, 0, 0) // PadN
	ip := header.IPv6(p)
	ip.SetNextHeader(60)
	ip.SetPayloadLength(uint16(len(p) - header.IPv6MinimumSize))
	return p
}
