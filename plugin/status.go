package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
)

// status carries out STATUS: could an ADD succeed now? A daemon that is not
// there is started, as an ADD would; that it then answers is the proof.
func (i *invocation) status(ctx context.Context) error {
	if err := tunUsable(); err != nil {
		return err
	}
	if err := i.daemonStatus(ctx); err != nil {
		return err
	}
	d, err := i.ipam()
	if err != nil {
		return err
	}
	return d.run(ctx, cmdStatus)
}

// daemonStatus reports whether the daemon could serve an ADD to the network.
func (i *invocation) daemonStatus(ctx context.Context) error {
	// Before a daemon is started at its place. Leases outlive a killed daemon.
	stale := i.conf.HostLocal == nil && i.staleSocket()
	var reply control.StatusReply
	err := i.withDaemon(ctx, func(ctx context.Context) error {
		var err error
		reply, err = i.client.Status(ctx, i.conf.Name)
		return err
	})
	if err != nil {
		return unavailable(err, stale)
	}
	for _, p := range reply.Problems {
		if p.Blocks {
			return fail(ErrNotAvailable, "network %s cannot be attached to: %s", i.conf.Name, p.Message)
		}
	}
	return nil
}

// unavailable tells the two kinds of absence apart. A daemon that ends in
// order removes its socket; one that left it behind was killed, and the
// containers whose descriptors it held are cut off.
func unavailable(err error, stale bool) error {
	cni := asCNI(err)
	if stale {
		return types.NewError(ErrLimitedConnectivity, fmt.Sprintf(
			"%s; the socket of a daemon that was killed is still there, so that containers attached before are cut off", cni.Msg), cni.Details)
	}
	return types.NewError(ErrNotAvailable, cni.Msg, cni.Details)
}

// staleSocket reports whether the socket's file is there and nobody listens.
func (i *invocation) staleSocket() bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return errors.Is(unix.Connect(fd, &unix.SockaddrUnix{Name: i.socket()}), unix.ECONNREFUSED)
}

// tunUsable reports whether an ADD could open the device that TUNs come from.
func tunUsable() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fail(ErrNotAvailable, "no TUN can be made: %v; load the module (modprobe tun), or allow the device", err)
	}
	return f.Close()
}
