package portowner

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
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
	}{{"udp", "127.0.0.1"}, {"tcp", "127.0.0.2"}, {"tcp", "::"}, {"tcp", "::1"}} {
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

// TestAllTellsEverySocket: two sockets in the way, and two processes that hold
// one of them.
func TestAllTellsEverySocket(t *testing.T) {
	first, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	port := uint16(first.Addr().(*net.TCPAddr).Port)
	second, err := net.Listen("tcp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	inherited, err := second.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	heir := exec.Command("sleep", "60")
	heir.ExtraFiles = []*os.File{inherited}
	if err := heir.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		heir.Process.Kill()
		heir.Wait()
	}()
	if all := All("tcp", netip.AddrPortFrom(netip.IPv4Unspecified(), port)); len(all) != 2 || len(all[0])+len(all[1]) != 3 {
		t.Errorf("got %v, want two sockets, one of them held by %d as well", all, heir.Process.Pid)
	}
	if all := All("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)); len(all) != 1 || len(all[0]) != 1 || all[0][0].PID != os.Getpid() {
		t.Errorf("got %v, want one socket of this process", all)
	}
	if all := All("udp", netip.AddrPortFrom(netip.IPv4Unspecified(), port)); all != nil {
		t.Errorf("got %v of nobody", all)
	}
}
