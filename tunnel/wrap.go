package tunnel

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

// headroom is what wireguard devices may overwrite before each packet, in
// bytes: a virtio header on Linux, an address family elsewhere.
const headroom = 16

// wrapDevice is a Device on a wireguard tun.Device.
type wrapDevice struct {
	dev wgtun.Device
	mtu atomic.Int64

	// One read moves up to a batch of packets; next is the first of them that
	// ReadFrame has not yet returned. Owned by the one reader.
	bufs  [][]byte
	sizes []int
	count int
	next  int

	// writes holds idle *wrapWrite, one per concurrent writer.
	writes sync.Pool

	closed atomic.Bool
}

// Wrap makes a Device of any wireguard tun.Device, for platforms and links
// without a raw TUN descriptor. Packets that are read have a zero virtio
// header; superframes that are written are split, and checksums completed, in
// software, so part of a superframe may arrive when the device fails on the
// way.
//
// It owns d on success only, reads its MTU now and after each of its events,
// and must be its only reader of packets and of events. Note that a device made
// by tun.CreateTUN looks its MTU up by name in the calling thread's network
// namespace.
func Wrap(d wgtun.Device) (Device, error) {
	mtu, err := d.MTU()
	if err != nil {
		return nil, fmt.Errorf("wrap wireguard device: read its MTU: %w", err)
	}
	batch := d.BatchSize()
	if batch < 1 {
		return nil, fmt.Errorf("wrap wireguard device: its batch size %d is not positive", batch)
	}
	w := &wrapDevice{dev: d, bufs: make([][]byte, batch), sizes: make([]int, batch)}
	w.mtu.Store(int64(mtu))
	// One allocation: of these 64 KiB each only the pages are ever touched
	// that packets reach.
	slab := make([]byte, batch*(headroom+MaxPacket))
	for i := range w.bufs {
		w.bufs[i] = slab[i*(headroom+MaxPacket):][: headroom+MaxPacket : headroom+MaxPacket]
	}
	w.writes.New = func() any { return newWrapWrite(batch) }
	if events := d.Events(); events != nil {
		go w.followEvents(events)
	}
	return w, nil
}

// followEvents keeps the MTU current, and keeps d from blocking on a full
// channel. Wrap starts it; it ends when d closes the channel, which Close makes
// it do.
func (w *wrapDevice) followEvents(events <-chan wgtun.Event) {
	for e := range events {
		if e&wgtun.EventMTUUpdate == 0 {
			continue
		}
		if mtu, err := w.dev.MTU(); err == nil {
			w.mtu.Store(int64(mtu))
		}
	}
}

// zeroHeader is the virtio header of a packet with nothing left to do.
var zeroHeader [HeaderLen]byte

// ReadFrame implements Device.
func (w *wrapDevice) ReadFrame(bufs [][]byte) (int, error) {
	if pieces(bufs) == 0 {
		return 0, ErrFrame
	}
	for {
		for w.next < w.count {
			i := w.next
			w.next++
			if size := w.sizes[i]; size > 0 {
				return scatter(bufs, zeroHeader[:], w.bufs[i][headroom:headroom+size]), nil
			}
		}
		n, err := w.dev.Read(w.bufs, w.sizes, headroom)
		if err != nil && !errors.Is(err, wgtun.ErrTooManySegments) {
			w.next, w.count = 0, 0
			return 0, w.deviceError("read", err)
		}
		w.next, w.count = 0, n
	}
}

// wrapWrite is the scratch of one WriteFrame.
type wrapWrite struct {
	frame []byte // the gathered frame
	split splitter
	slab  []byte   // the packets of one batch, each after its headroom
	batch [][]byte // slices of slab
}

// maxHeaders is the room kept in a slab for each packet's copy of the headers;
// with longer ones the batch is written early.
const maxHeaders = 128

func newWrapWrite(batch int) *wrapWrite {
	return &wrapWrite{
		frame: make([]byte, 0, MaxFrame),
		slab:  make([]byte, headroom+MaxPacket+batch*(headroom+maxHeaders)),
		batch: make([][]byte, 0, batch),
	}
}

// WriteFrame implements Device.
func (w *wrapDevice) WriteFrame(bufs [][]byte) error {
	if w.closed.Load() {
		return os.ErrClosed
	}
	if !plausible(bufs) {
		return ErrFrame
	}
	sc := w.writes.Get().(*wrapWrite)
	defer w.writes.Put(sc)
	sc.frame = sc.frame[:0]
	for _, b := range bufs {
		sc.frame = append(sc.frame, b...)
	}
	var hdr Header
	hdr.Decode(sc.frame)
	if err := sc.split.start(hdr, sc.frame[HeaderLen:]); err != nil {
		return err
	}
	return w.writePackets(sc)
}

// writePackets writes the packets of sc.split, batch by batch.
func (w *wrapDevice) writePackets(sc *wrapWrite) error {
	room := sc.slab
	for {
		length := sc.split.nextLen()
		if length == 0 || len(sc.batch) == cap(sc.batch) || headroom+length > len(room) {
			if _, err := w.dev.Write(sc.batch, headroom); err != nil {
				sc.batch = sc.batch[:0]
				return w.deviceError("write", err)
			}
			sc.batch, room = sc.batch[:0], sc.slab
		}
		if length == 0 {
			return nil
		}
		// The capacity ends with the packet: a wireguard device that joins
		// packets appends to the first, and must not reach the next.
		end := headroom + length
		sc.split.next(room[headroom:end])
		sc.batch = append(sc.batch, room[:end:end])
		room = room[end:]
	}
}

// MTU implements Device.
func (w *wrapDevice) MTU() int { return int(w.mtu.Load()) }

// Close implements Device.
func (w *wrapDevice) Close() error {
	if w.closed.Swap(true) {
		return os.ErrClosed
	}
	if err := w.dev.Close(); err != nil {
		return fmt.Errorf("close wireguard device: %w", err)
	}
	return nil
}

// deviceError turns what a wireguard device says into what the Device contract
// says. Wireguard's own TUN reports a dead descriptor as a closed one.
func (w *wrapDevice) deviceError(op string, err error) error {
	var errno unix.Errno
	switch {
	case w.closed.Load():
		return os.ErrClosed
	case errors.Is(err, os.ErrClosed):
		return ErrGone
	case errors.As(err, &errno):
		return deviceError(op, errno)
	default:
		return fmt.Errorf("%s wireguard device: %w", op, err)
	}
}
