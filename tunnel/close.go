package tunnel

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxClosing bounds the descriptors that are closed in the background, since
// each takes a thread. Closes beyond it are waited for.
const maxClosing = 8

// closing has an entry for each of them.
var closing = make(chan struct{}, maxClosing)

// Close implements Device.
//
// Who closes a device's last descriptor waits some 15 ms for the kernel, which
// has taken the interface away by then: before it frees the device's memory it
// waits until all RCU callbacks have run (netdev_run_todo of net/core/dev.c).
// The wait goes on in the background, with a duplicate of the descriptor.
func (d *descriptor) Close() error {
	last, later := d.duplicate()
	err := d.file.Close() // first, so that readFault sees why its wait ends
	d.closeWatched()
	if later {
		started := make(chan struct{})
		go closeLast(last, started)
		<-started
	}
	if errors.Is(err, os.ErrClosed) {
		return os.ErrClosed
	}
	if err != nil {
		return fmt.Errorf("close TUN: %w", err)
	}
	return nil
}

// duplicate returns a descriptor that keeps the device while the other is
// closed, and a place among those that are closed in the background. It reports
// false where there is no such place or no room for a descriptor.
func (d *descriptor) duplicate() (fd int, ok bool) {
	select {
	case closing <- struct{}{}:
	default:
		return -1, false
	}
	err := d.conn.Control(func(open uintptr) { // of a closed file an error
		var dupErr error
		fd, dupErr = unix.FcntlInt(open, unix.F_DUPFD_CLOEXEC, 0)
		ok = dupErr == nil
	})
	if err != nil || !ok {
		<-closing
		return -1, false
	}
	return fd, true
}

// closeLast closes what duplicate returned and gives its place back. Close
// starts it; it ends when the kernel has freed the device.
func closeLast(fd int, started chan<- struct{}) {
	close(started)
	_ = unix.Close(fd) // the kernel has closed it whatever it says
	<-closing
}
