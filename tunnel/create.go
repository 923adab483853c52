package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// cloneDevice is where the kernel hands out TUN descriptors.
const cloneDevice = "/dev/net/tun"

// DefaultMTU is the MTU of a device created with Options.MTU zero, in bytes: the
// largest multiple of 16 that leaves room for the headers around an IP packet
// in 64 KiB.
const DefaultMTU = 65520

// DefaultQueueLen is the transmit queue of a device created with
// Options.QueueLen zero, in frames. The reader may have to wait for a processor
// for two of the scheduler's ticks, 4 ms each with HZ=250, in which a program
// makes 1,700 datagrams: with the 500 of the TUN driver bursts of 1,000 lost 10 to
// 16 % on a busy machine of two cores, with 1,000 a stream of 2.4 Gbit/s still 2 to
// 9 %, with 2,000 0.4 to 3 %. A frame of queue takes 8 bytes of the kernel's while
// it is free.
const DefaultQueueLen = 2000

// temporaryName is the template for devices without a wanted name; the kernel
// replaces %d by the first free number, in one step.
const temporaryName = "un%d"

// Options say how a TUN or TAP is created. The zero value makes a TUN with a
// free temporary name and DefaultMTU.
type Options struct {
	// Name is the interface's name, at most 15 bytes; one "%d" in it is
	// replaced by a free number. Empty: a free "un" name.
	Name string
	// MTU in bytes; 0 means DefaultMTU.
	MTU int
	// QueueLen is how many frames from the container wait for the reader;
	// more are lost. 0 means DefaultQueueLen.
	QueueLen int
	// TAP makes a layer-2 device, for [OpenTAP]: its interface has a MAC
	// address and finds its neighbours by ARP and neighbour discovery.
	TAP bool
	// Alias is a note that the interface carries, at most 255 bytes. Empty:
	// none.
	Alias string
	// MAC is a TAP's address. Empty: a random locally administered one, which
	// [HardwareAddr] tells.
	MAC net.HardwareAddr
	// Persist lets the interface outlive its descriptors: it ends when
	// somebody deletes it, or with its namespace. The kernel then removes it
	// by itself, where otherwise the last Close waits some 20 ms for it. An
	// interface without a descriptor has no carrier, and drops what is sent.
	Persist bool
}

// kind is what o makes, for errors.
func (o Options) kind() string {
	if o.TAP {
		return "TAP"
	}
	return "TUN"
}

// Create makes a TUN or TAP device in the calling thread's network namespace and
// returns its only descriptor, non-blocking and close-on-exec, ready for [Open]
// or [OpenTAP] or to be sent to another process. The caller owns the file; the device lives
// until its last duplicate is closed. The device is down and has no address.
//
// It carries virtio headers with checksum and TCP segmentation offload, and
// UDP segmentation offload where the kernel has it (Linux 6.2).
//
// Callers that care about the namespace hold runtime.LockOSThread. The error
// matches fs.ErrExist when the namespace has an interface of the name.
func Create(o Options) (*os.File, error) {
	o.Name = cmp.Or(o.Name, temporaryName)
	o.MTU = cmp.Or(o.MTU, DefaultMTU)
	o.QueueLen = cmp.Or(o.QueueLen, DefaultQueueLen)
	f, err := create(o)
	if err != nil {
		return nil, fmt.Errorf("create %s %q: %w", o.kind(), o.Name, err)
	}
	return f, nil
}

// errTUNHasNoMAC refuses Options.MAC for a layer-3 device.
var errTUNHasNoMAC = errors.New("a TUN has no MAC address: set Options.TAP, or no Options.MAC")

func create(o Options) (*os.File, error) {
	// Exclusive: else a device that is there already would be joined.
	flags := uint16(unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if o.TAP {
		flags |= unix.IFF_TAP
	} else {
		flags |= unix.IFF_TUN
	}
	if len(o.MAC) > 0 {
		if !o.TAP {
			return nil, errTUNHasNoMAC
		}
		if err := checkMAC(o.MAC); err != nil {
			return nil, err
		}
	}
	ifr, err := unix.NewIfreq(o.Name)
	if err != nil {
		return nil, fmt.Errorf("interface name is empty or longer than %d bytes: %w", unix.IFNAMSIZ-1, err)
	}
	fd, err := unix.Open(cloneDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: cloneDevice, Err: err}
	}
	if err := attach(fd, ifr, flags, o); err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Not before: Go's poller would never hear of a device that came later.
	return os.NewFile(uintptr(fd), cloneDevice), nil
}

// attach makes the device of a fresh descriptor.
func attach(fd int, ifr *unix.Ifreq, flags uint16, o Options) error {
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("an interface of this name exists already: %w", fs.ErrExist)
		}
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	if err := offload(fd); err != nil {
		return err
	}
	if err := adjust(ifr.Name(), o); err != nil {
		return err
	}
	if !o.Persist {
		return nil
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("TUNSETPERSIST: %w", err)
	}
	return nil
}

// offload lets the kernel leave checksums and segmentation to the reader, that
// of UDP where it can (Linux 6.2; older ones refuse).
func offload(fd int) error {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp); err != nil {
		return fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	_ = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6)
	return nil
}

// adjust gives an interface in the calling thread's namespace its sizes, its MAC
// address and its alias, in one message: each would cost as much as all.
func adjust(name string, o Options) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))) // without an index it selects
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(o.MTU))))
	req.AddData(nl.NewRtAttr(unix.IFLA_TXQLEN, nl.Uint32Attr(uint32(o.QueueLen))))
	what := fmt.Sprintf("MTU %d, queue length %d", o.MTU, o.QueueLen)
	if len(o.MAC) > 0 { // without, the kernel has made one for a TAP
		req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, o.MAC))
		what += fmt.Sprintf(", MAC address %v", o.MAC)
	}
	if o.Alias != "" {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(o.Alias)))
		what += fmt.Sprintf(", alias %q", o.Alias)
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set %s on %s: %w", what, name, err)
	}
	return nil
}
