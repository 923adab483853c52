package netstack

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/usernet/usernet/tunnel"
)

// heldACKs are acknowledgements without data on their way to containers. The
// stack sends one as soon as it has taken a segment, before the relay has passed
// on what the segment carried; whoever waits for that would wait for the write of
// the acknowledgement as well. So it waits, for no longer than the worker's round
// takes, and what else goes to a container does not overtake it.
type heldACKs struct {
	count  int
	bufs   [1][]byte // of one frame
	frames [maxHeldACKs]struct {
		link   *Link
		length int
		bytes  [maxACK]byte
	}
}

const (
	maxHeldACKs = 16
	// maxACK is the longest acknowledgement: virtio header, IPv6 header, TCP
	// header with all the options that fit.
	maxACK = tunnel.HeaderLen + 40 + 60
)

var heldACKPool = sync.Pool{New: func() any { return new(heldACKs) }}

// isBareACK reports whether a segment of the stack only acknowledges.
func isBareACK(pkt *stack.PacketBuffer) bool {
	return pkt.Data().Size() == 0 && header.TCP(pkt.TransportHeader().Slice()).Flags() == header.TCPFlagAck
}

// hold keeps an acknowledgement for the end of the round. It reports false when
// there is no room for it.
func (w *worker) hold(l *Link, bufs [][]byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		w.held = heldACKPool.Get().(*heldACKs)
		w.loop.Post(w)
	}
	if w.held.count == maxHeldACKs {
		return false
	}
	f := &w.held.frames[w.held.count]
	f.length = 0
	for _, b := range bufs {
		if f.length+len(b) > maxACK {
			return false
		}
		f.length += copy(f.bytes[f.length:], b)
	}
	f.link = l
	w.held.count++
	return true
}

// Run sends what is held, at the end of the round. It is the task that hold
// posts.
func (w *worker) Run() { w.sendHeld() }

// sendHeld sends the acknowledgements that are held.
func (w *worker) sendHeld() {
	w.mu.Lock()
	held := w.held
	w.held = nil
	w.mu.Unlock()
	if held == nil {
		return
	}
	for i := range held.frames[:held.count] {
		f := &held.frames[i]
		held.bufs[0] = f.bytes[:f.length]
		f.link.send(held.bufs[:])
		f.link = nil
	}
	held.count = 0
	heldACKPool.Put(held)
}
