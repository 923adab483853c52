package daemon

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
)

// hostSocket is the host's end of a publication, opened by the caller.
type hostSocket struct {
	listener net.Listener
	packet   net.PacketConn
}

func (s hostSocket) close() {
	if s.listener != nil {
		_ = s.listener.Close() // it is given up; there is nothing to do about an error
	}
	if s.packet != nil {
		_ = s.packet.Close() // as above
	}
}

// port is the port that the socket is bound to.
func (s hostSocket) port() uint16 {
	var addr net.Addr
	if s.listener != nil {
		addr = s.listener.Addr()
	} else {
		addr = s.packet.LocalAddr()
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return 0 // agreesWith has parsed it
	}
	return ap.Port()
}

// adoptSocket checks that f is the socket that spec speaks of and takes a
// duplicate of it. f stays the caller's.
func adoptSocket(f *os.File, spec *control.PublicationSpec) (hostSocket, error) {
	if err := checkSocket(f, spec.Proto); err != nil {
		return hostSocket{}, control.Errorf(control.CodeDescriptor, "publication of port %d/%s: %v", spec.Port, spec.Proto, err)
	}
	var s hostSocket
	var addr net.Addr
	var err error
	if spec.Proto == "tcp" {
		if s.listener, err = net.FileListener(f); err == nil {
			addr = s.listener.Addr()
		}
	} else if s.packet, err = net.FilePacketConn(f); err == nil {
		addr = s.packet.LocalAddr()
	}
	if err != nil {
		return hostSocket{}, control.Errorf(control.CodeDescriptor, "publication of port %d/%s: %v", spec.Port, spec.Proto, err)
	}
	if err := agreesWith(addr, spec); err != nil {
		s.close()
		return hostSocket{}, control.Errorf(control.CodeDescriptor, "publication of port %d/%s: %v", spec.Port, spec.Proto, err)
	}
	return s, nil
}

// checkSocket holds a descriptor against what the protocol needs: a listening
// TCP socket, or a bound UDP socket that is not connected.
func checkSocket(f *os.File, proto string) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = socketFault(int(fd), proto) })
	return errors.Join(cerr, err)
}

func socketFault(fd int, proto string) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("the descriptor is no socket: %w", err)
	}
	if domain != unix.AF_INET && domain != unix.AF_INET6 {
		return fmt.Errorf("the socket is of family %d, want IPv4 or IPv6", domain)
	}
	wantProto, name := unix.IPPROTO_TCP, "TCP"
	if proto == "udp" {
		wantProto, name = unix.IPPROTO_UDP, "UDP"
	}
	got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return fmt.Errorf("read the socket's protocol: %w", err)
	}
	// Go listens with MPTCP by default, which serves plain TCP as well.
	if got != wantProto && !(proto == "tcp" && got == unix.IPPROTO_MPTCP) {
		return fmt.Errorf("the socket is not a %s one (protocol %d)", name, got)
	}
	if proto == "udp" {
		if _, err := unix.Getpeername(fd); !errors.Is(err, unix.ENOTCONN) {
			return errors.New("the UDP socket is connected, it would hear one peer only")
		}
		return nil
	}
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return fmt.Errorf("read whether the socket listens: %w", err)
	}
	if listening == 0 {
		return errors.New("the TCP socket does not listen")
	}
	return nil
}

// agreesWith holds the socket's address against the one that the request
// names, so that what is reported is what is open.
func agreesWith(addr net.Addr, spec *control.PublicationSpec) error {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return fmt.Errorf("the socket's address %v: %w", addr, err)
	}
	if ap.Port() == 0 {
		return fmt.Errorf("the socket is bound to no port")
	}
	if spec.HostPort != 0 && ap.Port() != spec.HostPort && !spec.Redirect {
		return fmt.Errorf("the socket is bound to port %d, the request says %d", ap.Port(), spec.HostPort)
	}
	got := ap.Addr().Unmap()
	// A dual-stack socket on [::] is what Go opens for 0.0.0.0 as well.
	if want := spec.HostIP; want.IsValid() && got != want && !(got.IsUnspecified() && want.IsUnspecified()) {
		return fmt.Errorf("the socket is bound to %v, the request says %v", got, want)
	}
	return nil
}
