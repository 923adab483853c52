package tunneltest

import (
	"os"
	"sync"

	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/usernet/usernet/tunnel"
)

// WireguardPair returns two joined wireguard devices in memory, of the given
// MTU in bytes and batch size. Unlike wireguard's own tuntest they move batches
// and do not allocate, and the packets that they are given are overwritten
// after Write, as a real device may do.
func WireguardPair(mtu, batch int) (a, b wgtun.Device) {
	toA, toB := newQueue(), newQueue()
	return newWireguard(mtu, batch, toA, toB), newWireguard(mtu, batch, toB, toA)
}

type wireguard struct {
	mtu, batch int
	from, to   *queue
	events     chan wgtun.Event
	closed     chan struct{}
	closing    sync.Once
}

func newWireguard(mtu, batch int, from, to *queue) *wireguard {
	w := &wireguard{
		mtu: mtu, batch: batch, from: from, to: to,
		events: make(chan wgtun.Event, 1), closed: make(chan struct{}),
	}
	w.events <- wgtun.EventUp
	return w
}

func (w *wireguard) File() *os.File             { return nil }
func (w *wireguard) MTU() (int, error)          { return w.mtu, nil }
func (w *wireguard) Name() (string, error)      { return "memory", nil }
func (w *wireguard) Events() <-chan wgtun.Event { return w.events }
func (w *wireguard) BatchSize() int             { return w.batch }

func (w *wireguard) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case p := <-w.from.frames:
		return w.fillBatch(p, bufs, sizes, offset), nil
	case <-w.closed:
		return 0, os.ErrClosed
	}
}

// fillBatch copies p and as many more packets as are there and fit.
func (w *wireguard) fillBatch(p []byte, bufs [][]byte, sizes []int, offset int) int {
	for n := 0; ; {
		sizes[n] = copy(bufs[n][offset:], p)
		w.from.recycle(p)
		n++
		if n == len(bufs) {
			return n
		}
		select {
		case p = <-w.from.frames:
		default:
			return n
		}
	}
}

func (w *wireguard) Write(bufs [][]byte, offset int) (int, error) {
	for i, b := range bufs {
		select {
		case <-w.closed:
			return i, os.ErrClosed
		default:
		}
		p := append(w.to.buffer(), b[offset:]...)
		fill(b, Poison)
		select {
		case w.to.frames <- p:
		default:
			w.to.recycle(p)
			return i, tunnel.ErrFull
		}
	}
	return len(bufs), nil
}

func (w *wireguard) Close() error {
	w.closing.Do(func() {
		close(w.closed)
		close(w.events)
	})
	return nil
}
