package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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

// plan decides what the interface is to have, with the namespace locked.
func (a *adding) plan() error {
	a.made.routes = a.routes()
	if err := a.target.Do(func() error { return yieldRoutes(a.made.routes, a.params.IfName) }); err != nil {
		return err
	}
	var err error
	a.iface, err = kernelInterface(a.params.IfName, a.made.mtu, a.made.addrs, a.made.routes)
	if a.conf.tap() {
		a.iface.MAC = a.mac // whatever managers of the host's interfaces have done meanwhile
	}
	return err
}

// yieldRoutes gives routes of the current namespace's main table metrics that no
// other route to where they lead has, unless theirs was chosen. A container on
// several networks has the default route of eth0, that of eth1 when the first
// goes, and so on by the number at the end of the interface's name, whichever
// was attached first: go-cni attaches all at once. Among equal numbers the first
// stays.
func yieldRoutes(routes []*types.Route, ifName string) error {
	for _, r := range routes {
		if r.Priority != 0 || !inMainTable(r) {
			continue
		}
		dst, err := prefix(r.Dst)
		if err != nil {
			return err
		}
		taken, err := metrics(dst)
		if err != nil {
			return fmt.Errorf("list the routes to %v: %w", dst, err)
		}
		rank := 0
		if dst.Bits() == 0 {
			rank = interfaceRank(ifName)
		}
		r.Priority = freeMetric(dst, rank, taken)
	}
	return nil
}

// interfaceRank is the number at the end of a name, 0 without one.
func interfaceRank(name string) int {
	const most = 1000 // names are the runtime's
	n, err := strconv.Atoi(name[len(strings.TrimRight(name, "0123456789")):])
	if err != nil {
		return 0
	}
	return min(n, most) // fits: names have at most 15 bytes
}

// freeMetric returns the metric for a route to dst of an interface's rank, with 0
// for the kernel's own choice.
func freeMetric(dst netip.Prefix, rank int, taken []int) int {
	first := 0
	if dst.Addr().Is6() {
		first = 1024 // IP6_RT_PRIO_USER
	}
	metric := first + rank
	for slices.Contains(taken, metric) {
		metric++
	}
	if metric == first {
		return 0
	}
	return metric
}

// metrics returns the metrics of the main table's routes to dst.
func metrics(dst netip.Prefix) (taken []int, err error) {
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
			taken = append(taken, r.Priority)
		}
		return taken, err
	}
}
