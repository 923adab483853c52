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
// without another thread or goroutine being woken.
type worker struct {
	loop *eventloop.Loop

	// The loop's own.
	frame      frame
	inbox      inbox
	gatherings gatherings
	crowd      crowd
	passing    passingACKs
	dials      patience // requests whose host side has yet to answer
	shakes     patience // requests whose container has yet to answer
	young      patience // relays without keepalive yet
	orphans    patience // those whose end the container has yet to take
	spares     spares
	bulk       bool // a long TCP segment has come since acknowledgements were last sent

	mu   sync.Mutex // guards what follows
	held *heldACKs  // nil: none
}

// workers are those of a switch.
type workers struct {
	all  []*worker
	next int // Switch.mu guards it
}

// maxWorkers bounds the workers of a switch. Each holds three descriptors, idle or
// not, and a process may have hundreds of networks.
const maxWorkers = 4

// startWorkers starts one for each processor that Go uses.
func startWorkers() (ws workers, err error) {
	for range min(maxWorkers, runtime.GOMAXPROCS(0)) {
		loop, err := eventloop.New()
		if err != nil {
			ws.close()
			return workers{}, fmt.Errorf("start a worker: %w", err)
		}
		w := &worker{loop: loop}
		w.dials = patience{w: w, time: dialTimeout}
		w.shakes = patience{w: w, time: handshakeTimeout}
		w.young = patience{w: w, time: keepaliveAfter}
		w.orphans = patience{w: w, time: orphanTimeout}
		w.spares.w = w
		ws.all = append(ws.all, w)
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
		w.spares.close()
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
	begun  bool // the link is in the tables
	ended  bool
	paused bool
	lost   bool // the device failed before reading began
	pulse  pulse
}

// eventsPaused are those that a reader waits for which is not to read: errors
// alone, but the kernel announces a TUN's end as it announces data, urgent or not
// (tun_detach_all of drivers/net/tun.c), and looks for errors only when one of
// the events that it announces is waited for.
const eventsPaused = unix.EPOLLPRI

// place gives a link its worker, and has that watch the link's device if it can
// be watched. No frame is read before startReader. Not under Switch.mu: what the
// worker does meanwhile may take it.
func (s *Switch) place(l *Link) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	w := s.workers.pick()
	s.mu.Unlock()
	l.worker = w
	dev, ok := l.dev.(tunnel.Watchable)
	if !ok {
		return nil
	}
	r := &reader{l: l, dev: dev, paused: true}
	var result error
	add := func(fd int) { r.watch, result = w.loop.Add(fd, eventsPaused, r) }
	err := w.loop.Do(func() { result = errors.Join(result, dev.Descriptor(add)) })
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
	if r.paused { // only errors are told during a pause
		r.mourn()
		return
	}
	all := r.read()
	if r.l.worker.inbox.work() {
		r.l.worker.loop.Yield()
	}
	r.l.worker.passing.flush()
	r.l.s.udp.flushAll(r.l.worker)
	r.l.worker.rest(all)
}

// hot reports whether more frames are likely to follow in this turn. A nil reader
// cannot know.
func (r *reader) hot() bool { return r != nil && r.pulse.hot }

// read reads what may be read now, and reports whether that was all that is there.
func (r *reader) read() (all bool) {
	l, f := r.l, &r.l.worker.frame
	for i := range r.pulse.reads(l.worker) {
		n, err := r.dev.TryReadFrame(f.prepare())
		if errors.Is(err, tunnel.ErrEmpty) {
			r.pulse.found(i)
			return true
		}
		if err != nil {
			r.fail(err)
			return false
		}
		if reason := f.decode(n); reason != dropNone {
			l.drop(reason)
			continue
		}
		l.take(f)
		if b := l.pacer.Load(); b != nil && r.pause(b.take(time.Now(), f.pkt.Len)) {
			return false
		}
	}
	return false
}

// pause leaves further frames to the container's own queue for as long as the
// link's rate demands.
func (r *reader) pause(wait time.Duration) bool {
	if wait <= 0 {
		return false
	}
	r.paused = true
	_ = r.watch.Modify(eventsPaused) // it is there
	time.AfterFunc(wait, r.resume)
	return true
}

// resume has the link read again, whoever made it pause.
func (r *reader) resume() { r.l.worker.loop.Post(resumption{r}) }

// resumption is the end of a pause, as a task.
type resumption struct{ r *reader }

func (t resumption) Run() {
	r := t.r
	if !r.paused || r.ended {
		return
	}
	r.paused, r.begun = false, true
	if r.lost {
		r.fail(tunnel.ErrGone)
		return
	}
	_ = r.watch.Modify(unix.EPOLLIN)
}

// mourn handles the death of the device during a pause. Before the link is in the
// tables there is nothing to end yet.
func (r *reader) mourn() {
	if r.begun {
		r.fail(tunnel.ErrGone)
		return
	}
	r.lost = true
	r.watch.Remove()
}

// fail ends the link with its device.
func (r *reader) fail(err error) {
	r.end()
	r.l.once.Do(func() { go r.l.detach(fmt.Errorf("read from the container: %w", err)) })
}

// end ends the reading. It runs on the worker.
func (r *reader) end() {
	if !r.ended && !r.lost {
		r.watch.Remove()
	}
	r.ended = true
}
