package plugin

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestHostIPs(t *testing.T) {
	both, v4, v6 := families{v4: true, v6: true}, families{v4: true}, families{v6: true}
	for _, test := range []struct {
		hostIP string
		have   families
		want   string
		words  string
	}{
		{"", both, "[0.0.0.0 ::]", ""},
		{"", v4, "[0.0.0.0]", ""},
		{"", v6, "[::]", ""},
		{"0.0.0.0", both, "[0.0.0.0]", ""},
		{"::", both, "[::]", ""},
		{"::ffff:127.0.0.1", v4, "[127.0.0.1]", ""},
		{"::1", both, "[::1]", ""},
		{"127.0.0.1", v6, "", "it has IPv6"},
		{"::1", v4, "", "it has IPv4"},
	} {
		m := &portMapping{HostPort: 80, ContainerPort: 80, Protocol: "tcp", HostIP: test.hostIP}
		got, err := m.hostIPs(test.have)
		if test.words != "" {
			wantError(t, err, types.ErrInvalidNetworkConfig, test.words, test.hostIP)
		} else if err != nil || fmt.Sprint(got) != test.want {
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

// TestListen: each family gets a socket of its own, that works from the
// descriptor.
func TestListen(t *testing.T) {
	for _, proto := range []string{"tcp", "udp"} {
		m := &portMapping{HostPort: freePort(t), ContainerPort: 80, Protocol: proto}
		specs, files, err := m.listen(context.Background(), families{v4: true, v6: true})
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll(files)
		if len(specs) != 2 || len(files) != 2 || specs[0].HostIP.String() != "0.0.0.0" || specs[1].HostIP.String() != "::" || !specs[0].FD {
			t.Fatalf("%s: specs %+v", proto, specs)
		}
		if proto == "tcp" {
			for n, host := range []string{"127.0.0.1", "::1"} {
				l, err := net.FileListener(files[n])
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
	m := &portMapping{HostPort: port, ContainerPort: 80, Protocol: "tcp"}
	_, _, err = m.listen(context.Background(), families{v4: true, v6: true})
	wantError(t, err, ErrPortInUse, fmt.Sprint(port), "portMappings", "by another entry") // it is ours
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	m = &portMapping{HostPort: u.LocalAddr().(*net.UDPAddr).Port, ContainerPort: 80, Protocol: "udp", HostIP: "127.0.0.1"}
	_, _, err = m.listen(context.Background(), families{v4: true})
	wantError(t, err, ErrPortInUse, "/udp")
	m = &portMapping{HostPort: freePort(t), ContainerPort: 80, Protocol: "tcp", HostIP: "192.0.2.1"}
	_, _, err = m.listen(context.Background(), families{v4: true})
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
