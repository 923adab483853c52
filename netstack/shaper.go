package netstack

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/usernet/usernet/tunnel"
)

// Rate limits one direction of a link.
type Rate struct {
	// BitsPerSecond counts IP packets, headers included. Zero: no limit.
	BitsPerSecond uint64
	// BurstBits may pass at once after a pause. Zero: what the rate carries in
	// 50 ms.
	BurstBits uint64
}

// Bandwidth limits both directions of a link. The zero value limits neither.
type Bandwidth struct {
	FromContainer Rate
	ToContainer   Rate
}

const (
	defaultBurst = 50 * time.Millisecond
	// shapeDelay is how long packets to a container may have to wait; what
	// would wait longer is dropped. Shorter than what people notice, longer
	// than TCP's round trips, so that TCP can use the whole rate.
	shapeDelay = 100 * time.Millisecond
	// minShapeBytes lets some superframes wait at any rate.
	minShapeBytes = 4 * tunnel.MaxPacket
	// maxShapePackets bounds what waits besides its bytes.
	maxShapePackets = 4096
)

// bucket is a token bucket of bytes that may go into debt, so that superframes
// pass whole whatever the burst. It belongs to one goroutine.
type bucket struct {
	rate, burst float64 // bytes a second, bytes
	tokens      float64
	last        time.Time
}

// newBucket returns a full bucket, or nil for no limit.
func newBucket(r Rate, now time.Time) *bucket {
	if r.BitsPerSecond == 0 {
		return nil
	}
	b := &bucket{rate: float64(r.BitsPerSecond) / 8, burst: float64(r.BurstBits) / 8, last: now}
	if r.BurstBits == 0 {
		b.burst = b.rate * defaultBurst.Seconds()
	}
	b.tokens = b.burst
	return b
}

// take spends n bytes and returns how long their sender has to wait.
func (b *bucket) take(now time.Time, n int) time.Duration {
	b.tokens = min(b.burst, b.tokens+now.Sub(b.last).Seconds()*b.rate) - float64(n)
	b.last = now
	if b.tokens >= 0 {
		return 0
	}
	return time.Duration(-b.tokens / b.rate * float64(time.Second))
}

// pace takes n bytes and waits as long as they demand. It reports false when
// stop was closed first. A nil bucket never waits.
func (b *bucket) pace(n int, stop <-chan struct{}) bool {
	if b == nil {
		return true
	}
	wait := b.take(time.Now(), n)
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-stop:
		return false
	}
}

// shaper holds packets to a container until its rate lets them pass. Senders
// never wait: they are other links' readers and the TCP stack. What is
// fromContainer needs no shaper: the link's reader waits, and packets in the
// container's own queue.
type shaper struct {
	bucket *bucket
	queue  chan *[]byte // frames with virtio header
	limit  int64        // bytes in queue
	bytes  atomic.Int64
}

// newShaper returns a shaper for a rate, or nil for no limit.
func newShaper(r Rate) *shaper {
	b := newBucket(r, time.Now())
	if b == nil {
		return nil
	}
	limit := max(b.burst, b.rate*shapeDelay.Seconds(), minShapeBytes)
	return &shaper{bucket: b, queue: make(chan *[]byte, maxShapePackets), limit: int64(min(limit, 1<<30))}
}

// frames holds idle buffers of shapers.
var frames = sync.Pool{New: func() any { return new([]byte) }}

// add queues a copy of a frame of n bytes. It reports false when it would have
// to wait for too long.
func (s *shaper) add(bufs [][]byte, n int) bool {
	if s.bytes.Add(int64(n)) > s.limit {
		s.bytes.Add(-int64(n))
		return false
	}
	f := frames.Get().(*[]byte)
	*f = (*f)[:0]
	for _, b := range bufs {
		*f = append(*f, b...)
	}
	select {
	case s.queue <- f:
		return true
	default:
		s.done(f)
		return false
	}
}

// done lets go of a frame that was queued.
func (s *shaper) done(f *[]byte) {
	s.bytes.Add(-int64(len(*f) - tunnel.HeaderLen))
	frames.Put(f)
}

// shapeLoop writes queued packets at the link's rate. Attach starts it on links
// that have one; it ends when the link is detached, which waits for it.
func (l *Link) shapeLoop() {
	defer l.wg.Done()
	bufs := make([][]byte, 1)
	for {
		select {
		case f := <-l.shaper.queue:
			n := len(*f) - tunnel.HeaderLen
			if !l.shaper.bucket.pace(n, l.stop) {
				l.drop(DropDeviceGone)
				l.shaper.done(f)
				continue
			}
			bufs[0] = *f
			l.write(bufs, n)
			l.shaper.done(f)
		case <-l.stop:
			for range len(l.shaper.queue) {
				l.shaper.done(<-l.shaper.queue)
				l.drop(DropDeviceGone)
			}
			return
		}
	}
}
