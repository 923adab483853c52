package netstack

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/eventloop"
)

// spares are host sockets whose connection is over and that the next to the same
// address may have: connect(2) to AF_UNSPEC costs a fifth of what it costs to
// close a socket, make another and have the worker watch it. The zero value but
// for its worker, to which it belongs, is empty.
//
// To the same address alone, because a socket goes on with the sequence numbers
// of its last connection (tcp_disconnect of net/ipv4/tcp.c), which that address
// knows and no other may guess. And only after a short connection, so that no
// buffer has grown and no option has been set that a new socket would lack.
type spares struct {
	w       *worker
	list    [maxSpares]spare // the first n, the oldest first
	n       int
	turn    uint32 // counts the runs
	ticking bool
}

// spare is a socket that is in no connection.
type spare struct {
	to    netip.AddrPort
	fd    int
	watch eventloop.Watch
	turn  uint32 // in which it was kept
}

const (
	// maxSpares is enough: of 16 clients' short connections none took a new socket.
	maxSpares = 16
	// spareTime is how long a socket is kept at least; twice that at most.
	spareTime = time.Second
	// spareBytes is how much a short connection carries at most.
	spareBytes = 64 << 10
)

// take gives away a socket for a connection to an address, if there is one. The
// worker watches it, for relayEvents. Call it in a task: between the handlers of a
// round, an event of the socket's last connection may still be on its way.
func (s *spares) take(to netip.AddrPort) (fd int, watch eventloop.Watch, found bool) {
	for i := s.n - 1; i >= 0; i-- {
		if p := s.list[i]; p.to == to {
			s.remove(i)
			return p.fd, p.watch, true
		}
	}
	return -1, eventloop.Watch{}, false
}

// keep takes over a watched socket that was connected to an address. It reports
// false, and leaves the socket, when the connection is not over.
func (s *spares) keep(to netip.AddrPort, fd int, watch eventloop.Watch) bool {
	// What was written, FIN included, may not have arrived yet.
	if queued(fd, unix.SIOCOUTQ) > 0 || disconnect(fd) != 0 {
		return false
	}
	if s.n == maxSpares {
		s.closeOldest()
	}
	watch.Handle(s)
	s.list[s.n] = spare{to, fd, watch, s.turn}
	s.n++
	if !s.ticking {
		s.tick()
	}
	return true
}

func (s *spares) tick() {
	s.ticking = true
	time.AfterFunc(spareTime, func() { s.w.loop.Post(s) })
}

// Run closes what nobody has wanted. It implements eventloop.Task.
func (s *spares) Run() {
	s.ticking = false
	s.turn++
	for s.n > 0 && s.turn-s.list[0].turn > 1 {
		s.closeOldest()
	}
	if s.n > 0 {
		s.tick()
	}
}

// Ready implements eventloop.Handler: that a socket in no connection hung up is
// no news.
func (s *spares) Ready(uint32) {}

// close closes all, when the loop has ended.
func (s *spares) close() {
	for s.n > 0 {
		s.closeOldest()
	}
}

func (s *spares) closeOldest() {
	closeSocket(s.list[0].fd)
	s.list[0].watch.Closed()
	s.remove(0)
}

func (s *spares) remove(i int) {
	copy(s.list[i:s.n], s.list[i+1:s.n])
	s.n--
	s.list[s.n] = spare{}
}
