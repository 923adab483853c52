package tunnel_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
)

// packetSocket is the container's side of a TUN or TAP without the container's
// TCP/IP: a packet socket on the interface, with virtio headers. What it writes
// the kernel sends out of the interface, to the device's reader; what is written
// to the device it reads. It fits tunnel.Device, so the contract suite can use
// it as the peer of a real one: of a TAP it adds and takes away the Ethernet
// header.
type packetSocket struct {
	file  *os.File
	conn  syscall.RawConn
	index int
	mac   net.HardwareAddr // of the interface; empty: no Ethernet
}

// newPacketSocket opens one on the interface name of ns.
func newPacketSocket(t *testing.T, ns *netns.Handle, name string) *packetSocket {
	t.Helper()
	p := new(packetSocket)
	nstest.In(t, ns, func() error {
		link, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		p.index, p.mac = link.Index, link.HardwareAddr
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		p.file = os.NewFile(uintptr(fd), "packet socket")
		for _, option := range []struct{ level, name, value int }{
			{unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1},
			{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1}, // else it reads what it wrote
			{unix.SOL_SOCKET, unix.SO_RCVBUF, 4 << 20},        // as much as rmem_max allows
			{unix.SOL_SOCKET, unix.SO_SNDBUF, 4 << 20},
		} {
			if err := unix.SetsockoptInt(fd, option.level, option.name, option.value); err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
		}
		return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{
			Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: p.index,
		}))
	})
	t.Cleanup(func() { p.file.Close() })
	var err error
	if p.conn, err = p.file.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	return p
}

func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

func (p *packetSocket) ReadFrame(bufs [][]byte) (int, error) {
	b := make([]byte, tunnel.MaxFrame+etherLen)
	n, err := p.file.Read(b)
	if err == nil && len(p.mac) > 0 {
		n = p.unframe(b[:n])
	}
	total := 0
	for _, dst := range bufs {
		total += copy(dst, b[total:n])
	}
	return total, err
}

func (p *packetSocket) WriteFrame(bufs [][]byte) error {
	var b []byte
	for _, src := range bufs {
		b = append(b, src...)
	}
	return p.send(p.framed(b))
}

// send writes what is on the wire, behind a virtio header.
func (p *packetSocket) send(b []byte) error {
	to := &unix.SockaddrLinklayer{Ifindex: p.index, Protocol: networkOrder(unix.ETH_P_IP)}
	if len(p.mac) > 0 {
		to.Protocol = binary.NativeEndian.Uint16(b[tunnel.HeaderLen+12:])
	} else if b[tunnel.HeaderLen]>>4 == 6 {
		to.Protocol = networkOrder(unix.ETH_P_IPV6)
	}
	var result error
	if p.conn.Control(func(fd uintptr) { result = unix.Sendto(int(fd), b, 0, to) }) != nil {
		return os.ErrClosed
	}
	return os.NewSyscallError("sendto", result)
}

// etherLen is the length of Ethernet's header. The offsets of a virtio header
// count from it.
const etherLen = 14

// framed puts Ethernet's header between a frame's virtio header and its packet.
func (p *packetSocket) framed(b []byte) []byte {
	if len(p.mac) == 0 {
		return b
	}
	var hdr tunnel.Header
	hdr.Decode(b)
	if hdr.Flags&tunnel.FlagNeedsCsum != 0 {
		hdr.CsumStart, hdr.HdrLen = hdr.CsumStart+etherLen, hdr.HdrLen+etherLen
	}
	hdr.Encode(b)
	kind := uint16(typeIPv4)
	if b[tunnel.HeaderLen]>>4 == 6 {
		kind = typeIPv6
	}
	return slices.Insert(b, tunnel.HeaderLen, etherFrom(p.mac, gatewayMAC, kind, nil)...)
}

// unframe takes Ethernet's header out of b and returns what is left of it. What
// is not from the gateway to the container becomes no packet at all.
func (p *packetSocket) unframe(b []byte) int {
	head := b[tunnel.HeaderLen : tunnel.HeaderLen+etherLen]
	if !bytes.Equal(head[:6], p.mac) || !bytes.Equal(head[6:12], gatewayMAC) {
		return 0
	}
	var hdr tunnel.Header
	hdr.Decode(b)
	if hdr.Flags&tunnel.FlagNeedsCsum != 0 {
		hdr.CsumStart, hdr.HdrLen = hdr.CsumStart-etherLen, hdr.HdrLen-min(hdr.HdrLen, etherLen)
	}
	hdr.Encode(b)
	return len(slices.Delete(b, tunnel.HeaderLen, tunnel.HeaderLen+etherLen))
}

func (p *packetSocket) MTU() int { return 1500 }

func (p *packetSocket) Close() error { return p.file.Close() }

// readWithin reads a frame from d, which it closes when none comes.
func readWithin(t *testing.T, d tunnel.Device, timeout time.Duration) []byte {
	t.Helper()
	timer := time.AfterFunc(timeout, func() { d.Close() })
	defer timer.Stop()
	b := make([]byte, tunnel.MaxFrame)
	n, err := d.ReadFrame([][]byte{b})
	if err != nil {
		t.Fatalf("ReadFrame: %v", err)
	}
	return b[:n]
}
