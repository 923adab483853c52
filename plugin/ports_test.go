package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

func TestHostIPs(t *testing.T) {
	both, v4, v6 := families{v4: true, v6: true}, families{v4: true}, families{v6: true}
	for _, test := range []struct {
		hostIP string
		have   families
		want   string
	}{
		{"", both, "[0.0.0.0 ::]"},
		{"", v4, "[0.0.0.0]"},
		{"", v6, "[::]"},
		{"0.0.0.0", both, "[0.0.0.0]"},
		{"::", both, "[::]"},
		{"::ffff:127.0.0.1", v4, "[127.0.0.1]"},
		{"::1", both, "[::1]"},
		{"127.0.0.1", v6, "[127.0.0.1]"},
		{"::1", v4, "[::1]"},
	} {
		m := &portMapping{HostPort: 80, ContainerPort: 80, Protocol: "tcp", HostIP: test.hostIP}
		got, err := new(publishConf).hostIPs(m, test.have)
		if err != nil || fmt.Sprint(got) != test.want {
			t.Errorf("%q for %v: got %v, %v, want %s", test.hostIP, test.have, got, err, test.want)
		}
	}
}

// freePort returns a port that was free a moment ago, of either protocol.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestDefaultHostIP: it is for mappings that name none.
func TestDefaultHostIP(t *testing.T) {
	c := &publishConf{DefaultHostIP: netip.MustParseAddr("::1")}
	both := families{v4: true, v6: true}
	if got, err := c.hostIPs(&portMapping{}, both); err != nil || fmt.Sprint(got) != "[::1]" {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := c.hostIPs(&portMapping{HostIP: "0.0.0.0"}, both); err != nil || fmt.Sprint(got) != "[0.0.0.0]" {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := c.hostIPs(&portMapping{}, families{v4: true}); err != nil || fmt.Sprint(got) != "[::1]" {
		t.Errorf("got %v, %v", got, err)
	}
}

// listening opens mappings in mode listen, in the test's own namespace.
func listening(have families, mappings ...portMapping) (*opened, error) {
	return (&publisher{conf: publishConf{Mode: publishListen}}).open(context.Background(), mappings, have)
}

// TestListen: each family gets a socket of its own, that works from the
// descriptor.
func TestListen(t *testing.T) {
	for _, proto := range []string{"tcp", "udp"} {
		m := portMapping{HostPort: freePort(t), ContainerPort: 80, Protocol: proto}
		o, err := listening(families{v4: true, v6: true}, m)
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll(o.files)
		if len(o.specs) != 2 || len(o.files) != 2 || o.specs[0].HostIP.String() != "0.0.0.0" || o.specs[1].HostIP.String() != "::" || !o.specs[0].FD {
			t.Fatalf("%s: specs %+v", proto, o.specs)
		}
		if proto == "tcp" {
			for n, host := range []string{"127.0.0.1", "::1"} {
				l, err := net.FileListener(o.files[n])
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr(host), uint16(m.HostPort)).String())
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
			}
		}
	}
}

// TestListenInUse: the error names the port and who has it, and sockets that
// were opened before it are closed again.
func TestListenInUse(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	before := openFiles(t)
	both, v4 := families{v4: true, v6: true}, families{v4: true}
	_, err = listening(both, portMapping{HostPort: port, ContainerPort: 80, Protocol: "tcp"})
	wantError(t, err, ErrPortInUse, fmt.Sprint(port), "portMappings", "by another entry") // it is ours
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	busy := u.LocalAddr().(*net.UDPAddr).Port
	_, err = listening(v4, portMapping{HostPort: busy, ContainerPort: 80, Protocol: "udp", HostIP: "127.0.0.1"})
	wantError(t, err, ErrPortInUse, "/udp")
	// A port that is in use by UDP alone is free for TCP.
	o, err := listening(v4, portMapping{HostPort: busy, ContainerPort: 80, Protocol: "tcp", HostIP: "127.0.0.1"})
	if err != nil {
		t.Error(err)
	} else {
		closeAll(o.files)
	}
	_, err = listening(v4, portMapping{HostPort: freePort(t), ContainerPort: 80, Protocol: "tcp", HostIP: "192.0.2.1"})
	wantError(t, err, types.ErrInvalidNetworkConfig, "192.0.2.1", "not an address of this host")
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestListenWaitsForTheDead: a port that nobody can be seen to hold is free in a
// moment, or else is said to be taken.
func TestListenWaitsForTheDead(t *testing.T) {
	for name, closes := range map[string]bool{"closed": true, "kept": false} {
		t.Run(name, func(t *testing.T) {
			ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(ends[0])
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			at := l.Addr().(*net.TCPAddr).AddrPort()
			f, err := l.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			// The listener is in no process now, but on its way to one.
			if err := unix.Sendmsg(ends[0], []byte{0}, unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Close(), l.Close()); err != nil {
				t.Fatal(err)
			}
			if closes {
				time.AfterFunc(vacancyPatience/6, func() { unix.Close(ends[1]) })
			} else {
				defer unix.Close(ends[1])
			}
			got, err := openSocket(t.Context(), "tcp", at)
			switch {
			case closes && err != nil:
				t.Errorf("after its holder had gone: %v", err)
			case !closes && !errors.Is(err, unix.EADDRINUSE):
				t.Errorf("error %v, want %v", err, unix.EADDRINUSE)
			}
			if got != nil {
				got.Close()
			}
		})
	}
}
