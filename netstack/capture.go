package netstack

import (
	"sync"
	"sync/atomic"
	"time"
)

// CapturedPacket is one packet seen at a link, in the order in which the two
// ends can have seen it: before it is written to the container, or after it was
// read. It may be a superframe, as the
// container's kernel made or takes it; its transport checksum may be left for
// the kernel to complete.
type CapturedPacket struct {
	Time          time.Time
	FromContainer bool
	Data          []byte // the whole IP packet; the receiver's to keep
}

// captureQueue is how many packets may wait for a slow receiver.
const captureQueue = 1024

// Capture is a running capture of one link. Packets that its reader is too
// slow for are lost to the capture, never to the network.
type Capture struct {
	link    *Link
	packets chan CapturedPacket
	missed  atomic.Uint64
	once    sync.Once
	stopped chan struct{}
}

// Capture starts copying the packets of the link of that name, in both
// directions. The caller stops it.
func (s *Switch) Capture(link string) (*Capture, error) {
	l := s.Link(link)
	if l == nil {
		return nil, &OpError{Op: "capture", Object: link, Err: ErrNoLink}
	}
	c := &Capture{link: l, packets: make(chan CapturedPacket, captureQueue), stopped: make(chan struct{})}
	l.captures.change(func(all []*Capture) []*Capture { return append(all, c) })
	return c, nil
}

// Packets delivers what is captured. It is never closed: a receiver also waits
// on Done.
func (c *Capture) Packets() <-chan CapturedPacket { return c.packets }

// Done is closed when the capture ends: by Stop, or because its link left.
func (c *Capture) Done() <-chan struct{} { return c.stopped }

// Missed is how many packets the reader was too slow for.
func (c *Capture) Missed() uint64 { return c.missed.Load() }

// Stop ends the capture.
func (c *Capture) Stop() {
	c.once.Do(func() {
		c.link.captures.change(func(all []*Capture) []*Capture {
			kept := make([]*Capture, 0, len(all))
			for _, other := range all {
				if other != c {
					kept = append(kept, other)
				}
			}
			return kept
		})
		close(c.stopped)
	})
}

// captureSet is a link's captures: read per packet, changed rarely.
type captureSet struct {
	list atomic.Pointer[[]*Capture]
	mu   sync.Mutex // serialises change
}

func (s *captureSet) change(to func([]*Capture) []*Capture) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var now []*Capture
	if p := s.list.Load(); p != nil {
		now = *p
	}
	if next := to(append([]*Capture(nil), now...)); len(next) > 0 {
		s.list.Store(&next)
	} else {
		s.list.Store(nil)
	}
}

// see copies one packet for every capture. skip is how many leading bytes of
// bufs[0] are not the packet's.
func (s *captureSet) see(fromContainer bool, bufs [][]byte, skip int) {
	list := s.list.Load()
	if list == nil {
		return
	}
	p := CapturedPacket{Time: time.Now(), FromContainer: fromContainer}
	for i, b := range bufs {
		if i == 0 {
			b = b[skip:]
		}
		p.Data = append(p.Data, b...)
	}
	for _, c := range *list {
		select {
		case c.packets <- p:
		default:
			c.missed.Add(1)
		}
	}
}

// stopAll ends every capture when the link leaves.
func (s *captureSet) stopAll() {
	if list := s.list.Load(); list != nil {
		for _, c := range *list {
			c.Stop()
		}
	}
}
