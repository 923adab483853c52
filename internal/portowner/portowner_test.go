package portowner

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func TestOfFindsThisProcess(t *testing.T) {
	for _, tt := range []struct{ network, listen, ask string }{
		{"tcp", "127.0.0.1:0", "127.0.0.1"},
		{"tcp", "127.0.0.1:0", "0.0.0.0"},
		{"tcp", "[::1]:0", "::1"},
		{"tcp", "[::]:0", "127.0.0.1"},
		{"udp", "127.0.0.1:0", "127.0.0.1"},
		{"udp", "[::1]:0", "::"},
	} {
		t.Run(tt.network+" "+tt.listen+" asked for "+tt.ask, func(t *testing.T) {
			port, stop := listen(t, tt.network, tt.listen)
			defer stop()
			p, ok := Of(tt.network, netip.AddrPortFrom(netip.MustParseAddr(tt.ask), port))
			if !ok || p.PID != os.Getpid() || !strings.Contains(p.String(), "portowner") {
				t.Errorf("owner %v, %v; want this process, %d", p, ok, os.Getpid())
			}
		})
	}
}

func TestOfFindsNobody(t *testing.T) {
	port, stop := listen(t, "tcp", "127.0.0.1:0")
	for _, tt := range []struct {
		proto string
		addr  string
	}{{"udp", "127.0.0.1"}, {"tcp", "127.0.0.2"}} {
		if p, ok := Of(tt.proto, netip.AddrPortFrom(netip.MustParseAddr(tt.addr), port)); ok {
			t.Errorf("%s %s: %v holds what nobody holds", tt.proto, tt.addr, p)
		}
	}
	stop()
	if p, ok := Of("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)); ok {
		t.Errorf("%v still holds a closed port", p)
	}
}

func listen(t *testing.T, network, address string) (uint16, func()) {
	t.Helper()
	if network == "udp" {
		pc, err := net.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		return uint16(pc.LocalAddr().(*net.UDPAddr).Port), func() { pc.Close() }
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(ln.Addr().(*net.TCPAddr).Port), func() { ln.Close() }
}

func FuzzParseAddrPort(f *testing.F) {
	f.Add("0100007F:1F90")
	f.Add("00000000000000000000000001000000:0035")
	f.Add(":")
	f.Fuzz(func(t *testing.T, s string) {
		if a, ok := parseAddrPort(s); ok && !a.IsValid() {
			t.Errorf("%q parses to %v", s, a)
		}
	})
}

func TestParseAddrPort(t *testing.T) {
	for in, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000:0050":                         "0.0.0.0:80",
		"00000000000000000000000001000000:1F90": "[::1]:8080",
		"0000000000000000FFFF00000100007F:1F90": "127.0.0.1:8080",
	} {
		got, ok := parseAddrPort(in)
		if !ok || got.String() != want {
			t.Errorf("%s is %v, want %s", in, got, want)
		}
	}
	for _, bad := range []string{"", "0100007F", "01:50", "0100007F:XYZ", "zz00007F:1F90"} {
		if got, ok := parseAddrPort(bad); ok {
			t.Errorf("%q is %v, want a fault", bad, got)
		}
	}
}
