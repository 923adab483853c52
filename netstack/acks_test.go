package netstack

import (
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// numbered builds a segment with that sequence number, without data unless some
// is given.
func numbered(e *end, seq uint32, flags header.TCPFlags, data ...[]byte) *stack.PacketBuffer {
	pkt := outgoing(e.v4, stack.GSO{}, data...)
	tcp := header.TCP(pkt.TransportHeader().Slice())
	tcp.SetSequenceNumber(seq)
	tcp.SetFlags(uint8(flags))
	return pkt
}

// While the worker is busy, bare acknowledgements wait; what carries more sends
// several of its connection on first, so that the container sees them in the
// stack's order, however many there are.
func TestBareACKsWaitForTheRoundAndKeepTheirOrder(t *testing.T) {
	h := newHarness(t, nil)
	e := h.attach("web", 2, nil)
	w := e.link.worker
	const segments = 3 * maxHeldACKs
	held := 0
	err := w.loop.Do(func() {
		for i := range uint32(segments) {
			flags, data := header.TCPFlagAck, [][]byte(nil)
			switch {
			case i == segments/2: // after more than can be held
				data = [][]byte{[]byte("data")}
			case i == segments-1:
				flags |= header.TCPFlagFin
			}
			pkt := numbered(e, i, flags, data...)
			writeOne(t, h.s.tcp.nic, pkt)
			pkt.DecRef()
			if i == maxHeldACKs-1 {
				held = w.held.count
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if held != maxHeldACKs {
		t.Errorf("%d acknowledgements wait, want %d", held, maxHeldACKs)
	}
	for i := range uint32(segments) {
		_, got := e.receive()
		if seq := header.TCP(got[header.IPv4MinimumSize:]).SequenceNumber(); seq != i {
			t.Fatalf("segment %d came when %d was due", seq, i)
		}
	}
}

// An acknowledgement that is held is dropped for what goes to the container on the
// same connection, and for nothing else; two of one connection say more than the
// last, and are sent first.
func TestAnswerSupersedesItsACK(t *testing.T) {
	h := newHarness(t, nil)
	e := h.attach("web", 2, nil)
	send := func(seq uint32, port uint16, flags header.TCPFlags, data ...[]byte) {
		pkt := numbered(e, seq, flags, data...)
		header.TCP(pkt.TransportHeader().Slice()).SetDestinationPort(port)
		writeOne(t, h.s.tcp.nic, pkt)
		pkt.DecRef()
	}
	err := e.link.worker.loop.Do(func() {
		send(1, 1000, header.TCPFlagAck)
		send(2, 2000, header.TCPFlagAck)
		send(3, 3000, header.TCPFlagAck)
		send(4, 3000, header.TCPFlagAck)
		send(5, 1000, header.TCPFlagAck|header.TCPFlagPsh, []byte("answer"))
		send(6, 3000, header.TCPFlagAck|header.TCPFlagFin)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint32{5, 2, 3, 4, 6} {
		_, got := e.receive()
		if seq := header.TCP(got[header.IPv4MinimumSize:]).SequenceNumber(); seq != want {
			t.Errorf("segment %d came when %d was due", seq, want)
		}
	}
	e.quiet()
}

// An acknowledgement that nothing supersedes goes when the worker is idle.
func TestBareACKGoesByItself(t *testing.T) {
	h := newHarness(t, nil)
	e := h.attach("web", 2, nil)
	pkt := numbered(e, 7, header.TCPFlagAck)
	defer pkt.DecRef()
	writeOne(t, h.s.tcp.nic, pkt)
	if _, got := e.receive(); header.TCP(got[header.IPv4MinimumSize:]).SequenceNumber() != 7 {
		t.Errorf("received % x", got)
	}
}

func TestHoldingAnACKAllocatesNothing(t *testing.T) {
	_, l, _, _ := forwarder(t, 0, false)
	pkt := outgoing(l.addrs[0], stack.GSO{})
	defer pkt.DecRef()
	header.TCP(pkt.TransportHeader().Slice()).SetFlags(uint8(header.TCPFlagAck))
	var list stack.PacketBufferList
	list.PushBack(pkt)
	if n := testing.AllocsPerRun(1000, func() {
		_, _ = l.s.tcp.nic.WritePackets(list)
		l.worker.sendHeld()
	}); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}
