package netstack

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/eventloop"
)

// natSocket is one host socket of a NAT: of a container's UDP port, of a UDP
// publication, or of an ICMP echo identifier. It is used by raw system calls,
// because package net neither gathers several buffers nor sends control messages
// without allocating.
//
// What comes to it is read on the link's worker. The link's reader sends, which
// runs there too, or is a goroutine where the device cannot be watched.
type natSocket struct {
	link  *Link
	table *natTable
	key   socketKey
	v4    bool         // an AF_INET socket; else AF_INET6, perhaps of both families
	pub   *Publication // nil: not a publication's
	ping  bool
	raw   bool   // ping by SOCK_RAW
	id    uint16 // ping: the identifier that the host's side sees

	// deliver takes what came in; given by the NAT that made the socket.
	deliver func(s *natSocket, in *natInput)

	// Who calls the kernel with fd holds use for reading, who closes it for
	// writing: its number may be another's a moment later.
	use   sync.RWMutex
	fd    int // -1: closed
	watch eventloop.Watch

	df bool // path MTU discovery is strict; the link's reader's own

	// The worker's own.
	pulse  pulse
	faults int // reads that have failed one after another

	// Guarded by natTable.mu.
	peers  map[netip.AddrPort]*natPeer
	addrs  map[netip.Addr]int // how many peers have that address
	closed bool
}

// prepare makes a natSocket of a UDP socket, which it owns.
func (s *natSocket) prepare(fd int) {
	s.fd = fd
	s.peers, s.addrs = map[netip.AddrPort]*natPeer{}, map[netip.Addr]int{}
	s.v4 = getOption(fd, unix.SOL_SOCKET, unix.SO_DOMAIN) == unix.AF_INET
	setOptions(uintptr(fd), udpOptions(s.v4))
	s.setDF(fd, true)
}

// begin has the worker told of what comes, by the events of epoll(7).
func (s *natSocket) begin(events uint32) (err error) {
	s.use.Lock()
	defer s.use.Unlock()
	if s.fd < 0 {
		return ErrClosed
	}
	if s.watch, err = s.link.worker.loop.Add(s.fd, events, s); err != nil {
		return fmt.Errorf("watch a host socket: %w", err)
	}
	return nil
}

// listen has the worker told of what comes. begin has been called.
func (s *natSocket) listen() {
	s.use.RLock()
	defer s.use.RUnlock()
	_ = s.watch.Modify(unix.EPOLLIN) // fails only for what is not watched
}

// ignore has the worker told of nothing any more.
func (s *natSocket) ignore() {
	s.use.Lock()
	defer s.use.Unlock()
	s.ignoreLocked()
}

func (s *natSocket) ignoreLocked() {
	s.watch.Remove()
	s.watch = eventloop.Watch{}
}

// close closes the socket. What the worker has begun with it may go on, see
// worker.settle.
func (s *natSocket) close() {
	s.use.Lock()
	defer s.use.Unlock()
	if s.fd >= 0 {
		s.ignoreLocked()
		closeSocket(s.fd)
		s.fd = -1
	}
}

// closeIfUnused closes the socket once nothing uses it.
func (s *natSocket) closeIfUnused() {
	s.table.mu.RLock()
	closed := s.closed
	s.table.mu.RUnlock()
	if closed {
		s.close()
	}
}

// send calls sendmsg(2). Only the link's reader does. Go is not told of the call,
// which never waits: its monitor takes the processor away from who is in one for
// 20 µs, as batches are.
func (s *natSocket) send(msg *unix.Msghdr, df bool) syscall.Errno {
	s.use.RLock()
	defer s.use.RUnlock()
	if s.fd < 0 {
		return unix.EBADF
	}
	if s.df != df {
		s.setDF(s.fd, df)
	}
	for {
		_, _, errno := syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(s.fd), uintptr(unsafe.Pointer(msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// recv reads once, without waiting.
func (s *natSocket) recv(in *natInput, flags int) syscall.Errno {
	s.use.RLock()
	defer s.use.RUnlock()
	if s.fd < 0 {
		return unix.EBADF
	}
	return in.recv(uintptr(s.fd), flags)
}

// setDF makes the kernel refuse what is larger than the path's MTU (the
// container is told and does as it finds best), or fragment it (what the
// container lets be fragmented).
func (s *natSocket) setDF(fd int, df bool) {
	mode4, mode6 := unix.IP_PMTUDISC_DONT, unix.IPV6_PMTUDISC_WANT
	if df {
		mode4, mode6 = unix.IP_PMTUDISC_DO, unix.IPV6_PMTUDISC_DO
	}
	if !s.v4 {
		_ = setOption(fd, option{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, mode6})
	}
	_ = setOption(fd, option{unix.SOL_IP, unix.IP_MTU_DISCOVER, mode4})
	s.df = df
}

// Ready carries what has come to the socket. It implements eventloop.Handler. A
// buffer is held only for as long as there is something to read.
func (s *natSocket) Ready(events uint32) {
	if events&unix.EPOLLERR != 0 {
		s.drainErrors()
	}
	w := s.link.worker
	limit := s.pulse.reads(w)
	n := s.read(limit)
	w.crowd.add(n)
	w.rest(n < limit)
}

// read carries up to limit pieces, and reports how many there were.
func (s *natSocket) read(limit int) (n int) {
	var held heldInputs
	for n < limit {
		in := natInputs.Get().(*natInput)
		if errno := s.recv(in, 0); errno != 0 {
			natInputs.Put(in)
			s.pulse.found(n)
			if errno != unix.EAGAIN {
				s.readFailed(errno)
			}
			break
		}
		n++
		s.faults = 0
		in.complete()
		held.add(s, in)
	}
	held.pass(s)
	return n
}

// heldInputs are what one turn has read of a socket and may go on together with
// more: a batch for each of as many senders as flows are gathered of at a time.
type heldInputs struct {
	all  [gatherFlows]*natInput
	next int // the place that was taken longest ago, or is free
}

// add takes what was read after all that is held, and passes on what it cannot go
// with.
func (h *heldInputs) add(s *natSocket, in *natInput) {
	if s.ping {
		s.pass(in)
		return
	}
	at := h.next
	for i, have := range h.all {
		if have == nil || have.from != in.from {
			continue
		}
		if have.join(in) {
			natInputs.Put(in)
			return
		}
		at = i
	}
	if at == h.next {
		h.next = (h.next + 1) % len(h.all)
	}
	s.pass(h.all[at])
	h.all[at] = in
}

// pass passes all on.
func (h *heldInputs) pass(s *natSocket) {
	for i := range h.all { // in the order in which they began
		s.pass(h.all[(h.next+i)%len(h.all)])
	}
}

// pass gives what was read to the NAT, if it is anything.
func (s *natSocket) pass(in *natInput) {
	if in != nil {
		s.deliver(s, in)
		natInputs.Put(in)
	}
}

// maxReadFaults is how many reads may fail one after another, without a report
// of the network to explain it, before a socket is heard no more.
const maxReadFaults = 16

func (s *natSocket) readFailed(errno syscall.Errno) {
	if errno == unix.EBADF || s.drainErrors() > 0 {
		return // closed, or explained
	}
	if s.faults++; s.faults == maxReadFaults {
		s.link.s.log.Warn("host socket given up", "link", s.link.name, "container", s.key.container, "err", errno)
		s.ignore()
	}
}

// option is one setsockopt.
type option struct{ level, name, value int }

// socketRoom is what a socket may hold while the worker is busy, in bytes: as much
// as net.core.rmem_max lets an ordinary process have, which is twice the default.
const socketRoom = 1 << 20

// udpOptions are those of every UDP socket of the NAT, by family. Errors are
// left aside: where a kernel lacks one, what it gives is lost and nothing else.
func udpOptions(v4 bool) []option {
	all := []option{
		{unix.SOL_UDP, unix.UDP_GRO, 1},
		{unix.SOL_SOCKET, unix.SO_RCVBUF, socketRoom},
		{unix.SOL_IP, unix.IP_RECVERR, 1},
		{unix.SOL_IP, unix.IP_RECVTTL, 1},
		{unix.SOL_IP, unix.IP_RECVTOS, 1},
	}
	if !v4 {
		all = append(all,
			option{unix.SOL_IPV6, unix.IPV6_RECVERR, 1},
			option{unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
			option{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1})
	}
	return all
}

func setOptions(fd uintptr, options []option) {
	for _, o := range options {
		_ = setOption(int(fd), o)
	}
}

// newSocket opens the host socket of a container's port.
func (u *udpNAT) newSocket(l *Link, k socketKey) (*natSocket, error) {
	fd, err := openUDP(k.host4, u.s.cfg.Host.Control)
	if err != nil {
		return nil, err
	}
	s := &natSocket{link: l, table: &l.nat.udp, key: k, deliver: u.deliver}
	s.prepare(fd)
	if err := l.nat.udp.addSocket(k, s); err != nil {
		return nil, err
	}
	return s, nil
}

// openUDP opens a UDP socket on a port that the kernel picks. hook may be nil.
func openUDP(v4 bool, hook ControlFunc) (fd int, err error) {
	network, domain, local := "udp4", unix.AF_INET, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if !v4 {
		network, domain, local = "udp6", unix.AF_INET6, netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	fd, errno := newSocket(domain, unix.SOCK_DGRAM, 0)
	if errno != 0 {
		return -1, os.NewSyscallError("socket", errno)
	}
	if err := bindUDP(fd, network, local, hook); err != nil {
		closeSocket(fd)
		return -1, err
	}
	return fd, nil
}

func bindUDP(fd int, network string, local netip.AddrPort, hook ControlFunc) error {
	v4 := local.Addr().Is4()
	if !v4 {
		if errno := setOption(fd, option{unix.SOL_IPV6, unix.IPV6_V6ONLY, 1}); errno != 0 {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", errno)
		}
	}
	if hook != nil {
		if err := hook(network, local.String(), rawDescriptor(fd)); err != nil {
			return err
		}
	}
	var name sockName
	name.set(local, v4)
	if errno := name.bind(fd); errno != 0 {
		return os.NewSyscallError("bind", errno)
	}
	return nil
}
