package netstack

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// natSender is the state of one sendmsg, kept so that none is allocated. It
// belongs to a link's reader, the only one that sends on the link's sockets.
type natSender struct {
	msg     unix.Msghdr
	iov     [numViews + 1]unix.Iovec
	control controlSpace
	head    [8]byte // ICMP header in place of the container's
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
	d.msg.Name = (*byte)(unsafe.Pointer(&p.name.raw))
	d.msg.Namelen = p.name.length
	errno := p.sock.send(&d.msg, f.pkt.DontFragment)
	clear(d.iov[:])
	d.msg.Name = nil
	return errno
}
