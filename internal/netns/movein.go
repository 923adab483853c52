package netns

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Move sends the interface called from of the current namespace into target and
// calls it to there, where it arrives down and without addresses. On error it is
// where it was. It takes the kernel some 14 ms, twice that on a busy machine,
// most of which it waits until all RCU callbacks have run
// (__dev_change_net_namespace of net/core/dev.c), holding the lock that all
// changes of interfaces need.
//
// Errors match [ErrExists] when to is taken in target, and *StepError.
func Move(target *Handle, from, to string) error {
	origin, err := Current()
	if err != nil {
		return fmt.Errorf("move interface %s: %w", from, err)
	}
	defer origin.Close()
	m := mover{origin: origin, target: target, from: from, to: to}
	if err := m.move(); err != nil {
		return fmt.Errorf("move interface %s into %v: %w", from, target, err)
	}
	return nil
}

// MoveIn moves the interface called from out of the current namespace into
// target, gives it the name cfg.Name there and configures it as [Configure]
// does. On error the interface is back in the current namespace under its old
// name, down, and target is as it was.
//
// Errors match [ErrInvalid], [ErrExists] when cfg.Name is taken in target, and
// *StepError, which names the step.
func MoveIn(target *Handle, from string, cfg Interface) error {
	return moveIn(target, from, cfg, nil)
}

func moveIn(target *Handle, from string, cfg Interface, before func(string) error) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("move interface %s into %v: %w", from, target, err)
	}
	origin, err := Current()
	if err != nil {
		return fmt.Errorf("move interface %s: %w", from, err)
	}
	defer origin.Close()
	m := mover{origin: origin, target: target, from: from, to: cfg.Name}
	m.before = before
	if err := m.undo.unless(m.run(cfg)); err != nil {
		return fmt.Errorf("move interface %s into %v: %w", from, target, err)
	}
	return nil
}

// mover is one Move or MoveIn.
type mover struct {
	job
	origin, target *Handle
	from, to       string // the interface's names here and there
}

func (m *mover) run(cfg Interface) error {
	if err := m.move(); err != nil {
		return err
	}
	return m.target.Do(func() error {
		inside := job{before: m.before}
		return inside.undo.unless(inside.configure(cfg))
	})
}

func (m *mover) move() error {
	return m.do("move "+m.from+" as "+m.to, func() (func() error, error) {
		back := func() error {
			return m.target.Do(func() error { return send(m.to, m.origin, m.from) })
		}
		return back, m.there()
	})
}

// there moves the interface. The kernel renames it when it has arrived: where
// that fails for the name, it comes back.
func (m *mover) there() error {
	err := send(m.from, m.target, m.to)
	if err == nil {
		return nil
	}
	var back error
	if _, here := lookUp(m.from); here != nil {
		back = m.target.Do(func() error { return send(m.from, m.origin, m.from) })
	}
	var none netlink.LinkNotFoundError
	if errors.As(back, &none) { // it never was
		back = nil
	}
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%s: %w", m.to, ErrExists)
	}
	return errors.Join(err, back)
}

// send moves an interface of the current namespace into another and names it
// there, in one message: it travels under the new name where the other has one
// of the old.
func send(from string, to *Handle, name string) error {
	link, err := lookUp(from)
	if err != nil {
		return err
	}
	return to.control(func(fd int) error {
		req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(link.Attrs().Index)
		req.AddData(msg)
		req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(fd))))
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// lookUp finds an interface of the current namespace by its name.
func lookUp(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	return link, nil
}
