package eventloop

import (
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newLoop(t *testing.T) *Loop {
	t.Helper()
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// newPipe returns the two ends of a pipe, non-blocking.
func newPipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return p[0], p[1]
}

type handlerFunc func(events uint32)

func (f handlerFunc) Ready(events uint32) { f(events) }

type taskFunc func()

func (f taskFunc) Run() { f() }

func write(t *testing.T, fd int, s string) {
	t.Helper()
	if _, err := unix.Write(fd, []byte(s)); err != nil {
		t.Fatal(err)
	}
}

func await[T any](t *testing.T, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing in 10 s")
	}
	return v
}

// Whether the loop has just run or sleeps for long: what becomes readable is
// told, again and again until it is read.
func TestReadableIsTold(t *testing.T) {
	for _, pause := range []time.Duration{0, 20 * time.Microsecond, 5 * time.Millisecond} {
		l := newLoop(t)
		r, w := newPipe(t)
		got := make(chan byte, 8)
		_, err := l.Add(r, unix.EPOLLIN, handlerFunc(func(uint32) {
			var b [1]byte // one at a time: the rest is told again
			if n, _ := unix.Read(r, b[:]); n == 1 {
				got <- b[0]
			}
		}))
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			<-time.After(pause)
			write(t, w, "ab")
			if a, b := await(t, got), await(t, got); a != 'a' || b != 'b' {
				t.Fatalf("read %c%c", a, b)
			}
		}
	}
}

// What comes during a nap is found at its end; what was posted before has run by
// then. Afterwards the loop is awake again.
func TestNap(t *testing.T) {
	l := newLoop(t)
	const nap = 5 * time.Millisecond
	notes := make(chan string, 8)
	watch := func(h func()) (w int) {
		r, w := newPipe(t)
		_, err := l.Add(r, unix.EPOLLIN, handlerFunc(func(uint32) {
			var b [8]byte
			_, _ = unix.Read(r, b[:])
			h()
		}))
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	second := watch(func() { notes <- "second" })
	first := watch(func() {
		l.Post(taskFunc(func() {
			notes <- "task"
			_, _ = unix.Write(second, []byte("x"))
		}))
		l.Nap(nap)
	})
	shortest := time.Hour
	for tries := range 20 { // a signal of Go's may end a nap, and a busy machine any wait
		from := time.Now()
		write(t, first, "x")
		if a, b := await(t, notes), await(t, notes); a != "task" || b != "second" {
			t.Fatalf("%s, then %s", a, b)
		}
		slept := time.Since(from)
		from = time.Now()
		write(t, second, "x")
		await(t, notes)
		shortest = min(shortest, time.Since(from))
		if slept >= nap && shortest < nap {
			return
		}
		t.Logf("try %d: slept for %v", tries, slept)
	}
	t.Errorf("the nap was never %v, or every wait was; the shortest %v", nap, shortest)
}

// Who stands aside where nobody waits goes on at once, and has not overslept.
func TestStandAside(t *testing.T) {
	l := newLoop(t)
	for tries := range 20 { // a busy machine makes any wait long
		late := make(chan bool, 1)
		l.Post(taskFunc(func() {
			l.overslept = true
			l.StandAside()
			l.Post(taskFunc(func() { late <- l.Overslept() }))
		}))
		if !await(t, late) {
			return
		}
		t.Logf("try %d: overslept", tries)
	}
	t.Error("it did not stand aside, or every time for long")
}

// Bytes go around between two loops, each of which the other wakes, in every
// stage of waiting.
func TestNoWakeUpIsLost(t *testing.T) {
	a, b := newLoop(t), newLoop(t)
	ra, wa := newPipe(t)
	rb, wb := newPipe(t)
	const rounds = 20000
	done := make(chan struct{})
	count := 0
	pass := func(from, to int, then func()) handlerFunc {
		return func(uint32) {
			var b [8]byte
			if n, _ := unix.Read(from, b[:]); n > 0 {
				then()
				_, _ = unix.Write(to, b[:n])
			}
		}
	}
	if _, err := b.Add(rb, unix.EPOLLIN, pass(rb, wa, func() {})); err != nil {
		t.Fatal(err)
	}
	_, err := a.Add(ra, unix.EPOLLIN, pass(ra, wb, func() {
		if count++; count == rounds {
			close(done)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	write(t, wb, "x")
	await(t, done)
}

func TestRemovedIsNotCalled(t *testing.T) {
	l := newLoop(t)
	r, w := newPipe(t)
	var calls atomic.Int32
	watch, err := l.Add(r, unix.EPOLLIN, handlerFunc(func(uint32) { calls.Add(1) }))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Do(watch.Remove); err != nil {
		t.Fatal(err)
	}
	write(t, w, "x")
	if err := l.Do(func() {}); err != nil {
		t.Fatal(err)
	}
	if n := calls.Load(); n != 0 {
		t.Errorf("called %d times after Remove", n)
	}
}

// Two descriptors are ready at once, and the first one's handler removes the
// other and has its place taken: neither the removed nor the new handler is
// called for the old event.
func TestRemovedInTheSameRoundIsNotCalled(t *testing.T) {
	l := newLoop(t)
	var wrong atomic.Bool
	var watches [2]Watch
	removed := make(chan struct{})
	idle, _ := newPipe(t)
	err := l.Do(func() {
		for i := range watches {
			r, w := newPipe(t)
			write(t, w, "x")
			var err error
			watches[i], err = l.Add(r, unix.EPOLLIN, handlerFunc(func(uint32) {
				select {
				case <-removed:
					wrong.Store(true)
					return
				default:
				}
				for _, w := range watches {
					w.Remove()
				}
				_, _ = l.Add(idle, unix.EPOLLIN, handlerFunc(func(uint32) { wrong.Store(true) }))
				close(removed)
			}))
			if err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	await(t, removed)
	if err := l.Do(func() {}); err != nil {
		t.Fatal(err)
	}
	if wrong.Load() {
		t.Error("an event met a handler that it was not for")
	}
}

func TestModify(t *testing.T) {
	l := newLoop(t)
	r, w := newPipe(t)
	write(t, w, "x")
	told := make(chan struct{}, 1)
	watch, err := l.Add(r, 0, handlerFunc(func(uint32) {
		var b [1]byte
		_, _ = unix.Read(r, b[:])
		told <- struct{}{}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Do(func() {}); err != nil || len(told) > 0 {
		t.Fatalf("told of what was not asked for; %v", err)
	}
	if err := watch.Modify(unix.EPOLLIN); err != nil {
		t.Fatal(err)
	}
	await(t, told)
}

func TestTasksRunInOrder(t *testing.T) {
	l := newLoop(t)
	var got []int
	for i := range 1000 {
		l.Post(taskFunc(func() { got = append(got, i) }))
	}
	if err := l.Do(func() {}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1000 || !slices.IsSorted(got) {
		t.Errorf("ran %d tasks, in order %v", len(got), slices.IsSorted(got))
	}
}

// A task that posts itself does not keep descriptors from being served.
func TestTasksLetDescriptorsThrough(t *testing.T) {
	l := newLoop(t)
	var stop atomic.Bool
	var again taskFunc
	again = func() {
		if !stop.Load() {
			l.Post(again)
		}
	}
	l.Post(again)
	defer stop.Store(true)
	r, w := newPipe(t)
	told := make(chan struct{})
	var once sync.Once
	if _, err := l.Add(r, unix.EPOLLIN, handlerFunc(func(uint32) { once.Do(func() { close(told) }) })); err != nil {
		t.Fatal(err)
	}
	write(t, w, "x")
	await(t, told)
}

func TestCloseRunsWhatWasPosted(t *testing.T) {
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for range 10 {
		l.Post(taskFunc(func() { ran++ }))
	}
	l.Close()
	l.Close()
	if ran != 10 {
		t.Errorf("ran %d of 10 tasks", ran)
	}
	if err := l.Do(func() {}); !errors.Is(err, ErrClosed) {
		t.Errorf("Do after Close: %v", err)
	}
}

func TestAddRefusesWhatCannotBeWatched(t *testing.T) {
	l := newLoop(t)
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := l.Add(int(f.Fd()), unix.EPOLLIN, handlerFunc(func(uint32) {})); !errors.Is(err, unix.EPERM) {
		t.Errorf("an ordinary file: %v, want EPERM", err)
	}
	if len(l.free) != 1 {
		t.Errorf("%d slots are free, want the refused one", len(l.free))
	}
}

func TestIdleLoopDoesNotRun(t *testing.T) {
	l := newLoop(t)
	if err := l.Do(func() {}); err != nil {
		t.Fatal(err)
	}
	<-time.After(10 * time.Millisecond) // a spin is over by then
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	<-time.After(200 * time.Millisecond)
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	if used := time.Duration(after.Utime.Nano() - before.Utime.Nano() + after.Stime.Nano() - before.Stime.Nano()); used > 50*time.Millisecond {
		t.Errorf("an idle loop used %v of 200 ms", used)
	}
}

func TestSpinnerLearns(t *testing.T) {
	var s spinner
	for range 10 {
		s.slept(maxSpin / 2)
	}
	if s.limit != maxSpin {
		t.Errorf("after short sleeps it spins %v, want %v", s.limit, maxSpin)
	}
	for range 10 {
		s.slept(time.Second)
	}
	if s.limit >= minSpin {
		t.Errorf("after long sleeps it spins %v still", s.limit)
	}
}

func TestRoundAllocatesNothing(t *testing.T) {
	l := newLoop(t)
	r, w := newPipe(t)
	got, one, in := make(chan struct{}, 1), []byte{1}, make([]byte, 1)
	_, err := l.Add(r, unix.EPOLLIN, handlerFunc(func(uint32) {
		_, _ = unix.Read(r, in)
		got <- struct{}{}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(1000, func() {
		_, _ = unix.Write(w, one)
		<-got
	}); n > 0 {
		t.Errorf("%v allocations a round", n)
	}
}

func TestAnotherHandlerTakesOver(t *testing.T) {
	l := newLoop(t)
	r, w := newPipe(t)
	told := make(chan struct{}, 1)
	watch, err := l.Add(r, unix.EPOLLIN|unix.EPOLLET, handlerFunc(func(uint32) { t.Error("the first handler was called") }))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Do(func() { watch.Handle(handlerFunc(func(uint32) { told <- struct{}{} })) }); err != nil {
		t.Fatal(err)
	}
	write(t, w, "x")
	await(t, told)
}

// The slot of a closed descriptor is free, and what takes it hears nothing of
// the descriptor, though another one of the same pipe is still open.
func TestClosedIsForgotten(t *testing.T) {
	l := newLoop(t)
	r, w := newPipe(t)
	still, err := unix.Dup(r) // as in a child process that is about to exec
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(still)
	watch, err := l.Add(r, unix.EPOLLIN|unix.EPOLLET, handlerFunc(func(uint32) { t.Error("a closed descriptor was told of") }))
	if err != nil {
		t.Fatal(err)
	}
	other, ow := newPipe(t)
	told := make(chan struct{}, 1)
	err = l.Do(func() {
		unix.Close(r)
		watch.Closed()
		next, err := l.Add(other, unix.EPOLLIN|unix.EPOLLET, handlerFunc(func(uint32) { told <- struct{}{} }))
		if err != nil || next.index != watch.index {
			t.Errorf("%v; the slot is not free", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, "x")
	if err := l.Do(func() {}); err != nil || len(told) > 0 {
		t.Errorf("%v; told %d times of another's events", err, len(told))
	}
	write(t, ow, "x")
	await(t, told)
}

// What waits for a lull runs after all that is there, whoever posts it and
// whenever, and on a busy loop all the same.
func TestLull(t *testing.T) {
	l := newLoop(t)
	var order []string
	done := make(chan struct{})
	l.Post(taskFunc(func() {
		l.PostLull(taskFunc(func() { order = append(order, "lull"); close(done) }))
		l.Post(taskFunc(func() { order = append(order, "task") }))
	}))
	await(t, done)
	if !slices.Equal(order, []string{"task", "lull"}) {
		t.Errorf("order %v", order)
	}

	asleep := make(chan struct{})
	<-time.After(10 * time.Millisecond) // the loop sleeps by then
	l.PostLull(taskFunc(func() { close(asleep) }))
	await(t, asleep)

	r, w := newPipe(t)
	busy := make(chan struct{})
	write(t, w, "x") // and it is never read
	var since time.Time
	watch, err := l.Add(r, unix.EPOLLIN, handlerFunc(func(uint32) {
		if since.IsZero() {
			since = time.Now()
			l.PostLull(taskFunc(func() { close(busy) }))
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	await(t, busy)
	_ = l.Do(func() {
		watch.Remove()
		if took := time.Since(since); took < maxLull {
			t.Errorf("a busy loop found a lull after %v", took)
		}
	})
}

// A spinning loop sees what another goroutine posts.
func TestSpinSeesTasks(t *testing.T) {
	l := newLoop(t)
	for range 1000 {
		_ = l.Do(func() { l.spinner.limit = time.Hour })
	}
}
