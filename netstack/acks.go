package netstack

import (
	"bytes"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/usernet/usernet/tunnel"
)

// heldACKs are acknowledgements without data on their way to containers. The
// stack sends one as soon as it has taken a segment, before the relay has passed
// on what the segment carried; whoever waits for that would wait for the write of
// the acknowledgement as well. So it waits, for no longer than the worker's round
// takes while there is bulk to acknowledge, and else until the worker has nothing
// to do. What goes to the container on the same connection meanwhile, an answer or
// a FIN, acknowledges as much, and then it need not be written at all.
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
	maxHeldACKs = 32
	// maxACK is the longest acknowledgement: virtio header, IPv6 header, TCP
	// header with all the options that fit.
	maxACK = tunnel.HeaderLen + 40 + 60
)

var heldACKPool = sync.Pool{New: func() any { return new(heldACKs) }}

// onlyAcknowledges reports whether a segment of the stack only acknowledges.
func onlyAcknowledges(pkt *stack.PacketBuffer) bool {
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

// Run sends what is held, at the end of the round, or leaves it for a lull. It is
// the task that hold posts.
func (w *worker) Run() {
	if w.bulk {
		w.bulk = false
		w.sendHeld()
		return
	}
	w.loop.PostLull(lull{w})
}

// lull is the worker's task for when it has nothing else to do.
type lull struct{ w *worker }

// Run implements eventloop.Task.
func (t lull) Run() { t.w.sendHeld() }

// bulkSegment is the least payload that tells bulk from requests and answers:
// whoever sends that much may wait for the acknowledgement before sending more.
const bulkSegment = 1200

// supersede drops the acknowledgement that is held of the connection to which a
// segment is about to be sent, for it acknowledges as much. Several of one
// connection say more, and are sent first.
func (w *worker) supersede(l *Link, bufs [][]byte) {
	w.mu.Lock()
	if w.held == nil {
		w.mu.Unlock()
		return
	}
	found, at := w.held.find(l, connection(bufs[1]))
	if found == 1 {
		w.held.remove(at)
	}
	w.mu.Unlock()
	if found > 1 {
		w.sendHeld()
	}
}

// find counts what is held of a connection, and tells where the last of it is.
func (h *heldACKs) find(l *Link, conn []byte) (count, at int) {
	for i := range h.frames[:h.count] {
		f := &h.frames[i]
		if f.link == l && bytes.Equal(connection(f.bytes[tunnel.HeaderLen:f.length]), conn) {
			count, at = count+1, i
		}
	}
	return count, at
}

func (h *heldACKs) remove(at int) {
	copy(h.frames[at:h.count], h.frames[at+1:h.count])
	h.count--
	h.frames[h.count].link = nil
}

// connection is the part of a packet of the stack, which sends neither options
// nor extension headers, that holds addresses and ports.
func connection(ip []byte) []byte {
	if ip[0]>>4 == 6 {
		return ip[8 : header.IPv6MinimumSize+4]
	}
	return ip[12 : header.IPv4MinimumSize+4]
}

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
