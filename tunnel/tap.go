package tunnel

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// DefaultGatewayMAC is the address under which a TAP's container sees all its
// neighbours unless TAPConfig.GatewayMAC says otherwise. It is the same for all
// containers and always, so that what their kernels have learnt stays true when
// the switch is restarted. Locally administered (IEEE 802 §8.4): it meets no
// vendor's. Do not change it.
var DefaultGatewayMAC = net.HardwareAddr{0x02, 0x75, 0x6e, 0x00, 0x00, 0x01}

// TAPConfig says who is at the two ends of a TAP. The zero value is sensible for
// a container whose addresses are unknown, but for duplicate address detection:
// see Addrs.
type TAPConfig struct {
	// Addrs are the container's own addresses. Every other address is
	// answered for, so a container that looks whether an address of its own
	// is free must find it here.
	Addrs []netip.Addr
	// MAC pins the container's address: frames from any other are dropped
	// whatever the container does to its interface. Empty: the address that
	// the interface has when it is opened, and when the interface changes it,
	// the new one.
	MAC net.HardwareAddr
	// GatewayMAC is the address of everybody else. Empty: DefaultGatewayMAC.
	GatewayMAC net.HardwareAddr
}

// DropCounter is a Device that itself discards frames from the container.
// Devices of [OpenTAP] are.
type DropCounter interface {
	// Drops returns how many frames were discarded since the device was
	// opened, by reason; a reason that is absent means none. The reasons are
	// among TAPDrops. Safe for concurrent use, after Close too.
	Drops() map[string]uint64
}

// tapDevice is a Device on a TAP descriptor.
type tapDevice struct {
	descriptor
	port  etherPort
	drops [numEtherDrops]atomic.Uint64

	// moves limits how often the kernel is asked for the container's address,
	// which takes the lock over all interfaces of the machine.
	moves *rate.Limiter
	// read and answer are the one reader's scratch, see etherTransfer.
	read   etherTransfer
	answer transfer
	// writes holds idle *etherTransfer, one per concurrent writer.
	writes sync.Pool
}

// A container's interface may change its address this often, in changes a
// second and at once, before frames are lost.
const moveRate, moveBurst = 10, 10

// OpenTAP makes a Device of a TAP descriptor. Its frames are IP frames as those
// of [Open] are; the Ethernet around them is added and taken away, and the
// device itself answers the container's ARP and neighbour discovery, so that
// every address but the container's own is at cfg.GatewayMAC. What is neither
// is dropped and counted, see [DropCounter].
//
// mtu in bytes is that of the container's interface without Ethernet's header,
// as ip-link shows it; 0 means DefaultMTU. OpenTAP validates f ([ValidateTAP])
// and owns f on success only, as Open does.
//
// ReadFrame wants room for a header and eight bytes; with less it returns
// ErrFrame.
func OpenTAP(f *os.File, mtu int, cfg TAPConfig) (Device, error) {
	if err := ValidateTAP(f); err != nil {
		return nil, err
	}
	d := &tapDevice{moves: rate.NewLimiter(moveRate, moveBurst)}
	if err := d.configure(f, cfg); err != nil {
		return nil, fmt.Errorf("open TAP %s: %w", f.Name(), err)
	}
	var err error
	if err = d.open(f, mtu); err != nil {
		return nil, fmt.Errorf("open TAP %s: %w", f.Name(), err)
	}
	d.read.init(unix.SYS_READV)
	d.answer.init(unix.SYS_WRITEV)
	d.writes.New = func() any {
		t := new(etherTransfer)
		t.init(unix.SYS_WRITEV)
		return t
	}
	return d, nil
}

// configure settles who is at the wire's ends.
func (d *tapDevice) configure(f *os.File, cfg TAPConfig) error {
	gateway := cfg.GatewayMAC
	if len(gateway) == 0 {
		gateway = DefaultGatewayMAC
	}
	if err := checkMAC(gateway); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	have, err := HardwareAddr(f)
	if err != nil {
		return err
	}
	if len(cfg.MAC) > 0 && !slices.Equal(cfg.MAC, have) {
		return fmt.Errorf("the container's interface has the MAC address %v, not %v", have, cfg.MAC)
	}
	if slices.Equal(have, gateway) {
		return fmt.Errorf("the container's interface has the gateway's MAC address %v; give it another", have)
	}
	for _, a := range cfg.Addrs {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return fmt.Errorf("address %v: want an IPv4 or IPv6 address without zone", a)
		}
	}
	d.port.own = slices.Clone(cfg.Addrs)
	d.port.gateway = macOf(gateway)
	d.port.container.Store(uint64(macOf(have)))
	if len(cfg.MAC) == 0 {
		d.port.moved = d.moved
	}
	return nil
}

// moved reports whether the container's interface has taken the address from
// which a frame came, and follows it. The kernel announces a change by a frame
// (arp_notify and ndisc_notify, which netns.MoveIn sets), so that containers
// which only listen are followed too.
func (d *tapDevice) moved(from mac) bool {
	if !d.moves.Allow() {
		return false
	}
	var (
		now    mac
		result error
	)
	err := control(d.file, func(fd int) { now, result = hardwareAddr(fd) })
	if cmp.Or(err, result) != nil || now == d.port.gateway {
		return false
	}
	d.port.container.Store(uint64(now))
	return now == from
}

// ReadFrame implements Device.
func (d *tapDevice) ReadFrame(bufs [][]byte) (int, error) { return d.next(bufs, d.readv) }

// TryReadFrame implements Watchable.
func (d *tapDevice) TryReadFrame(bufs [][]byte) (int, error) { return d.next(bufs, d.tryReadv) }

// next reads until there is a frame for the switch.
func (d *tapDevice) next(bufs [][]byte, read func(*transfer) (int, error)) (int, error) {
	if pieces(bufs) == 0 || length(bufs) < HeaderLen+leastPacket {
		return 0, ErrFrame
	}
	t := &d.read
	for {
		t.load(bufs)
		n, err := read(&t.transfer)
		if err != nil {
			return 0, err
		}
		n -= len(t.front)
		drop := dropEtherTruncated
		if n > 0 {
			n, drop = d.port.receive(t.front[HeaderLen:], bufs, n)
		}
		switch {
		case drop != etherPass:
			d.drops[drop].Add(1)
		case n == 0:
			d.sendAnswer()
		default:
			t.virtioHeader().Encode(t.front[:])
			scatter(bufs, t.front[:HeaderLen], nil)
			return HeaderLen + n, nil
		}
	}
}

// sendAnswer writes what the container asked for. A lost answer is asked for
// again.
func (d *tapDevice) sendAnswer() {
	d.answer.load([][]byte{d.port.answer})
	if err := d.writev(&d.answer); err != nil {
		d.drops[dropAnswer].Add(1)
	}
}

// WriteFrame implements Device.
func (d *tapDevice) WriteFrame(bufs [][]byte) error {
	var head [HeaderLen + 1]byte
	if !plausible(bufs) || gather(head[:], bufs, 0) < len(head) {
		return ErrFrame
	}
	var kind uint16
	switch head[HeaderLen] >> 4 {
	case 4:
		kind = etherIPv4
	case 6:
		kind = etherIPv6
	default:
		return ErrFrame
	}
	var h Header
	h.Decode(head[:])
	t := d.writes.Get().(*etherTransfer)
	defer d.writes.Put(t)
	if !t.seal(h, mac(d.port.container.Load()), d.port.gateway, kind) {
		return ErrFrame
	}
	t.load(bufs)
	return d.writev(&t.transfer)
}

// Drops implements DropCounter.
func (d *tapDevice) Drops() map[string]uint64 {
	all := make(map[string]uint64)
	for i := range d.drops {
		if n := d.drops[i].Load(); n > 0 {
			all[etherDrop(i).String()] = n
		}
	}
	return all
}
