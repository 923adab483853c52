package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/tunnel"
)

// makeDevice makes the TUN or TAP, marked with whose it is: in the container's
// namespace, where the daemon may see that end, and else outside.
func (a *adding) makeDevice(context.Context) error {
	a.undo.Add(a.deleteDevice)
	if a.request.Pinned = mayPin(a.request.NetnsPath); a.request.Pinned {
		return a.createDevice(a.target, a.params.IfName)
	}
	return a.sendDevice()
}

// mayPin reports whether the daemon may see the end of a namespace by its path,
// which it judges when it attaches. Paths of a process end with that, unseen.
func mayPin(path string) bool {
	return path != "" && !strings.HasPrefix(path, "/proc/")
}

// createDevice makes the device in a namespace; an empty name leaves it to the
// kernel.
func (a *adding) createDevice(where *netns.Handle, name string) error {
	options := tunnel.Options{
		Name: name, MTU: a.conf.MTU, TAP: a.conf.tap(), Alias: linkAlias(a.key()), QueueLen: queueLen(a.conf.bandwidth()),
	}
	if options.TAP {
		options.MAC = a.mac
	}
	err := where.Do(func() (err error) {
		a.tun, err = tunnel.Create(options)
		return err
	})
	switch {
	case name != "" && errors.Is(err, fs.ErrExist):
		return a.nameTaken()
	case err != nil:
		return fail(ErrDevice, "%v; the plugin needs /dev/net/tun (modprobe tun) and CAP_NET_ADMIN", err)
	}
	return nil
}

// sendDevice makes the device in the plugin's own namespace and sends it into
// the container's. That takes longer than all other steps together, and none of
// them needs it before the addresses are set.
func (a *adding) sendDevice() error {
	if err := a.checkName(); err != nil {
		return err
	}
	if err := a.createDevice(a.own, ""); err != nil {
		return err
	}
	name, err := tunnel.Name(a.tun)
	if err != nil {
		return fail(ErrDevice, "name of the new device: %v", err)
	}
	a.moved = inBackground(func() error { // on another thread than this
		return a.own.Do(func() error { return netns.Move(a.target, name, a.params.IfName) })
	})
	return nil
}

// checkName refuses a name that the container has already, before the move does
// after everything else.
func (a *adding) checkName() error {
	return a.target.Do(func() error {
		_, err := netlink.LinkByName(a.params.IfName)
		var none netlink.LinkNotFoundError
		switch {
		case errors.As(err, &none):
			return nil
		case err != nil:
			return fmt.Errorf("look for interface %s in %s: %w", a.params.IfName, a.params.Netns, err)
		}
		return a.nameTaken()
	})
}

// unpin replaces a device that the daemon would not see end by one that comes
// from outside.
func (a *adding) unpin() error {
	a.deleteDevice()
	a.tun.Close()
	a.tun, a.request.Pinned = nil, false
	return a.sendDevice()
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
	if a.moved == nil {
		return nil // it was made there
	}
	err := a.moved()
	if errors.Is(err, netns.ErrExists) {
		return a.nameTaken()
	}
	if err != nil {
		return fmt.Errorf("move the device into CNI_NETNS=%q as %s: %w", a.params.Netns, a.params.IfName, err)
	}
	return nil
}

// deleteDevice takes makeDevice back. It asks the descriptor for namespace and
// name: what bears a name that the device once had may be another plugin's.
func (a *adding) deleteDevice() {
	if a.tun == nil {
		return
	}
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
