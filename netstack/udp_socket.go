package netstack

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/tunnel"
)

// natSocket is one host socket of a NAT: of a container's UDP port, of a UDP
// publication, or of an ICMP echo identifier. It is used by raw system calls on
// the runtime's poller, because package net neither gathers several buffers nor
// sends control messages without allocating.
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

	closer  io.Closer
	rawConn syscall.RawConn
	df      bool      // path MTU discovery is strict; the link's reader's own
	in      *natInput // what receive has read; readLoop's own
	errno   syscall.Errno
	once    sync.Once

	// Guarded by natTable.mu.
	peers  map[netip.AddrPort]*natPeer
	addrs  map[netip.Addr]int // how many peers have that address
	closed bool
}

// closeIfUnused closes the socket once nothing uses it; its reader then ends.
func (s *natSocket) closeIfUnused() {
	s.table.mu.RLock()
	closed := s.closed
	s.table.mu.RUnlock()
	if closed {
		s.once.Do(func() { s.closer.Close() })
	}
}

// sockName is a socket address as the kernel wants it. AF_INET addresses use
// the first 16 bytes.
type sockName struct {
	raw    unix.RawSockaddrInet6
	length uint32
}

// set writes a in the form of the socket's family.
func (n *sockName) set(a netip.AddrPort, v4 bool) {
	if v4 {
		in4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&n.raw))
		in4.Family = unix.AF_INET
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&in4.Port))[:], a.Port())
		in4.Addr = a.Addr().As4()
		n.length = unix.SizeofSockaddrInet4
		return
	}
	n.raw.Family = unix.AF_INET6
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&n.raw.Port))[:], a.Port())
	n.raw.Addr = a.Addr().As16()
	n.length = unix.SizeofSockaddrInet6
}

// connect connects a socket with the address.
func (n *sockName) connect(fd int) syscall.Errno {
	_, _, errno := syscall.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&n.raw)), uintptr(n.length))
	return errno
}

// get reads the address; IPv4 in IPv6 becomes IPv4. Scopes are left out: what
// has one is refused as a destination and meaningless to a container.
func (n *sockName) get() netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&n.raw.Port))[:]) // same place in both
	switch n.raw.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&n.raw)).Addr), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(n.raw.Addr).Unmap(), port)
	}
	return netip.AddrPort{}
}

// controlSpace holds the control messages of one datagram, aligned.
type controlSpace [16]uint64

// put appends one message of up to 4 bytes and returns the length so far.
func (c *controlSpace) put(at int, level, kind int32, value uint32, size int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c[at/8]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	*(*uint32)(unsafe.Pointer(&c[at/8+unix.SizeofCmsghdr/8])) = value // little-endian, as this is
	return at + unix.CmsgSpace(size)
}

// putLocal appends the message that chooses the source address.
func (c *controlSpace) putLocal(at int, local netip.Addr, v4 bool) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c[at/8]))
	data := unsafe.Pointer(&c[at/8+unix.SizeofCmsghdr/8])
	if v4 || local.Is4() {
		*(*unix.Inet4Pktinfo)(data) = unix.Inet4Pktinfo{Spec_dst: local.As4()}
		h.Level, h.Type = unix.SOL_IP, unix.IP_PKTINFO
		h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		return at + unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	}
	*(*unix.Inet6Pktinfo)(data) = unix.Inet6Pktinfo{Addr: local.As16()}
	h.Level, h.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	return at + unix.CmsgSpace(unix.SizeofInet6Pktinfo)
}

// natSender is the state of one sendmsg, kept so that none is allocated. It
// belongs to a link's reader, the only one that sends on the link's sockets.
type natSender struct {
	bound   func(fd uintptr)
	sock    *natSocket
	df      bool
	msg     unix.Msghdr
	iov     [numViews + 1]unix.Iovec
	control controlSpace
	head    [8]byte // ICMP header in place of the container's
	errno   syscall.Errno
}

// load points the message at n bytes of the packet from at on.
func (d *natSender) load(f *frame, at, n int) {
	count := 0
	for _, b := range f.bufs {
		if at >= len(b) {
			at -= len(b)
			continue
		}
		b = b[at:min(len(b), at+n)]
		at = 0
		d.iov[count].Base = &b[0]
		d.iov[count].SetLen(len(b))
		count++
		if n -= len(b); n == 0 {
			break
		}
	}
	d.msg.Iov = &d.iov[0]
	d.msg.SetIovlen(count)
}

// controls writes what differs from the kernel's defaults: segment size, hop
// limit, traffic class, source address.
func (d *natSender) controls(p *natPeer, f *frame, segment int) {
	at := 0
	if segment > 0 {
		at = d.control.put(at, unix.SOL_UDP, unix.UDP_SEGMENT, uint32(segment), 2)
	}
	v4 := p.host.Addr().Is4()
	// One less, as any router leaves it. 64 is what most packets have and what
	// the host's kernel gives by itself; to have it copied too would cost
	// every packet a control message.
	if hop := f.pkt.HopLimit; hop != defaultHopLimit && hop > 1 {
		if v4 {
			at = d.control.put(at, unix.SOL_IP, unix.IP_TTL, uint32(hop)-1, 4)
		} else {
			at = d.control.put(at, unix.SOL_IPV6, unix.IPV6_HOPLIMIT, uint32(hop)-1, 4)
		}
	}
	if tos := f.pkt.TOS; tos != 0 {
		if v4 {
			at = d.control.put(at, unix.SOL_IP, unix.IP_TOS, uint32(tos), 4)
		} else {
			at = d.control.put(at, unix.SOL_IPV6, unix.IPV6_TCLASS, uint32(tos), 4)
		}
	}
	if p.local.IsValid() {
		at = d.control.putLocal(at, p.local, v4)
	}
	d.msg.Control = nil
	if at > 0 {
		d.msg.Control = (*byte)(unsafe.Pointer(&d.control[0]))
	}
	d.msg.SetControllen(at)
}

// send gives n bytes of the packet from at on to the socket, as one datagram or
// as datagrams of segment bytes. It never waits: a full socket loses the
// datagram.
func (d *natSender) send(p *natPeer, f *frame, at, n, segment int) syscall.Errno {
	d.load(f, at, n)
	d.controls(p, f, segment)
	return d.submit(p, f)
}

func (d *natSender) submit(p *natPeer, f *frame) syscall.Errno {
	if d.bound == nil {
		d.bound = d.call
	}
	d.sock, d.df = p.sock, f.pkt.DontFragment
	d.msg.Name = (*byte)(unsafe.Pointer(&p.name.raw))
	d.msg.Namelen = p.name.length
	if err := p.sock.rawConn.Control(d.bound); err != nil {
		d.errno = unix.EBADF // closed meanwhile
	}
	clear(d.iov[:])
	d.msg.Name, d.sock = nil, nil
	return d.errno
}

func (d *natSender) call(fd uintptr) {
	if d.sock.df != d.df {
		d.sock.setDF(int(fd), d.df)
	}
	for {
		_, _, d.errno = syscall.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&d.msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if d.errno != unix.EINTR {
			return
		}
	}
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
		_ = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, mode6)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU_DISCOVER, mode4)
	s.df = df
}

// natInput is one received datagram, or a batch of equal ones, with room for the
// headers that it goes on with. Pooled: idle sockets hold none.
type natInput struct {
	buf     [65536]byte
	name    sockName
	msg     unix.Msghdr
	iov     unix.Iovec
	control [64]uint64 // the error queue's messages are the largest

	data    []byte
	from    netip.AddrPort
	segment int // size of each datagram but the last; 0: only one
	hops    uint8
	tos     uint8
	local   netip.Addr // address that it came to, where the socket tells

	head [tunnel.HeaderLen + 40 + 8]byte
	bufs [2][]byte
}

var natInputs = sync.Pool{New: func() any { return new(natInput) }}

// recv reads once, without waiting.
func (in *natInput) recv(fd uintptr, flags int) syscall.Errno {
	in.iov.Base = &in.buf[0]
	in.iov.SetLen(len(in.buf))
	in.msg = unix.Msghdr{
		Name: (*byte)(unsafe.Pointer(&in.name.raw)), Namelen: unix.SizeofSockaddrInet6,
		Iov: &in.iov, Control: (*byte)(unsafe.Pointer(&in.control[0])),
	}
	in.msg.SetIovlen(1)
	in.msg.SetControllen(len(in.control) * 8)
	for {
		n, _, errno := syscall.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&in.msg)), uintptr(flags|unix.MSG_DONTWAIT))
		if errno == unix.EINTR {
			continue
		}
		if errno == 0 {
			in.data = in.buf[:n]
			in.from = in.name.get()
		}
		return errno
	}
}

// controls calls f for each control message.
func (in *natInput) controls(f func(level, kind int32, data []byte)) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(&in.control[0])), int(in.msg.Controllen))
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		length := int(h.Len)
		if length < unix.SizeofCmsghdr || length > len(b) {
			return
		}
		f(h.Level, h.Type, b[unix.SizeofCmsghdr:length])
		b = b[min(len(b), unix.CmsgSpace(length-unix.SizeofCmsghdr)):]
	}
}

// meta takes what the kernel tells beside the data.
func (in *natInput) meta(level, kind int32, data []byte) {
	switch {
	case level == unix.SOL_UDP && kind == unix.UDP_GRO && len(data) >= 2:
		in.segment = int(binary.NativeEndian.Uint16(data))
	case level == unix.SOL_IP && kind == unix.IP_TTL && len(data) >= 4,
		level == unix.SOL_IPV6 && kind == unix.IPV6_HOPLIMIT && len(data) >= 4:
		in.hops = uint8(binary.NativeEndian.Uint32(data))
	case level == unix.SOL_IP && kind == unix.IP_TOS && len(data) >= 1:
		in.tos = data[0]
	case level == unix.SOL_IPV6 && kind == unix.IPV6_TCLASS && len(data) >= 4:
		in.tos = uint8(binary.NativeEndian.Uint32(data))
	case level == unix.SOL_IP && kind == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		in.local = netip.AddrFrom4([4]byte(data[4:8])) // ipi_spec_dst
	case level == unix.SOL_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		in.local = netip.AddrFrom16([16]byte(data[:16])).Unmap()
	}
}

// receive is what readLoop runs on the poller: it takes a buffer only for as
// long as there is something to read.
func (s *natSocket) receive(fd uintptr) bool {
	in := natInputs.Get().(*natInput)
	if s.errno = in.recv(fd, 0); s.errno == unix.EAGAIN {
		natInputs.Put(in)
		return false
	}
	s.in = in
	return true
}

// maxReadFaults is how many reads may fail one after another, without a report
// of the network to explain it, before a socket is given up.
const maxReadFaults = 16

// serve is the goroutine of a socket that belongs to a container's port. Who
// makes the socket starts it, it ends when the socket is closed, and linkGone
// waits for it.
func (s *natSocket) serve() {
	defer s.table.readers.Done()
	s.readLoop()
}

// readLoop carries what comes to the socket until it is closed.
func (s *natSocket) readLoop() {
	receive, faults := s.receive, 0
	for faults < maxReadFaults {
		if err := s.rawConn.Read(receive); err != nil {
			return
		}
		in := s.in
		s.in = nil
		if s.errno == 0 {
			faults = 0
			in.segment, in.hops, in.tos, in.local = 0, defaultHopLimit, 0, netip.Addr{}
			in.controls(in.meta)
			s.deliver(s, in)
		}
		natInputs.Put(in)
		if s.errno != 0 && s.drainErrors() == 0 {
			faults++
		}
	}
	s.link.s.log.Warn("host socket given up", "link", s.link.name, "container", s.key.container, "err", s.errno)
}

// option is one setsockopt.
type option struct{ level, name, value int }

// udpOptions are those of every UDP socket of the NAT, by family. Errors are
// left aside: where a kernel lacks one, what it gives is lost and nothing else.
func udpOptions(v4 bool) []option {
	all := []option{
		{unix.SOL_UDP, unix.UDP_GRO, 1},
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
		_ = unix.SetsockoptInt(int(fd), o.level, o.name, o.value)
	}
}

// newUDPSocket opens the host socket of a container's port.
func (u *udpNAT) newSocket(l *Link, k socketKey) (*natSocket, error) {
	network, address := "udp4", "0.0.0.0:0"
	if !k.host4 {
		network, address = "udp6", "[::]:0"
	}
	lc := net.ListenConfig{Control: u.s.cfg.Host.Control}
	pc, err := lc.ListenPacket(u.ctx, network, address)
	if err != nil {
		return nil, err
	}
	s := &natSocket{link: l, table: &l.nat.udp, key: k, v4: k.host4, deliver: u.deliver}
	if err := s.adopt(pc.(*net.UDPConn)); err != nil {
		pc.Close()
		return nil, err
	}
	if !l.nat.udp.addSocket(k, s) {
		pc.Close()
		return nil, ErrClosed
	}
	go s.serve()
	return s, nil
}

// adopt takes a UDP socket, which the natSocket owns when it succeeds.
func (s *natSocket) adopt(c *net.UDPConn) (err error) {
	if s.rawConn, err = c.SyscallConn(); err != nil {
		return err
	}
	if err := s.rawConn.Control(func(fd uintptr) {
		if domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil {
			s.v4 = domain == unix.AF_INET
		}
		setOptions(fd, udpOptions(s.v4))
		s.setDF(int(fd), true)
	}); err != nil {
		return err
	}
	s.closer = c
	s.peers, s.addrs = map[netip.AddrPort]*natPeer{}, map[netip.Addr]int{}
	return nil
}
