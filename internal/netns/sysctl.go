package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sysctlRoot is resolved in the namespace of the thread that opens it.
const sysctlRoot = "/proc/sys/net"

// SetSysctl writes a value below /proc/sys/net of the current namespace; key is
// the path from there, such as "ipv6/conf/all/disable_ipv6".
func SetSysctl(key, value string) error {
	err := os.WriteFile(path.Join(sysctlRoot, key), []byte(value), 0)
	if err != nil {
		return fmt.Errorf("set sysctl net/%s to %q: %w", key, value, err)
	}
	return nil
}

// Sysctl reads a value below /proc/sys/net of the current namespace, without
// the white space around it.
func Sysctl(key string) (string, error) {
	b, err := os.ReadFile(path.Join(sysctlRoot, key))
	if err != nil {
		return "", fmt.Errorf("read sysctl net/%s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// SetPingGroupRange lets members of the groups lowest to highest open ICMP and
// ICMPv6 echo sockets in the current namespace without privileges. Both groups
// must exist in the namespace's user namespace.
func SetPingGroupRange(lowest, highest uint32) error {
	return SetSysctl("ipv4/ping_group_range", fmt.Sprintf("%d %d", lowest, highest))
}

// setting is a sysctl that an interface is to have.
type setting struct {
	key, value string
	// wanted is true when the interface is of no use without it. Others only
	// keep the interface quiet, and are skipped where /proc/sys is read-only
	// or the kernel lacks them: the switch drops what they would have
	// prevented.
	wanted bool
}

// settings lists the sysctls of an interface. net.ipv6.conf.all is not among
// them: the kernel judges each interface by its own value, and who has disabled
// IPv6 on other interfaces may have meant it.
func settings(cfg Interface, tap bool) []setting {
	dev := "ipv6/conf/" + cfg.Name + "/"
	all := []setting{{dev + "accept_ra", "0", false}}
	if tap {
		// The kernel announces itself when the interface comes up or gets
		// another MAC address.
		all = append(all, setting{"ipv4/conf/" + cfg.Name + "/arp_notify", "1", false})
	}
	if !cfg.hasIPv6() {
		return all
	}
	if tap {
		all = append(all,
			setting{dev + "ndisc_notify", "1", false},
			// Nobody else is on the link: its link-local address need not
			// wait a second for an objection.
			setting{dev + "accept_dad", "0", false},
		)
	}
	return append(all,
		setting{"ipv6/conf/lo/disable_ipv6", "0", false},
		setting{dev + "disable_ipv6", "0", true},
		// Without it the kernel forgets IPv6 addresses, and not IPv4 ones,
		// when somebody takes the interface down and up.
		setting{dev + "keep_addr_on_down", "1", false},
	)
}

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenNone = 1

// stopLinkLocal keeps the kernel from making a link-local address, and with it
// from soliciting routers. It goes by netlink, which sets the mode and nothing
// else: writing the old mode back to the sysctl would make the very address.
func (j *job) stopLinkLocal(link netlink.Link) error {
	return j.do("stop link-local addresses", func() (func() error, error) {
		value, err := Sysctl("ipv6/conf/" + link.Attrs().Name + "/addr_gen_mode")
		if err != nil {
			return nil, ignore(err, unix.ENOENT) // a kernel without IPv6
		}
		old, err := strconv.Atoi(value)
		if err != nil || old == addrGenNone {
			return nil, err
		}
		return func() error { return netlink.LinkSetIP6AddrGenMode(link, old) },
			netlink.LinkSetIP6AddrGenMode(link, addrGenNone)
	})
}

func (j *job) setSysctls(all []setting) error {
	for _, s := range all {
		if err := j.setSysctl(s); err != nil {
			return err
		}
	}
	return nil
}

// stopPacing replaces the namespace's default for TCP where that is BBR, which
// sends by a timer for every superframe. Reno is the one algorithm that every
// kernel has and every namespace may choose; without loss it differs from Cubic in
// nothing.
func (j *job) stopPacing() error {
	const key = "ipv4/tcp_congestion_control"
	was, err := Sysctl(key)
	if err != nil && !unavailable(err) {
		return err
	}
	if !strings.HasPrefix(was, "bbr") {
		return nil
	}
	return j.setSysctl(setting{key, "reno", false})
}

// setSysctl writes only what differs, so that it needs no writable /proc/sys
// where the defaults will do.
func (j *job) setSysctl(s setting) error {
	return j.do("set sysctl net/"+s.key, func() (func() error, error) {
		old, err := Sysctl(s.key)
		if err == nil && old != s.value {
			err = SetSysctl(s.key, s.value)
		}
		switch {
		case err == nil && old != s.value:
			return func() error { return SetSysctl(s.key, old) }, nil
		case err != nil && (s.wanted || !unavailable(err)):
			return nil, err
		default:
			return nil, nil
		}
	})
}

// unavailable reports whether a sysctl is missing or may not be written here.
func unavailable(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS)
}
