package netstack

import (
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

func testWorker(t *testing.T) *worker {
	t.Helper()
	ws, err := startWorkers()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ws.close)
	return ws.all[0]
}

// Everybody waits their own time, one that leaves is not told, and one that
// comes when all are gone is timed again.
func TestPatience(t *testing.T) {
	w := testWorker(t)
	var over []int
	p := &patience{w: w, time: 20 * time.Millisecond}
	places := make([]place, 6)
	wait := func(i int) { p.wait(&places[i], patientFunc(func() { over = append(over, i) })) }
	var began time.Time
	do := func(f func()) {
		if err := w.loop.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	do(func() {
		began = time.Now()
		for i := range 5 {
			wait(i)
		}
		for _, i := range []int{2, 0, 4} { // middle, first, last
			places[i].leave()
			places[i].leave()
		}
	})
	told := func(want ...int) bool {
		var got []int
		do(func() { got = slices.Clone(over) })
		return slices.Equal(got, want)
	}
	eventually(t, func() bool { return told(1, 3) })
	if took := time.Since(began); took < p.time {
		t.Errorf("over after %v of %v", took, p.time)
	}
	do(func() {
		if p.first != nil || p.last != nil {
			t.Error("not empty")
		}
		wait(5)
	})
	eventually(t, func() bool { return told(1, 3, 5) })
}

type patientFunc func()

func (f patientFunc) timeOver() { f() }

// A relay gets keepalive at both ends when it is old enough, and not before.
func TestRelayGetsKeepalive(t *testing.T) {
	s, l, _, _ := forwarder(t, 0, false)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := (&net.Dialer{KeepAlive: -1}).Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fd, err := socketOf(c)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ep, terr := s.tcp.stack.NewEndpoint(tcp.ProtocolNumber, header.IPv4ProtocolNumber, new(waiter.Queue))
	if terr != nil {
		t.Fatal(terr)
	}
	defer ep.Abort()
	r := newRelay(s.tcp, l, tuple{}, nil, fd)
	r.ep = ep
	option := func(level, name int) int {
		v, err := unix.GetsockoptInt(fd, level, name)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	err = l.worker.loop.Do(func() {
		l.worker.young.time = 20 * time.Millisecond
		l.worker.young.wait(&r.place, r)
		if option(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 0 || ep.SocketOptions().GetKeepAlive() {
			t.Error("a young relay has keepalive")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, ep.SocketOptions().GetKeepAlive)
	_ = l.worker.loop.Do(func() {})
	got := []int{option(unix.SOL_SOCKET, unix.SO_KEEPALIVE), option(unix.SOL_TCP, unix.TCP_KEEPIDLE),
		option(unix.SOL_TCP, unix.TCP_KEEPINTVL), option(unix.SOL_TCP, unix.TCP_KEEPCNT)}
	if want := []int{1, 60, 15, 5}; !slices.Equal(got, want) {
		t.Errorf("host socket %v, want %v", got, want)
	}
}
