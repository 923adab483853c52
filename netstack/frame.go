package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

// viewSizes lays one frame out over gVisor views. The first holds the virtio
// header and every IP and TCP header that TCP segments carry: netstack copies
// the whole chunk of a shared view whenever it looks at a header, so headers
// sit in a chunk of 128 bytes of their own. The rest double, so that a small
// packet that waits in a receive buffer pins at most about twice its size.
// Together they hold the largest frame: 10 + 65,535 bytes.
var viewSizes = [numViews]int{viewHead, 2048, 2048, 4096, 8192, 16384, 32768}

const (
	numViews = 7
	viewHead = 128
)

// frame is one frame read from a link's device. It belongs to the link's
// reader and is valid only during the call that receives it.
type frame struct {
	hdr tunnel.Header // decoded and checked
	pkt packet.Header // parsed

	// raw is the whole frame, scattered, as the device delivered it.
	// bufs is the IP packet: the same slices, the first without the virtio
	// header. bufs[0] holds every header that was parsed.
	raw, bufs [][]byte

	length  int // of the frame, virtio header included
	views   [numViews]*buffer.View
	iov     [numViews][]byte
	rawArr  [numViews][]byte
	bufsArr [numViews][]byte
}

// prepare makes every view available for the next read. Only views that the
// last frame surrendered are made anew, so a forwarded frame costs nothing.
func (f *frame) prepare() [][]byte {
	for i, v := range f.views {
		if v == nil {
			f.views[i] = buffer.NewViewSize(viewSizes[i])
			f.iov[i] = f.views[i].AsSlice()
		}
	}
	return f.iov[:]
}

// release gives the views back when the reader ends.
func (f *frame) release() {
	for i, v := range f.views {
		if v != nil {
			v.Release()
			f.views[i] = nil
		}
	}
}

// decode parses a frame of n bytes that a read has left in the views.
func (f *frame) decode(n int) DropReason {
	if n < tunnel.HeaderLen+1 {
		return DropTruncated
	}
	f.length = n
	f.raw, f.bufs = f.rawArr[:0], f.bufsArr[:0]
	for i := 0; n > 0 && i < numViews; i++ {
		b := f.iov[i][:min(n, len(f.iov[i]))]
		n -= len(b)
		f.raw = append(f.raw, b)
		if i == 0 {
			b = b[tunnel.HeaderLen:]
		}
		f.bufs = append(f.bufs, b)
	}
	if fault := f.pkt.Parse(f.bufs[0], f.length-tunnel.HeaderLen); fault != packet.FaultNone {
		return dropForFault(fault)
	}
	f.hdr.Decode(f.raw[0])
	if err := f.hdr.Check(&f.pkt); err != nil {
		return DropVirtioHeader
	}
	return dropNone
}

// takeBuffer surrenders the views that hold the IP packet. The frame's slices
// stay readable until the buffer's owner releases it. A packet that was put
// together from fragments lies in no views and is copied.
func (f *frame) takeBuffer() buffer.Buffer {
	if f.raw == nil {
		return buffer.MakeWithData(f.bytes(nil))
	}
	var b buffer.Buffer
	rest := f.length
	for i := 0; rest > 0; i++ {
		v := f.views[i]
		used := min(rest, v.Size())
		rest -= used
		v.CapLength(used)
		if i == 0 {
			v.TrimFront(tunnel.HeaderLen)
		}
		// Append takes the view over; the next prepare makes a new one.
		if err := b.Append(v); err != nil {
			v.Release()
		}
		f.views[i] = nil
	}
	return b
}

// checksumKnown reports whether the kernel vouches for the transport checksum:
// it left it to be completed, or has verified it.
func (f *frame) checksumKnown() bool {
	return f.hdr.Flags&(tunnel.FlagNeedsCsum|tunnel.FlagDataValid) != 0
}

// segmentSize is the largest packet that the far kernel makes of the frame.
func (f *frame) segmentSize() int {
	if f.hdr.GSOType != tunnel.GSONone {
		return f.pkt.Payload + int(f.hdr.GSOSize)
	}
	return f.pkt.Len
}

// quote copies the packet's first bytes, as many as an ICMP error may carry.
func (f *frame) quote(into []byte) []byte {
	for _, b := range f.bufs {
		room := cap(into) - len(into)
		into = append(into, b[:min(room, len(b))]...)
	}
	return into
}

// bytes appends the whole IP packet to into.
func (f *frame) bytes(into []byte) []byte {
	for _, b := range f.bufs {
		into = append(into, b...)
	}
	return into
}

// completeChecksum does in whole, a copy of the packet, what the virtio header
// leaves to the receiver: the field holds the pseudo-header's sum already.
func (f *frame) completeChecksum(whole []byte) {
	if f.hdr.Flags&tunnel.FlagNeedsCsum == 0 {
		return
	}
	start := int(f.hdr.CsumStart)
	sum := ^packet.Checksum(whole[start:], 0)
	binary.BigEndian.PutUint16(whole[start+int(f.hdr.CsumOffset):], sum)
}
