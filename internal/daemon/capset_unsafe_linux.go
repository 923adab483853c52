package daemon

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// set makes c the permitted, effective set of every thread, and the
// inheritable set empty.
func (c *capSet) set() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: c[0], Permitted: c[0]}, {Effective: c[1], Permitted: c[1]}}
	err := allThreads("drop capabilities", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0)
	runtime.KeepAlive(&hdr)
	runtime.KeepAlive(&data)
	return err
}
