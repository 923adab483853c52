package tunnel_test

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

// awaitNoLinks waits until a namespace has no interface but lo.
func awaitNoLinks(t *testing.T, ns *netns.Handle) {
	t.Helper()
	nstest.WaitFor(t, 5*time.Second, func() bool { return len(interfaces(t, ns)) == 0 })
}

// TestNetnsCloseDoesNotWaitForTheKernel: closing the last descriptor of a TUN
// takes the kernel an RCU barrier, no less than two ticks, for which Close does
// not wait.
func TestNetnsCloseDoesNotWaitForTheKernel(t *testing.T) {
	ns := nstest.NewNS(t)
	quickest := time.Hour // of several: the machine may be busy
	for range 10 {
		dev, err := tunnel.Open(createIn(t, ns, tunnel.Options{}), 0)
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() {
			_, err := tunneltest.ReadFrame(dev)
			read <- err
		}()
		began := time.Now()
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
		quickest = min(quickest, time.Since(began))
		if err := <-read; !errors.Is(err, os.ErrClosed) {
			t.Errorf("ReadFrame = %v, want os.ErrClosed", err)
		}
		if err := dev.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("second Close = %v, want os.ErrClosed", err)
		}
		awaitNoLinks(t, ns)
	}
	if quickest > 3*time.Millisecond {
		t.Errorf("Close takes no less than %v", quickest)
	}
}

// TestNetnsManyClosesAtOnce: beyond those in the background, closes are waited
// for, and none leaves a device or a descriptor.
func TestNetnsManyClosesAtOnce(t *testing.T) {
	ns := nstest.NewNS(t)
	before := openFiles(t)
	var devices []tunnel.Device
	for range 40 {
		dev, err := tunnel.Open(createIn(t, ns, tunnel.Options{}), 0)
		if err != nil {
			t.Fatal(err)
		}
		devices = append(devices, dev)
	}
	var all sync.WaitGroup
	for _, dev := range devices {
		all.Go(func() {
			if err := dev.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	awaitNoLinks(t, ns)
	awaitFiles(t, before)
}
