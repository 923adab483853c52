package sandbox

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// hint says what to do about an error of the set-up, or nothing when it does not
// know better than the error itself.
func hint(step string, err error, ownUserns bool) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return ""
	}
	switch {
	case step == "create the TUN device":
		return tunHint(errno)
	case step == "start the set-up process":
		return namespaceHint(errno, ownUserns)
	case step == "attach to the network" && errno == unix.EACCES:
		return "ports below " + readSysctl("net/ipv4/ip_unprivileged_port_start", "1024") +
			" are for root; publish on a higher one, or: sysctl -w net.ipv4.ip_unprivileged_port_start=0"
	case step == "attach to the network" && errno == unix.EADDRNOTAVAIL:
		return "a port is published at addresses of this machine (\"ip -br addr\" lists them); 0.0.0.0 and [::] stand for all"
	case ownUserns && (errno == unix.EPERM || errno == unix.EACCES):
		return restrictionHint()
	}
	return ""
}

func tunHint(errno syscall.Errno) string {
	const device = "/dev/net/tun"
	switch errno {
	case unix.ENOENT:
		return "make the device: modprobe tun; mkdir -p /dev/net && mknod -m 666 " + device + " c 10 200 (containers: pass --device " + device + ")"
	case unix.EACCES:
		return "let every user open it: chmod 666 " + device
	case unix.ENODEV, unix.ENXIO:
		return "the kernel has no TUN driver loaded: modprobe tun"
	case unix.EPERM:
		if hint := restrictionHint(); hint != "" {
			return hint
		}
		return "the device may not be used here; in a container, pass --device " + device
	}
	return ""
}

// namespaceHint explains why clone refused new namespaces.
func namespaceHint(errno syscall.Errno, ownUserns bool) string {
	switch errno {
	case unix.ENOSPC, unix.EUSERS:
		for _, kind := range []string{"user", "net", "mnt"} {
			if readSysctl("user/max_"+kind+"_namespaces", "") == "0" {
				return "this machine allows no " + kind + " namespaces: sysctl -w user.max_" + kind + "_namespaces=15000"
			}
		}
		return "no more namespaces may be made: see sysctl user.max_user_namespaces, user.max_net_namespaces and user.max_mnt_namespaces"
	case unix.EINVAL:
		return "the kernel was built without user or network namespaces (CONFIG_USER_NS, CONFIG_NET_NS)"
	case unix.EPERM, unix.EACCES:
		if !ownUserns {
			return "making namespaces is forbidden here although this is root with CAP_SYS_ADMIN: a seccomp filter? (containers: --security-opt seccomp=unconfined)"
		}
		if hint := restrictionHint(); hint != "" {
			return hint
		}
		return "user namespaces are forbidden here: a seccomp filter or security module? (containers: --security-opt seccomp=unconfined)"
	}
	return ""
}

// restrictionHint names what keeps an unprivileged user from namespaces, or from
// using what they promise; empty when nothing known does.
func restrictionHint() string {
	switch {
	case readSysctl("kernel/unprivileged_userns_clone", "1") == "0":
		return "this machine forbids user namespaces to ordinary users: sysctl -w kernel.unprivileged_userns_clone=1"
	case readSysctl("kernel/apparmor_restrict_unprivileged_userns", "0") != "0":
		return "AppArmor takes the capabilities from user namespaces of ordinary users: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0," +
			" or give the usernet binary a profile with the rule \"userns,\""
	case readSysctl("user/max_user_namespaces", "1") == "0":
		return "this machine allows no user namespaces: sysctl -w user.max_user_namespaces=15000"
	}
	return ""
}

// readSysctl reads a parameter by its path below /proc/sys; what cannot be read
// is fallback.
func readSysctl(path, fallback string) string {
	b, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		return fallback
	}
	return strings.TrimSpace(string(b))
}
