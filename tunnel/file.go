package tunnel

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// descriptor is a TUN or TAP that Go's poller watches.
type descriptor struct {
	file *os.File
	conn syscall.RawConn
	mtu  int
}

// fileDevice is a Device on a TUN descriptor.
type fileDevice struct {
	descriptor

	// read is the one reader's scratch, see transfer.
	read transfer
	// writes holds idle *transfer, one per concurrent writer.
	writes sync.Pool
}

// Open makes a Device of a TUN descriptor. The device speaks for a container
// whose interface has the given MTU in bytes; 0 means DefaultMTU. The MTU is a
// parameter because the interface is usually in a namespace that this process
// cannot look into.
//
// Open validates f ([Validate]). It owns f on success only, and f must then not
// be used otherwise. The descriptor becomes non-blocking, for all processes
// that share it.
func Open(f *os.File, mtu int) (Device, error) {
	if err := Validate(f); err != nil {
		return nil, err
	}
	d, err := openDescriptor(f, mtu)
	if err != nil {
		return nil, fmt.Errorf("open TUN %s: %w", f.Name(), err)
	}
	return newFileDevice(d), nil
}

// openDescriptor makes f watched. It owns f on success only.
func openDescriptor(f *os.File, mtu int) (descriptor, error) {
	if mtu == 0 {
		mtu = DefaultMTU
	}
	if mtu < 0 || mtu > MaxPacket {
		return descriptor{}, fmt.Errorf("MTU %d is outside 0..%d", mtu, MaxPacket)
	}
	polled, err := pollable(f)
	if err != nil {
		return descriptor{}, err
	}
	conn, err := polled.SyscallConn()
	if err != nil {
		if polled != f {
			polled.Close()
		}
		return descriptor{}, err
	}
	if polled != f {
		f.Close()
	}
	return descriptor{file: polled, conn: conn, mtu: mtu}, nil
}

func newFileDevice(under descriptor) *fileDevice {
	d := &fileDevice{descriptor: under}
	d.read.init(unix.SYS_READV)
	d.writes.New = func() any {
		t := new(transfer)
		t.init(unix.SYS_WRITEV)
		return t
	}
	return d
}

// pollable returns f itself when Go's poller watches it already, and otherwise
// a duplicate that it does watch. Wrapping the same descriptor number twice is
// no way out: the runtime would find it in its epoll set, quietly fall back to
// blocking mode, and reads would return EAGAIN.
func pollable(f *os.File) (*os.File, error) {
	if f.SetReadDeadline(time.Time{}) == nil {
		return f, nil
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var (
		dup    int
		dupErr error
	)
	err = conn.Control(func(fd uintptr) {
		if dupErr = unix.SetNonblock(int(fd), true); dupErr != nil {
			return
		}
		dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, dupErr); err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	g := os.NewFile(uintptr(dup), f.Name())
	if err := g.SetReadDeadline(time.Time{}); err != nil {
		g.Close()
		return nil, fmt.Errorf("watch descriptor: %w", err)
	}
	return g, nil
}

// ReadFrame implements Device.
func (d *fileDevice) ReadFrame(bufs [][]byte) (int, error) {
	t := &d.read
	if pieces(bufs) == 0 {
		return 0, ErrFrame
	}
	t.load(bufs)
	return d.readv(t)
}

// readv waits for a frame, reads it into what t is loaded with and unloads t.
func (d *descriptor) readv(t *transfer) (int, error) {
	err := d.conn.Read(t.poll)
	t.unload()
	if err != nil {
		return 0, d.readFault(err)
	}
	if t.errno != 0 {
		return 0, deviceError("read", t.errno)
	}
	return t.n, nil
}

// readFault explains why the poller refused to wait: because of Close, or of an
// error condition on the descriptor. The runtime exports an error for neither,
// so the kernel is asked which one it is.
func (d *descriptor) readFault(err error) error {
	var errno error
	closed := d.conn.Control(func(fd uintptr) { _, errno = interfaceOf(int(fd)) })
	switch {
	case closed != nil:
		return os.ErrClosed
	case errors.Is(errno, unix.EBADFD):
		return ErrGone
	default:
		return fmt.Errorf("wait for a frame: %w", err)
	}
}

// WriteFrame implements Device.
func (d *fileDevice) WriteFrame(bufs [][]byte) error {
	if !plausible(bufs) {
		return ErrFrame
	}
	t := d.writes.Get().(*transfer)
	t.load(bufs)
	err := d.writev(t)
	d.writes.Put(t)
	return err
}

// writev writes what t is loaded with as one frame and unloads t.
func (d *descriptor) writev(t *transfer) error {
	// Control, not Write: Write serialises its callers, and a TUN takes
	// frames from many threads at once.
	err := d.conn.Control(t.control)
	t.unload()
	if err != nil {
		return os.ErrClosed
	}
	if t.errno != 0 {
		return deviceError("write", t.errno)
	}
	return nil
}

// MTU implements Device.
func (d *descriptor) MTU() int { return d.mtu }

// deviceError turns an errno of readv or writev on a TUN or TAP into what the
// Device contract says.
func deviceError(op string, errno syscall.Errno) error {
	switch errno {
	case unix.EBADFD:
		return ErrGone
	case unix.EIO: // tun_get_user of drivers/net/tun.c, of an interface without IFF_UP
		return ErrDown
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return ErrFull
	case unix.EINVAL, unix.EMSGSIZE:
		return ErrFrame
	default:
		return os.NewSyscallError(op+" TUN", errno)
	}
}
