package tunnel

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Device number of /dev/net/tun (Documentation/admin-guide/devices.txt).
const (
	tunMajor = 10
	tunMinor = 200
)

// DescriptorError says why a descriptor cannot be a tunnel. It is returned by
// [Validate], [ValidateTAP], [Open] and [OpenTAP] and matched by errors.As.
type DescriptorError struct {
	// TAP says that a TAP was wanted; false, a TUN.
	TAP bool
	// Found says what the descriptor is instead, such as "a socket" or
	// "a TAP device".
	Found string
	// Path is what /proc/self/fd says of the descriptor, empty if unknown.
	Path string
	// Err is the system's error, if one told.
	Err error
}

// Error implements error.
func (e *DescriptorError) Error() string {
	kind := "TUN"
	if e.TAP {
		kind = "TAP"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "descriptor is not a usable %s: it is ", kind)
	b.WriteString(e.Found)
	if e.Path != "" {
		fmt.Fprintf(&b, " (%s)", e.Path)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	fmt.Fprintf(&b, "; want /dev/net/tun attached with IFF_%s|IFF_NO_PI|IFF_VNET_HDR", kind)
	return b.String()
}

// Unwrap returns Err.
func (e *DescriptorError) Unwrap() error { return e.Err }

// Validate reports whether f is a TUN descriptor that [Open] can drive: the
// character device 10:200, attached to an interface as a layer-3 device with a
// 10-byte virtio header. It changes nothing and does not own f. The error is a
// *DescriptorError that names what f is, or one that matches os.ErrClosed.
//
// A device with packet information headers passes in most cases, because
// TUNGETIFF uses the bit of IFF_NO_PI to say that no filter is attached
// (IFF_NOFILTER of linux/if_tun.h). Each of its frames is then malformed.
func Validate(f *os.File) error { return validateKind(f, false) }

// ValidateTAP is [Validate] for [OpenTAP]: the device is to be a layer-2 one.
func ValidateTAP(f *os.File) error { return validateKind(f, true) }

func validateKind(f *os.File, tap bool) error {
	var found *DescriptorError
	if err := control(f, func(fd int) { found = validate(fd, tap) }); err != nil {
		return err
	}
	if found == nil {
		return nil
	}
	found.TAP = tap
	return found
}

// validate returns what fd is instead of a TUN, or of a TAP; nil if it is one.
func validate(fd int, tap bool) *DescriptorError {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &DescriptorError{Found: "unknown, as fstat fails", Err: err}
	}
	isTun := st.Mode&unix.S_IFMT == unix.S_IFCHR &&
		unix.Major(st.Rdev) == tunMajor && unix.Minor(st.Rdev) == tunMinor
	if !isTun {
		return &DescriptorError{Found: fileKind(&st), Path: fdPath(fd)}
	}
	ifr, err := interfaceOf(fd)
	if errors.Is(err, unix.EBADFD) {
		return &DescriptorError{
			Found: "attached to no interface (never attached, or the interface is gone)", Err: err,
		}
	}
	if err != nil {
		return &DescriptorError{Found: "without an answer to TUNGETIFF", Err: err}
	}
	if found := unfit(int(ifr.Uint16()), tap); found != "" {
		return &DescriptorError{Found: fmt.Sprintf("%s (%s, flags %#x)", found, ifr.Name(), ifr.Uint16())}
	}
	return validateHeader(fd)
}

// unfit names what an interface with these flags is, unless it is the TUN or TAP
// that is wanted.
func unfit(flags int, tap bool) string {
	kind := "TUN"
	switch {
	case flags&(unix.IFF_TUN|unix.IFF_TAP) == 0:
		return "neither a TUN nor a TAP device"
	case flags&unix.IFF_TAP != 0:
		kind = "TAP"
	}
	switch {
	case (kind == "TAP") != tap:
		return "a " + kind + " device"
	case flags&unix.IFF_NO_PI == 0:
		return "a " + kind + " device with packet information headers"
	case flags&unix.IFF_VNET_HDR == 0:
		return "a " + kind + " device without virtio headers"
	default:
		return ""
	}
}

// validateHeader refuses a virtio header of another length or byte order, which
// would shift every packet.
func validateHeader(fd int) *DescriptorError {
	size, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
	if err != nil {
		return &DescriptorError{Found: "without an answer to TUNGETVNETHDRSZ", Err: err}
	}
	// The kernel writes an int; IoctlGetInt reads exactly one.
	if size != HeaderLen {
		return &DescriptorError{Found: fmt.Sprintf("a device with virtio headers of %d bytes, not %d", size, HeaderLen)}
	}
	return nil
}

// fileKind names what a descriptor is that is not a TUN.
func fileKind(st *unix.Stat_t) string {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFIFO:
		return "a pipe"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFBLK:
		return fmt.Sprintf("block device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFCHR:
		return fmt.Sprintf("character device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	default:
		return "an anonymous kernel object"
	}
}

// fdPath returns what the kernel calls an open descriptor of this process.
func fdPath(fd int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return ""
	}
	return path
}

// Name returns the kernel's present name of the interface that f is attached
// to, wherever that interface is now. It does not own f.
func Name(f *os.File) (string, error) {
	var (
		ifr    *unix.Ifreq
		result error
	)
	err := control(f, func(fd int) { ifr, result = interfaceOf(fd) })
	if err = errors.Join(err, result); err != nil {
		return "", fmt.Errorf("name of TUN %s: %w", f.Name(), err)
	}
	return ifr.Name(), nil
}

// NetnsInode returns the inode number of the network namespace that holds the
// interface of f now: the number in the link text of /proc/PID/ns/net. It
// needs CAP_NET_ADMIN over that namespace, and Linux 5.2. The error matches
// [ErrGone] when the interface is no more. It does not own f.
//
// It asks by TUNGETDEVNETNS. SIOCGSKNS, which works on a TUN too, goes on
// naming the namespace that the device was made in after the device has moved.
func NetnsInode(f *os.File) (uint64, error) {
	var (
		inode  uint64
		result error
	)
	err := control(f, func(fd int) { inode, result = netnsInode(fd) })
	if err = errors.Join(err, result); err != nil {
		return 0, fmt.Errorf("network namespace of TUN %s: %w", f.Name(), err)
	}
	return inode, nil
}

func netnsInode(fd int) (uint64, error) {
	ns, err := unix.IoctlRetInt(fd, unix.TUNGETDEVNETNS)
	if errors.Is(err, unix.EBADFD) {
		return 0, ErrGone
	}
	if err != nil {
		return 0, os.NewSyscallError("ioctl TUNGETDEVNETNS", err)
	}
	defer unix.Close(ns)
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Ino, nil
}

// interfaceOf asks a TUN descriptor for its interface's name and flags.
func interfaceOf(fd int) (*unix.Ifreq, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return nil, os.NewSyscallError("ioctl TUNGETIFF", err)
	}
	return ifr, nil
}

// control runs fn with the descriptor of f, which stays as blocking or not as
// it was and open for as long as fn runs.
func control(f *os.File, fn func(fd int)) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if conn.Control(func(fd uintptr) { fn(int(fd)) }) != nil {
		return os.ErrClosed // the package os does not translate its only reason
	}
	return nil
}
