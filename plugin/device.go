package plugin

import (
	"context"
	"errors"
	"fmt"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/tunnel"
)

// sendDevice makes the TUN or TAP in the plugin's own namespace, marked with
// whose it is, and sends it into the container's. That takes longer than all
// other steps together, and none of them needs it before the addresses are set.
func (a *adding) sendDevice(context.Context) error {
	options := tunnel.Options{MTU: a.conf.MTU, TAP: a.conf.tap(), Alias: linkAlias(a.key())}
	if options.TAP {
		options.MAC = a.mac
	}
	var err error
	if a.tun, err = tunnel.Create(options); err != nil {
		return fail(ErrDevice, "%v; the plugin needs /dev/net/tun (modprobe tun) and CAP_NET_ADMIN", err)
	}
	a.undo.Add(a.deleteDevice)
	name, err := tunnel.Name(a.tun)
	if err != nil {
		return fail(ErrDevice, "name of the new device: %v", err)
	}
	a.moved = inBackground(func() error { // on another thread than this
		return a.own.Do(func() error { return netns.Move(a.target, name, a.params.IfName) })
	})
	return nil
}

// inBackground runs fn in a goroutine, which ends with fn, and returns a function
// that waits for it and returns its error.
func inBackground(fn func() error) (wait func() error) {
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = fn()
	}()
	return func() error {
		<-done
		return err
	}
}

// awaitDevice waits until the device is in the container.
func (a *adding) awaitDevice(context.Context) error {
	err := a.moved()
	if errors.Is(err, netns.ErrExists) {
		return a.nameTaken()
	}
	if err != nil {
		return fmt.Errorf("move the device into CNI_NETNS=%q as %s: %w", a.params.Netns, a.params.IfName, err)
	}
	return nil
}

// deleteDevice takes sendDevice back. It asks the descriptor for namespace and
// name: what bears a name that the device once had may be another plugin's.
func (a *adding) deleteDevice() {
	if a.moved != nil {
		_ = a.moved() // told by the step "move", if it came to that
	}
	where := a.own
	inode, err := tunnel.NetnsInode(a.tun)
	if errors.Is(err, tunnel.ErrGone) {
		return
	}
	if inode == a.target.Inode() {
		where = a.target
	}
	name, nameErr := tunnel.Name(a.tun)
	if err = errors.Join(err, nameErr); err == nil {
		err = where.Do(func() error { return netns.DeleteLink(name) })
	}
	if err != nil {
		fmt.Fprintf(a.Stderr, "usernet-cni: undo: delete the device of %s: %v\n", a.key(), err)
	}
}
