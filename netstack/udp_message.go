package netstack

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/tunnel"
)

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

// recv reads once, without waiting, as natSocket.send sends. complete makes the rest
// of it.
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
		n, _, errno := syscall.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&in.msg)), uintptr(flags|unix.MSG_DONTWAIT))
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

// complete takes the control messages of what recv has read.
func (in *natInput) complete() {
	in.segment, in.hops, in.tos, in.local = 0, defaultHopLimit, 0, netip.Addr{}
	in.controls(in.meta)
}

// maxJoined is how much fits one packet of either family.
const maxJoined = tunnel.MaxPacket - 40 - 8

// join adds a datagram of the same sender, as the kernel does to those that come
// to it together (UDP_GRO): all of one size but for a shorter last one. It reports
// false for what has to go on apart.
func (in *natInput) join(next *natInput) bool {
	if len(in.data) == 0 || next.segment > 0 || len(next.data) == 0 {
		return false
	}
	have, segment := len(in.data), in.segment
	if segment == 0 {
		segment = have
	}
	if have%segment != 0 || len(next.data) > segment || have >= maxSegments*segment || have+len(next.data) > maxJoined ||
		next.from != in.from || next.hops != in.hops || next.tos != in.tos || next.local != in.local {
		return false
	}
	in.segment = segment
	in.data = in.buf[:have+copy(in.buf[have:], next.data)]
	return true
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
