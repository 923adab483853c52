package netns_test

import (
	"errors"
	"testing"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// TestNetnsUnpaced: a namespace that would pace TCP by its default stops doing so,
// where that is wanted; what somebody chose besides stays, and so does everything
// when a later step fails.
func TestNetnsUnpaced(t *testing.T) {
	nstest.RequireBBR(t)
	const key = "ipv4/tcp_congestion_control"
	errLater := errors.New("later")
	for _, tt := range []struct {
		was     string
		unpaced bool
		fails   error
		want    string
	}{
		{"bbr", true, nil, "reno"},
		{"bbr", false, nil, "bbr"},
		{"reno", true, nil, "reno"},
		{"bbr", true, errLater, "bbr"},
	} {
		ns := nstest.NewNS(t)
		newTUN(t, ns, "eth0")
		cfg := containerInterface()
		cfg.Unpaced = tt.unpaced
		got := ""
		err := ns.Do(func() error {
			if err := netns.SetSysctl(key, tt.was); err != nil {
				return err
			}
			err := netns.ConfigureBefore(cfg, func(step string) error {
				if step == "bring up" {
					return tt.fails
				}
				return nil
			})
			var readErr error
			got, readErr = netns.Sysctl(key)
			return errors.Join(err, readErr)
		})
		if !errors.Is(err, tt.fails) || got != tt.want {
			t.Errorf("%+v: %q, %v", tt, got, err)
		}
	}
}
