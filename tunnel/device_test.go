package tunnel_test

import (
	"testing"

	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

// silent is an interface without addresses: the container's kernel answers
// nothing and says nothing by itself.
var silent = netns.Interface{Name: "eth0", MTU: 1500}

func TestNetnsTUNIsADevice(t *testing.T) {
	tunneltest.TestDevice(t, func(t *testing.T) (dev, peer tunnel.Device) {
		ns := nstest.NewNS(t)
		return nstest.TUN(t, ns, silent), newPacketSocket(t, ns, "eth0")
	})
}

func TestNetnsTAPIsADevice(t *testing.T) {
	tunneltest.TestDevice(t, func(t *testing.T) (dev, peer tunnel.Device) {
		ns := nstest.NewNS(t)
		return nstest.TAP(t, ns, silent), newPacketSocket(t, ns, "eth0")
	})
}

func TestWrappedWireguardPairIsADevice(t *testing.T) {
	for name, batch := range map[string]int{"Single": 1, "Batch": 8} {
		t.Run(name, func(t *testing.T) {
			tunneltest.TestDevice(t, func(t *testing.T) (dev, peer tunnel.Device) {
				a, b := tunneltest.WireguardPair(1420, batch)
				return wrap(t, a), wrap(t, b)
			})
		})
	}
}

func TestNetnsWrappedWireguardTUNIsADevice(t *testing.T) {
	tunneltest.TestDevice(t, func(t *testing.T) (dev, peer tunnel.Device) {
		ns := nstest.NewNS(t)
		var native wgtun.Device
		nstest.In(t, ns, func() (err error) {
			if native, err = wgtun.CreateTUN("eth0", 1500); err != nil {
				return err
			}
			if dev, err = tunnel.Wrap(native); err != nil { // reads the MTU
				return err
			}
			return netns.Configure(silent)
		})
		return dev, newPacketSocket(t, ns, "eth0")
	})
}

func wrap(t *testing.T, d wgtun.Device) tunnel.Device {
	t.Helper()
	w, err := tunnel.Wrap(d)
	if err != nil {
		t.Fatal(err)
	}
	return w
}
