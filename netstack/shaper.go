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
	replaced    chan struct{} // closed when another has taken its place
}

// newBucket returns a full bucket, or nil for no limit.
func newBucket(r Rate, now time.Time) *bucket {
	if r.BitsPerSecond == 0 {
		return nil
	}
	b := &bucket{
		rate: float64(r.BitsPerSecond) / 8, burst: float64(r.BurstBits) / 8, last: now,
		replaced: make(chan struct{}),
	}
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

// pace takes n bytes and waits as long as they demand, or until the bucket is
// replaced: a debt to the old rate is not the new one's. It reports false when
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
	case <-b.replaced:
		return true
	case <-stop:
		return false
	}
}

// bucketSlot holds the bucket of one direction, nil for no limit. Its owner
// loads it for every packet, so that it may be replaced under way.
type bucketSlot struct{ atomic.Pointer[bucket] }

// replace puts another bucket in and lets go who waits for the old one. Calls
// are serialised by the caller.
func (s *bucketSlot) replace(b *bucket) {
	if old := s.Swap(b); old != nil {
		close(old.replaced)
	}
}

// shaper holds packets to a container until its rate lets them pass. Senders
// never wait: they are other links' readers and the TCP stack. What is
// fromContainer needs no shaper: the link's reader waits, and packets in the
// container's own queue.
type shaper struct {
	bucket bucketSlot   // shapeLoop's
	queue  chan *[]byte // frames with virtio header
	limit  atomic.Int64 // bytes in queue
	bytes  atomic.Int64
}

func newShaper() *shaper { return &shaper{queue: make(chan *[]byte, maxShapePackets)} }

// set replaces the rate; nil lets what is queued go at once.
func (s *shaper) set(b *bucket) {
	if b != nil {
		limit := max(b.burst, b.rate*shapeDelay.Seconds(), minShapeBytes)
		s.limit.Store(int64(min(limit, 1<<30)))
	}
	s.bucket.replace(b)
}

// limits reports whether packets have to queue.
func (s *shaper) limits() bool { return s != nil && s.bucket.Load() != nil }

// SetBandwidth replaces the link's limits at once. Packets that wait for a rate
// that is taken away pass.
func (l *Link) SetBandwidth(b Bandwidth) error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.s.links[l.name] != l {
		return &OpError{Op: "limit bandwidth", Object: l.name, Err: ErrNoLink}
	}
	l.setBandwidthLocked(b)
	return nil
}

// Bandwidth are the link's limits as they are now.
func (l *Link) Bandwidth() Bandwidth {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.bandwidth
}

// setBandwidthLocked sets the limits of a link that is in the tables, with
// Switch.mu held. A link that was limited once keeps its shaper, without a rate
// when it must: senders may be about to use it.
func (l *Link) setBandwidthLocked(b Bandwidth) {
	now := time.Now()
	l.bandwidth = b
	l.pacer.replace(newBucket(b.FromContainer, now))
	if l.reader != nil {
		l.reader.resume() // a debt to the old rate is not the new one's
	}
	sh, bucket := l.shaper.Load(), newBucket(b.ToContainer, now)
	switch {
	case sh != nil:
		sh.set(bucket)
	case bucket != nil:
		sh = newShaper()
		sh.set(bucket)
		l.wg.Add(1)
		go l.shapeLoop(sh)
		l.shaper.Store(sh)
	}
}

// frames holds idle buffers of shapers.
var frames = sync.Pool{New: func() any { return new([]byte) }}

// add queues a copy of a frame of n bytes. It reports false when it would have
// to wait for too long.
func (s *shaper) add(bufs [][]byte, n int) bool {
	if s.bytes.Add(int64(n)) > s.limit.Load() {
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

// shapeLoop writes queued packets at the link's rate. setBandwidthLocked starts
// it once a link has one; it ends when the link is detached, which waits for it.
func (l *Link) shapeLoop(sh *shaper) {
	defer l.wg.Done()
	bufs := make([][]byte, 1)
	for {
		select {
		case f := <-sh.queue:
			n := len(*f) - tunnel.HeaderLen
			if !sh.bucket.Load().pace(n, l.stop) {
				l.drop(DropDeviceGone)
				sh.done(f)
				continue
			}
			bufs[0] = *f
			l.write(bufs, n)
			sh.done(f)
		case <-l.stop:
			for range len(sh.queue) {
				sh.done(<-sh.queue)
				l.drop(DropDeviceGone)
			}
			return
		}
	}
}
