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

// descriptor is a TUN or TAP, in non-blocking mode.
//
// Go's poller does not watch it: a frame would wake the poller even where its
// reader waits by epoll(7) of its own. Who calls ReadFrame gets a duplicate that
// is watched.
type descriptor struct {
	file *os.File // not watched
	conn syscall.RawConn
	mtu  int

	mu      sync.Mutex // guards what follows
	waiting syscall.RawConn
	watched *os.File // the duplicate; nil until ReadFrame needs it
	closed  bool
}

// fileDevice is a Device on a TUN descriptor.
type fileDevice struct {
	descriptor

	// read is the one reader's scratch, see transfer.
	read transfer
	// writes holds idle *transfer, one per concurrent writer.
	writes sync.Pool
}

// Open makes a Device of a TUN descriptor, which is [Watchable]. The device
// speaks for a container whose interface has the given MTU in bytes; 0 means
// DefaultMTU. The MTU is a parameter because the interface is usually in a
// namespace that this process cannot look into.
//
// Open validates f ([Validate]). It owns f on success only, and f must then not
// be used otherwise. The descriptor becomes non-blocking, for all processes
// that share it.
func Open(f *os.File, mtu int) (Device, error) {
	if err := Validate(f); err != nil {
		return nil, err
	}
	d := new(fileDevice)
	if err := d.open(f, mtu); err != nil {
		return nil, fmt.Errorf("open TUN %s: %w", f.Name(), err)
	}
	d.read.init(unix.SYS_READV)
	d.writes.New = func() any {
		t := new(transfer)
		t.init(unix.SYS_WRITEV)
		return t
	}
	return d, nil
}

// open takes f over. It owns f on success only.
func (d *descriptor) open(f *os.File, mtu int) error {
	if mtu == 0 {
		mtu = DefaultMTU
	}
	if mtu < 0 || mtu > MaxPacket {
		return fmt.Errorf("MTU %d is outside 0..%d", mtu, MaxPacket)
	}
	file, err := duplicateFile(f, false)
	if err != nil {
		return err
	}
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return err
	}
	f.Close()
	d.file, d.conn, d.mtu = file, conn, mtu
	return nil
}

// duplicateFile returns a non-blocking duplicate of f that Go's poller watches, or
// does not: os.NewFile has what is non-blocking at that moment watched.
func duplicateFile(f *os.File, watched bool) (*os.File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var (
		g      *os.File
		result error
	)
	err = conn.Control(func(fd uintptr) {
		var dup int
		if dup, result = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); result != nil {
			return
		}
		if result = unix.SetNonblock(dup, watched); result != nil {
			unix.Close(dup)
			return
		}
		g = os.NewFile(uintptr(dup), f.Name())
		if result = unix.SetNonblock(dup, true); result != nil {
			g.Close()
		}
	})
	if err != nil {
		result = os.ErrClosed // Control has no other error, and the package os no word for it
	}
	if result != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", result)
	}
	if watched {
		if err := g.SetReadDeadline(time.Time{}); err != nil {
			g.Close()
			return nil, fmt.Errorf("watch descriptor: %w", err)
		}
	}
	return g, nil
}

// wait returns the duplicate that Go's poller watches.
func (d *descriptor) wait() (syscall.RawConn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, os.ErrClosed
	case d.waiting != nil:
		return d.waiting, nil
	}
	g, err := duplicateFile(d.file, true)
	if err != nil {
		return nil, err
	}
	conn, err := g.SyscallConn()
	if err != nil {
		g.Close()
		return nil, err
	}
	d.watched, d.waiting = g, conn
	return conn, nil
}

// closeWatched closes the duplicate, if there is one, and lets none be made.
func (d *descriptor) closeWatched() {
	d.mu.Lock()
	watched := d.watched
	d.watched, d.waiting, d.closed = nil, nil, true
	d.mu.Unlock()
	if watched != nil {
		watched.Close()
	}
}

// ReadFrame implements Device.
func (d *fileDevice) ReadFrame(bufs [][]byte) (int, error) {
	if pieces(bufs) == 0 {
		return 0, ErrFrame
	}
	d.read.load(bufs)
	return d.readv(&d.read)
}

// TryReadFrame implements Watchable.
func (d *fileDevice) TryReadFrame(bufs [][]byte) (int, error) {
	if pieces(bufs) == 0 {
		return 0, ErrFrame
	}
	d.read.load(bufs)
	return d.tryReadv(&d.read)
}

// readv waits for a frame, reads it into what t is loaded with and unloads t.
func (d *descriptor) readv(t *transfer) (int, error) {
	conn, err := d.wait()
	if err == nil {
		if err = conn.Read(t.poll); err != nil {
			err = d.readFault(err)
		}
	}
	t.unload()
	if err != nil {
		return 0, err
	}
	if t.errno != 0 {
		return 0, deviceError("read", t.errno)
	}
	return t.n, nil
}

// tryReadv reads a frame that is there into what t is loaded with and unloads t.
func (d *descriptor) tryReadv(t *transfer) (int, error) {
	err := d.conn.Control(t.control)
	t.unload()
	switch {
	case err != nil:
		return 0, os.ErrClosed
	case t.errno == unix.EAGAIN:
		return 0, ErrEmpty
	case t.errno != 0:
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

// Descriptor implements Watchable.
func (d *descriptor) Descriptor(f func(fd int)) error {
	if d.conn.Control(func(fd uintptr) { f(int(fd)) }) != nil {
		return os.ErrClosed
	}
	return nil
}

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
