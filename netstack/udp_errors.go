package netstack

import (
	"encoding/binary"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/packet"
)

// drainErrors empties the socket's error queue (ip(7), IP_RECVERR): every ICMP
// error about what the container sent goes on to it, from the router that sent
// it. Returns how many reports there were. The worker and the link's reader may do
// it at once.
func (s *natSocket) drainErrors() int {
	in := natInputs.Get().(*natInput)
	defer natInputs.Put(in)
	n := 0
	for ; n < maxErrorReports; n++ {
		if s.recv(in, unix.MSG_ERRQUEUE) != 0 {
			break
		}
		var r errorReport
		in.controls(r.read)
		s.forwardError(in, &r)
	}
	return n
}

// maxErrorReports bounds how long one call keeps a link's reader.
const maxErrorReports = 64

// errorReport is what the kernel tells with a packet from the error queue:
// struct sock_extended_err of linux/errqueue.h, and who sent the ICMP error.
type errorReport struct {
	valid      bool
	origin     uint8
	kind, code uint8
	info       uint32 // the next hop's MTU, where the error is about size
	offender   netip.Addr
}

func (r *errorReport) read(level, kind int32, data []byte) {
	if level != unix.SOL_IP || kind != unix.IP_RECVERR {
		if level != unix.SOL_IPV6 || kind != unix.IPV6_RECVERR {
			return
		}
	}
	const size = 16 // of sock_extended_err
	if len(data) < size {
		return
	}
	r.valid = true
	r.origin, r.kind, r.code = data[4], data[5], data[6]
	r.info = binary.NativeEndian.Uint32(data[8:])
	var name sockName
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&name.raw)), unix.SizeofSockaddrInet6), data[size:])
	r.offender = name.get().Addr()
}

// forwardError tells the container what became of its packet.
func (s *natSocket) forwardError(in *natInput, r *errorReport) {
	kind := r.errorKind()
	if !r.valid || kind == 0 {
		return
	}
	host := in.from // the packet's destination
	if s.ping {
		host = netip.AddrPortFrom(host.Addr(), 0)
	}
	p, _ := s.table.byHost(s, host)
	if p == nil {
		return
	}
	orig := s.original(p, in.data)
	if orig == nil {
		return
	}
	from := r.offender
	// The host's own address would tell the container where it runs, and is
	// of no use to it: what fails on the host fails at the gateway.
	v4 := p.key.far.Addr().Is4()
	if !from.IsValid() || from.Is4() != v4 || from.IsLoopback() || s.link.s.hostAddrs.Load().Contains(from) {
		from = netip.Addr{}
	}
	if from == p.host.Addr() {
		from = p.key.far.Addr() // the far end itself, by the address that the container has for it
	}
	s.link.rejectPacket(orig, kind, from, int(r.info))
}

// original rebuilds the packet as the container sent it, as far as the error
// quoted it: hop limit and checksums aside, which errors need not repeat.
func (s *natSocket) original(p *natPeer, quoted []byte) []byte {
	from, to := p.key.container, p.key.far
	if s.ping {
		if len(quoted) < icmpHeaderLen || s.raw && binary.BigEndian.Uint16(quoted[4:]) != s.id {
			return nil
		}
		seq := binary.BigEndian.Uint16(quoted[6:])
		return packet.AppendEcho(nil, false, from.Addr(), to.Addr(), from.Port(), seq, 1, quoted[icmpHeaderLen:])
	}
	b := packet.AppendIP(make([]byte, 0, 48+len(quoted)), packet.ProtoUDP, from.Addr(), to.Addr(), 1, 0, 8+len(quoted), 0, true)
	b = packet.AppendUDPHeader(b, from, to, [][]byte{quoted})
	return append(b, quoted...)
}

// errorKind reads type and code; 0 for what containers are not told. Reports of
// the host's own kernel are 0 too: sendmsg has returned them.
func (r *errorReport) errorKind() packet.ErrorKind {
	switch r.origin {
	case unix.SO_EE_ORIGIN_ICMP:
		return icmp4ErrorKind(r.kind, r.code)
	case unix.SO_EE_ORIGIN_ICMP6:
		return icmp6ErrorKind(r.kind, r.code)
	}
	return 0
}

// icmp4ErrorKind covers RFC 792 and RFC 1812 §5.2.7.1.
func icmp4ErrorKind(kind, code uint8) packet.ErrorKind {
	switch kind {
	case 3:
		switch code {
		case 0, 6, 8, 11:
			return packet.ErrNetUnreachable
		case 2:
			return packet.ErrProtoUnreachable
		case 3:
			return packet.ErrPortUnreachable
		case 4:
			return packet.ErrTooBig
		case 9, 10, 13:
			return packet.ErrAdminProhibited
		}
		return packet.ErrHostUnreachable
	case 11:
		if code == 1 {
			return packet.ErrReassemblyTimeout
		}
		return packet.ErrTimeExceeded
	}
	return 0
}

// icmp6ErrorKind covers RFC 4443 §3.
func icmp6ErrorKind(kind, code uint8) packet.ErrorKind {
	switch kind {
	case 1:
		switch code {
		case 0, 2, 6:
			return packet.ErrNetUnreachable
		case 1, 5:
			return packet.ErrAdminProhibited
		case 4:
			return packet.ErrPortUnreachable
		}
		return packet.ErrHostUnreachable
	case 2:
		return packet.ErrTooBig
	case 3:
		if code == 1 {
			return packet.ErrReassemblyTimeout
		}
		return packet.ErrTimeExceeded
	case 4:
		if code == 1 {
			return packet.ErrProtoUnreachable
		}
	}
	return 0
}

// pathMTU asks the host's kernel for the MTU of the way to an address; 0 when
// it has no way. Only a connected socket can be asked.
func (s *Switch) pathMTU(to netip.AddrPort) int {
	c, err := (&net.Dialer{Control: s.cfg.Host.Control}).DialContext(s.udp.ctx, "udp", netip.AddrPortFrom(to.Addr(), max(to.Port(), 1)).String())
	if err != nil {
		return 0
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return 0
	}
	level, option := unix.SOL_IP, unix.IP_MTU
	if to.Addr().Is6() {
		level, option = unix.SOL_IPV6, unix.IPV6_MTU
	}
	mtu := 0
	_ = raw.Control(func(fd uintptr) {
		if v, err := unix.GetsockoptInt(int(fd), level, option); err == nil {
			mtu = v
		}
	})
	return mtu
}
