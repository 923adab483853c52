package netstack

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/eventloop"
	"github.com/usernet/usernet/tunnel"
)

// worker is an event loop and what the links on it share. A link, its flows and
// their host sockets are all on one worker, so that a packet crosses the switch
// without another thread or goroutine being woken, but for gVisor's own.
type worker struct {
	loop *eventloop.Loop

	// The loop's own.
	frame     frame
	gathering gathering

	mu   sync.Mutex // guards what follows
	held *heldACKs  // nil: none
}

// workers are those of a switch.
type workers struct {
	all  []*worker
	next int // Switch.mu guards it
}

// startWorkers starts one for each processor that Go uses.
func startWorkers() (ws workers, err error) {
	for range runtime.GOMAXPROCS(0) {
		loop, err := eventloop.New()
		if err != nil {
			ws.close()
			return workers{}, fmt.Errorf("start a worker: %w", err)
		}
		ws.all = append(ws.all, &worker{loop: loop})
	}
	return ws, nil
}

// pick returns the worker of the next link.
func (ws *workers) pick() *worker {
	ws.next++
	return ws.all[ws.next%len(ws.all)]
}

func (ws *workers) close() {
	for _, w := range ws.all {
		w.loop.Close()
		w.frame.release()
	}
}

// settle returns when nothing of what was watched and is no more still runs on
// the worker. It must not be called there.
func (w *worker) settle() { _ = w.loop.Do(func() {}) } // fails only when the loop has ended

// pulse tells how much to read of a descriptor when there is something. One
// piece, if it was quiet: the loop itself sees whether there is another, and has
// to look at the other descriptors in any case. All, if there was one in each
// round lately. It belongs to the worker.
type pulse struct {
	hot   bool   // more comes than one piece a round
	round uint64 // of the last piece
}

// maxReads is how much may be read of one descriptor in one round, so that others
// have their turn.
const maxReads = 64

// reads returns how many pieces to read now.
func (p *pulse) reads(w *worker) int {
	now := w.loop.Round()
	p.hot = p.hot || now == p.round+1
	p.round = now
	if p.hot {
		return maxReads
	}
	return 1
}

// found notes that there were n pieces, and no more.
func (p *pulse) found(n int) { p.hot = n > 1 }

// reader reads a link's device on the link's worker.
type reader struct {
	l     *Link
	dev   tunnel.Watchable
	watch eventloop.Watch

	// The worker's own.
	ended  bool
	paused bool
	pulse  pulse
}

// prepareReader has the link's device watched by the link's worker, if it can be.
// No frame is read before startReader.
func (l *Link) prepareReader() error {
	dev, ok := l.dev.(tunnel.Watchable)
	if !ok {
		return nil
	}
	r := &reader{l: l, dev: dev, paused: true}
	var result error
	add := func(fd int) { r.watch, result = l.worker.loop.Add(fd, 0, r) }
	err := l.worker.loop.Do(func() { result = errors.Join(result, dev.Descriptor(add)) })
	if err = errors.Join(err, result); err != nil {
		return fmt.Errorf("watch the container's device: %w", err)
	}
	l.reader = r
	return nil
}

// startReader has frames read: on the worker, or by a goroutine.
func (l *Link) startReader() {
	if l.reader != nil {
		l.reader.resume()
		return
	}
	l.wg.Add(1)
	go l.readLoop()
}

// stopReader returns when no frame is read any more, or about to be.
func (l *Link) stopReader() {
	if l.reader != nil {
		_ = l.worker.loop.Do(l.reader.end) // fails only when the loop has ended
	}
}

// Ready reads frames and takes them where they belong.
func (r *reader) Ready(uint32) {
	r.read()
	r.l.s.udp.flush(&r.l.worker.gathering)
}

// hot reports whether more frames are likely to follow in this turn. A nil reader
// cannot know.
func (r *reader) hot() bool { return r != nil && r.pulse.hot }

func (r *reader) read() {
	l, f := r.l, &r.l.worker.frame
	for i := range r.pulse.reads(l.worker) {
		n, err := r.dev.TryReadFrame(f.prepare())
		if errors.Is(err, tunnel.ErrEmpty) {
			r.pulse.found(i)
			return
		}
		if err != nil {
			r.end()
			l.once.Do(func() { go l.detach(fmt.Errorf("read from the container: %w", err)) })
			return
		}
		if reason := f.decode(n); reason != dropNone {
			l.drop(reason)
			continue
		}
		l.take(f)
		if b := l.pacer.Load(); b != nil && r.pause(b.take(time.Now(), f.pkt.Len)) {
			return
		}
	}
}

// pause leaves further frames to the container's own queue for as long as the
// link's rate demands.
func (r *reader) pause(wait time.Duration) bool {
	if wait <= 0 {
		return false
	}
	r.paused = true
	_ = r.watch.Modify(0) // it is there
	time.AfterFunc(wait, r.resume)
	return true
}

// resume has the link read again, whoever made it pause.
func (r *reader) resume() { r.l.worker.loop.Post(resumption{r}) }

// resumption is the end of a pause, as a task.
type resumption struct{ r *reader }

func (t resumption) Run() {
	if r := t.r; r.paused && !r.ended {
		r.paused = false
		_ = r.watch.Modify(unix.EPOLLIN)
	}
}

// end ends the reading. It runs on the worker.
func (r *reader) end() {
	if !r.ended {
		r.ended = true
		r.watch.Remove()
	}
}
