package daemon

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
)

// TestNetnsAttachTAP: the link tells its device and the MAC address that it was
// given or has, and the addresses that it leased are not answered for.
func TestNetnsAttachTAP(t *testing.T) {
	r := start(t, testConfig(t))
	has := net.HardwareAddr{2, 0xc0, 0xff, 0xee, 0, 7}
	for _, asked := range []string{"", "02:C0:FF:EE:00:08"} {
		f := tapFile(t, has)
		req := request("box")
		req.Device, req.MAC = control.DeviceTAP, asked
		a, err := r.Attach(t.Context(), req, f)
		if err != nil {
			t.Fatal(err)
		}
		want := has.String()
		if asked != "" {
			want = strings.ToLower(asked)
		}
		l, err := r.Link(t.Context(), req.Key())
		if err != nil || l.Device != control.DeviceTAP || l.MAC != want {
			t.Errorf("device %q, MAC %q, %v; want tap, %s", l.Device, l.MAC, err, want)
		}
		a.Close()
		if _, err := r.Detach(t.Context(), req.Key()); err != nil {
			t.Error(err)
		}
	}
	attach(t, r.Client, request("tun"))
	if l, err := r.Links(t.Context(), "tun"); err != nil || l[0].Device != control.DeviceTUN || l[0].MAC != "" {
		t.Errorf("a TUN: %+v, %v", l, err)
	}
}

// tapFile makes a TAP in the test's own namespace.
func tapFile(t *testing.T, mac net.HardwareAddr) *os.File {
	t.Helper()
	nstest.Require(t)
	f, err := tunnel.Create(tunnel.Options{TAP: true, MAC: mac})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestNetnsAttachRefusesDevices: a kind that is none, an address that nobody can
// have, and a descriptor of the other kind leave no trace.
func TestNetnsAttachRefusesDevices(t *testing.T) {
	r := start(t, testConfig(t))
	attach(t, r.Client, request("keep")) // makes the network
	tun, _ := tunFile(t)
	tap := tapFile(t, nil)
	before := r.world(t)
	for _, test := range []struct {
		device, mac string
		file        *os.File
		code        control.Code
		says        []string
	}{
		{"veth", "", tun, control.CodeInvalid, []string{`"veth"`, `"tun"`, `"tap"`}},
		{"", "02:00:00:00:00:01", tun, control.CodeInvalid, []string{"02:00:00:00:00:01", "TAP"}},
		{"tap", "02:00", tap, control.CodeInvalid, []string{`"02:00"`, "six bytes"}},
		{"tap", "01:00:00:00:00:01", tap, control.CodeInvalid, []string{"01:00:00:00:00:01", "group"}},
		{"tap", "00:00:00:00:00:00", tap, control.CodeInvalid, []string{"00:00:00:00:00:00"}},
		{"tap", tunnel.DefaultGatewayMAC.String(), tap, control.CodeInvalid, []string{"gateway"}},
		{"tap", "", tun, control.CodeDescriptor, []string{"not a usable TAP", "a TUN device"}},
		{"tap", "02:00:00:00:00:01", tun, control.CodeDescriptor, []string{"not a usable TAP", "a TUN device"}},
		{"tun", "", tap, control.CodeDescriptor, []string{"not a usable TUN", "a TAP device"}},
	} {
		req := request("box")
		req.Device, req.MAC = test.device, test.mac
		_, err := r.Attach(t.Context(), req, test.file)
		wantCode(t, err, test.code)
		for _, s := range test.says {
			if err == nil || !strings.Contains(err.Error(), s) {
				t.Errorf("%s %s: error %v does not say %q", test.device, test.mac, err, s)
			}
		}
	}
	if d := cmp.Diff(before, r.world(t)); d != "" {
		t.Errorf("refused attaches changed the world:\n%s", d)
	}
}
