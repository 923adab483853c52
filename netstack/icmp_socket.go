package netstack

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrPingUnavailable says that this process may open no socket for ICMP echo:
// its groups are outside net.ipv4.ping_group_range and it lacks CAP_NET_RAW.
var ErrPingUnavailable = errors.New("ICMP echo is not available to this process")

// pingGroupRange is the sysctl of the network namespace that says who may open
// ping sockets, of both families (icmp(7)).
const pingGroupRange = "/proc/sys/net/ipv4/ping_group_range"

// PingAvailable reports whether containers can ping the outside from this
// process, as it is now. The error matches ErrPingUnavailable and names the
// command that mends it.
func PingAvailable() error {
	fd, _, err := openPing(true)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// openPing opens a ping socket: of the kind that needs no privilege, or else a
// raw one.
func openPing(v4 bool) (fd int, raw bool, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if !v4 {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	const flags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|flags, proto)
	if err == nil {
		return fd, false, nil
	}
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		return -1, false, os.NewSyscallError("open a ping socket", err)
	}
	fd, err = unix.Socket(family, unix.SOCK_RAW|flags, proto)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return -1, false, fmt.Errorf("%w: net.ipv4.ping_group_range is %q, which leaves out its groups %s, and it lacks CAP_NET_RAW; to allow it: sysctl -w net.ipv4.ping_group_range='0 2147483647'",
			ErrPingUnavailable, groupRange(), groups())
	}
	return fd, true, os.NewSyscallError("open a raw ICMP socket", err)
}

func groupRange() string {
	b, err := os.ReadFile(pingGroupRange)
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

func groups() string {
	all := fmt.Sprint(os.Getegid())
	more, err := os.Getgroups()
	if err != nil {
		return all
	}
	for _, g := range more {
		if g != os.Getegid() {
			all += fmt.Sprint(" ", g)
		}
	}
	return all
}

// newSocket opens the ping socket of an identifier of a container.
func (n *icmpNAT) newSocket(l *Link, k socketKey) (*natSocket, error) {
	fd, raw, err := openPing(k.host4)
	if err != nil {
		return nil, err
	}
	s := &natSocket{
		link: l, table: &l.nat.ping, key: k, v4: k.host4, ping: true, raw: raw, deliver: n.deliver, fd: fd,
		peers: map[netip.AddrPort]*natPeer{}, addrs: map[netip.Addr]int{},
	}
	if hook := n.s.cfg.Host.Control; hook != nil {
		network := "ip4:icmp"
		if !k.host4 {
			network = "ip6:ipv6-icmp"
		}
		err = hook(network, "", rawDescriptor(fd))
	}
	if err == nil {
		err = s.preparePing(fd)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	if err := l.nat.ping.addSocket(k, s); err != nil {
		return nil, err
	}
	return s, nil
}

// preparePing sets the options and finds the identifier: a ping socket is given
// one by the kernel when it is bound, a raw one takes a random one and hears
// nothing else.
func (s *natSocket) preparePing(fd int) error {
	setOptions(uintptr(fd), udpOptions(s.v4)[1:]) // UDP_GRO comes first
	s.setDF(fd, true)
	if s.raw {
		var id [2]byte
		if _, err := rand.Read(id[:]); err != nil {
			return fmt.Errorf("choose a ping identifier: %w", err)
		}
		s.id = binary.BigEndian.Uint16(id[:])
		return os.NewSyscallError("filter a raw ICMP socket", s.attachFilter(fd))
	}
	var err error
	if s.v4 {
		err = unix.Bind(fd, &unix.SockaddrInet4{})
	} else {
		err = unix.Bind(fd, &unix.SockaddrInet6{})
	}
	if err != nil {
		return os.NewSyscallError("bind a ping socket", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname of a ping socket", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		s.id = uint16(name.Port)
	case *unix.SockaddrInet6:
		s.id = uint16(name.Port)
	}
	return nil
}

// attachFilter lets only echo replies of the socket's identifier through, by
// classic BPF: of all that reaches the host, nothing else wakes us.
func (s *natSocket) attachFilter(fd int) error {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(k uint32, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: no}
	}
	replyType := uint32(0)
	var program []unix.SockFilter
	if s.v4 {
		// X = length of the IP header, which raw IPv4 sockets see.
		program = append(program, stmt(unix.BPF_LDX|unix.BPF_B|unix.BPF_MSH, 0))
	} else {
		replyType = 129
		program = append(program, stmt(unix.BPF_LDX|unix.BPF_W|unix.BPF_IMM, 0))
	}
	program = append(program,
		stmt(unix.BPF_LD|unix.BPF_B|unix.BPF_IND, 0), jump(replyType, 3),
		stmt(unix.BPF_LD|unix.BPF_H|unix.BPF_IND, 4), jump(uint32(s.id), 1),
		stmt(unix.BPF_RET|unix.BPF_K, 0xffffffff),
		stmt(unix.BPF_RET|unix.BPF_K, 0),
	)
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog)
}
