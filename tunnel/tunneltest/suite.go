package tunneltest

import (
	"testing"

	"github.com/usernet/usernet/tunnel"
)

// TestDevice holds a device against the contract of tunnel.Device. open makes a
// device and its peer: what is written to one is read from the other.
func TestDevice(t *testing.T, open func(t *testing.T) (dev, peer tunnel.Device)) {
	t.Helper()
}
