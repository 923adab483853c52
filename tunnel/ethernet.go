package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ethernet framing (IEEE 802.3, RFC 894, RFC 2464).
const (
	etherLen = 14 // destination, source, type
	// minEtherPayload is what short frames are padded to, in bytes.
	minEtherPayload = 46

	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100 // IEEE 802.1Q
	etherIPv6 = 0x86dd
	etherQinQ = 0x88a8 // IEEE 802.1ad
)

// mac is an Ethernet address in the low 48 bits, so that one load or store
// moves all of it.
type mac uint64

// allNodes6 is where ff02::1 is sent (RFC 2464 §7).
const allNodes6 mac = 0x3333_0000_0001

func macOf(a net.HardwareAddr) mac {
	var b [8]byte
	copy(b[2:], a)
	return mac(binary.BigEndian.Uint64(b[:]))
}

// multicast reports whether m addresses a group; the broadcast address is one.
func (m mac) multicast() bool { return m>>40&1 != 0 }

// append appends the six bytes of m to b.
func (m mac) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(m>>32))
	return binary.BigEndian.AppendUint32(b, uint32(m))
}

func (m mac) String() string { return net.HardwareAddr(m.append(nil)).String() }

// checkMAC reports why an address cannot be an interface's.
func checkMAC(a net.HardwareAddr) error {
	if m := macOf(a); len(a) != 6 || m == 0 || m.multicast() {
		return fmt.Errorf("MAC address %q: want six bytes that name one interface, not a group", a)
	}
	return nil
}

// etherTransfer is a transfer of one Ethernet frame with its virtio header. The
// two headers lie in a buffer of their own in front of the caller's packet,
// since the offsets in the virtio header count from the Ethernet header here and
// from the IP header there. The packet itself is not copied.
type etherTransfer struct {
	transfer
	front [HeaderLen + etherLen]byte
}

// load points t at front and at bufs without their first HeaderLen bytes. Of
// bufs at most MaxBuffers are not empty.
func (t *etherTransfer) load(bufs [][]byte) {
	t.iovs[0].Base = &t.front[0]
	t.iovs[0].SetLen(len(t.front))
	t.count = 1
	skip := HeaderLen
	for _, b := range bufs {
		n := min(skip, len(b))
		skip -= n
		if b = b[n:]; len(b) > 0 {
			t.iovs[t.count].Base = &b[0]
			t.iovs[t.count].SetLen(len(b))
			t.count++
		}
	}
}

// virtioHeader reads the virtio header in front, with offsets that count from
// the IP header. Offsets that point into the Ethernet header wrap around, and
// Header.Check refuses what comes out.
func (t *etherTransfer) virtioHeader() (h Header) {
	h.Decode(t.front[:])
	h.HdrLen -= min(h.HdrLen, etherLen)
	if h.Flags&FlagNeedsCsum != 0 {
		h.CsumStart -= etherLen
	}
	return h
}

// seal writes both headers to front for a packet whose virtio header is h. It
// reports false for offsets that no frame can have.
func (t *etherTransfer) seal(h Header, to, from mac, kind uint16) bool {
	if max(h.HdrLen, h.CsumStart) > MaxPacket-etherLen {
		return false
	}
	if h.HdrLen > 0 {
		h.HdrLen += etherLen
	}
	if h.Flags&FlagNeedsCsum != 0 {
		h.CsumStart += etherLen
	}
	h.Encode(t.front[:])
	appendEther(t.front[:HeaderLen], to, from, kind)
	return true
}

func appendEther(b []byte, to, from mac, kind uint16) []byte {
	return binary.BigEndian.AppendUint16(from.append(to.append(b)), kind)
}

// gather copies what follows the first skip bytes of bufs to dst and returns
// how much there was.
func gather(dst []byte, bufs [][]byte, skip int) int {
	n := 0
	for _, b := range bufs {
		m := min(skip, len(b))
		skip -= m
		n += copy(dst[n:], b[m:])
		if n == len(dst) {
			break
		}
	}
	return n
}

// HardwareAddr returns the MAC address that the interface of f, a TAP, has now,
// wherever that interface is; it may change at any time. It needs no
// privileges. The error matches [ErrGone] when the interface is no more. It does
// not own f.
func HardwareAddr(f *os.File) (net.HardwareAddr, error) {
	var (
		m      mac
		result error
	)
	err := control(f, func(fd int) { m, result = hardwareAddr(fd) })
	if err = errors.Join(err, result); err != nil {
		return nil, fmt.Errorf("MAC address of TAP %s: %w", f.Name(), err)
	}
	return m.append(nil), nil
}

// errNoMAC says what a TUN has in place of a MAC address.
var errNoMAC = errors.New("the interface has none, as it is no TAP")

// hardwareAddr asks by SIOCGIFHWADDR, which the TUN driver answers for the
// descriptor's own interface in the namespace where that is now
// (__tun_chr_ioctl of drivers/net/tun.c).
func hardwareAddr(fd int) (mac, error) {
	var req struct { // struct ifreq
		name   [unix.IFNAMSIZ]byte
		family uint16
		addr   [22]byte
	}
	_, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCGIFHWADDR, uintptr(unsafe.Pointer(&req)))
	switch {
	case errno == unix.EBADFD:
		return 0, ErrGone
	case errno != 0:
		return 0, os.NewSyscallError("ioctl SIOCGIFHWADDR", errno)
	case req.family != unix.ARPHRD_ETHER:
		return 0, errNoMAC
	}
	return macOf(req.addr[:6]), nil
}
