package sandbox

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// setupCaps are what the child needs in its own user namespace: to make
// namespaces and mounts, to configure interfaces, and to give the rest up.
// CAP_DAC_OVERRIDE is overlayfs's wish: it works in a directory of mode 0.
var setupCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETPCAP, unix.CAP_DAC_OVERRIDE}

// effectiveCaps returns the calling thread's effective capabilities as a set of
// bits.
func effectiveCaps() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, os.NewSyscallError("capget", err)
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), nil
}

// MayMakeNamespaces reports whether this process can make network and mount
// namespaces without a user namespace of its own. A root that was given fewer
// capabilities, as in a container, cannot.
func MayMakeNamespaces() bool {
	if os.Geteuid() != 0 {
		return false
	}
	caps, err := effectiveCaps()
	need := uint64(1)<<unix.CAP_SYS_ADMIN | uint64(1)<<unix.CAP_NET_ADMIN
	return err == nil && caps&need == need
}

// boundingCaps returns the capabilities that the calling thread and what it
// executes may ever have.
func boundingCaps() []uintptr {
	var set []uintptr
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		v, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err == nil && v == 1 {
			set = append(set, c)
		}
	}
	return set
}

// dropPrivileges gives up what a new user namespace gave the calling thread, so
// that after execve the command has what it would have had outside: nothing for
// an ordinary user; for a user namespace's uid 0, whom execve gives the bounding
// set, what was in the caller's.
func dropPrivileges(bounding []uintptr) error {
	keep := make(map[uintptr]bool, len(bounding))
	for _, c := range bounding {
		keep[c] = true
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if keep[c] {
			continue
		}
		// EINVAL: the kernel does not know a capability that we do.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	return nil
}
