package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
)

// lockPatience bounds the wait for another ADD of the same container: go-cni
// attaches a container's networks all at once, although the specification wants
// them one after the other. The lock is held for some 20 ms, most of which the
// kernel takes to move a device; runtimes give an ADD minutes.
const lockPatience = 30 * time.Second

// lockNetns keeps other plugins' processes out of a container's configuration
// until unlockNetns or until the handle is closed. The lock is on the namespace
// itself, so that it is one whichever path leads there.
func lockNetns(ctx context.Context, target *netns.Handle) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lockPatience, errors.New("another ADD holds it"))
	defer cancel()
	wait := time.Millisecond
	for {
		err := flock(target, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return fail(types.ErrTryAgainLater, "lock %v: %v", target, context.Cause(ctx))
		case <-time.After(wait):
			wait = min(2*wait, 20*time.Millisecond)
		}
	}
}

// unlockNetns lets the next ADD in.
func unlockNetns(target *netns.Handle) error { return flock(target, unix.LOCK_UN) }

func flock(target *netns.Handle, how int) error {
	conn, err := target.File().SyscallConn()
	if err != nil {
		return fmt.Errorf("lock %v: %w", target, err)
	}
	var ferr error
	err = conn.Control(func(fd uintptr) { ferr = unix.Flock(int(fd), how) })
	if err = errors.Join(err, ferr); err != nil {
		return fmt.Errorf("lock %v: flock: %w", target, err)
	}
	return nil
}

// yieldRoutes gives routes of the current namespace's main table that lead
// where others lead already a worse metric than those have. A container on two
// networks keeps the default route of its first, as with the reference plugins,
// and, unlike with those, has the second's when the first goes.
func yieldRoutes(routes []*types.Route) error {
	for _, r := range routes {
		dst, err := prefix(r.Dst)
		if err != nil {
			return err
		}
		worst, found, err := worstMetric(dst)
		if err != nil {
			return fmt.Errorf("list the routes to %v: %w", dst, err)
		}
		if found {
			r.Priority = worst + 1
		}
	}
	return nil
}

// worstMetric returns the highest metric of the main table's routes to dst.
func worstMetric(dst netip.Prefix) (worst int, found bool, err error) {
	family, n := netlink.FAMILY_V6, ipNet(dst)
	if dst.Addr().Is4() {
		family = netlink.FAMILY_V4
	}
	filter := &netlink.Route{Dst: &n, Table: unix.RT_TABLE_MAIN}
	for {
		//nolint:forbidigo // asks again itself, below
		routes, err := netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue // routes change while we read: somebody else is at work here
		}
		for _, r := range routes {
			worst, found = max(worst, r.Priority), true
		}
		return worst, found, err
	}
}
