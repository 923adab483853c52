package daemon

import (
	"context"
	"net/netip"

	"github.com/usernet/usernet/internal/netns"
)

// followHost keeps every switch's knowledge of the host's addresses current.
// It ends with ctx; serve waits for it.
func (d *Daemon) followHost(ctx context.Context) {
	err := netns.Watch(ctx, d.setHostAddrs)
	if ctx.Err() == nil {
		// The switches keep what they know, which is what the host had.
		d.log.Error("host addresses are not followed any more", "err", err)
	}
}

func (d *Daemon) setHostAddrs(addrs, broadcasts []netip.Addr) {
	d.mu.Lock()
	d.hostKnown, d.hostAddrs, d.hostBroadcasts = true, addrs, broadcasts
	for _, n := range d.networks {
		n.sw.SetHostAddrs(addrs, broadcasts) // swaps a pointer
	}
	d.mu.Unlock()
	d.log.Debug("host addresses", "addrs", addrs)
}
