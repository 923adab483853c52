package netns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// HostAddrs returns all addresses of the current namespace's interfaces, and
// the IPv4 broadcast addresses among their subnets, each sorted and without
// duplicates.
func HostAddrs() (addrs, broadcasts []netip.Addr, err error) {
	list, err := listAddresses(nil)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, ip.Unmap())
		}
		if ip, ok := netip.AddrFromSlice(a.Broadcast); ok {
			broadcasts = append(broadcasts, ip.Unmap())
		}
	}
	return unique(addrs), unique(broadcasts), nil
}

func unique(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// Watch calls fn with what [HostAddrs] returns, once at the start and again
// after every change, until ctx ends; it then returns ctx's error. Calls do not
// overlap, and changes in quick succession may be told in one. It returns
// earlier only when the kernel cannot be asked.
func Watch(ctx context.Context, fn func(addrs, broadcasts []netip.Addr)) error {
	w := watcher{fn: fn}
	for {
		if err := w.follow(ctx); err != nil {
			return fmt.Errorf("watch host addresses: %w", err)
		}
	}
}

// watcher is one Watch.
type watcher struct {
	fn                func(addrs, broadcasts []netip.Addr)
	told              bool
	addrs, broadcasts []netip.Addr
}

// follow subscribes to changes and tells them. It returns nil when the
// subscription broke, as it does when the kernel had no room for a message: the
// next one begins with a look at everything, so nothing is missed.
func (w *watcher) follow(ctx context.Context) error {
	updates, done := make(chan netlink.AddrUpdate), make(chan struct{})
	if err := netlink.AddrSubscribe(updates, done); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	defer func() {
		close(done)
		for range updates { // until the library's reader has ended
		}
	}()
	for {
		if err := w.tell(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-updates:
			if !ok {
				return nil
			}
		}
	}
}

// tell calls fn if anything has changed since the last call.
func (w *watcher) tell() error {
	addrs, broadcasts, err := HostAddrs()
	if err != nil {
		return err
	}
	if w.told && slices.Equal(addrs, w.addrs) && slices.Equal(broadcasts, w.broadcasts) {
		return nil
	}
	w.told, w.addrs, w.broadcasts = true, addrs, broadcasts
	w.fn(slices.Clone(addrs), slices.Clone(broadcasts))
	return nil
}
