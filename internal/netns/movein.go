package netns

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

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
	m := mover{origin: origin, target: target, from: from, transit: transitName()}
	m.before = before
	if err := m.undo.unless(m.run(cfg)); err != nil {
		return fmt.Errorf("move interface %s into %v: %w", from, target, err)
	}
	return nil
}

// mover is one MoveIn.
type mover struct {
	job
	origin, target *Handle
	// The interface travels under a name that neither namespace has: the
	// kernel refuses to move one whose name the target has.
	from, transit string
}

func (m *mover) run(cfg Interface) error {
	err := m.do("rename "+m.from+" for the way", func() (func() error, error) {
		return func() error { return rename(m.transit, m.from) }, rename(m.from, m.transit)
	})
	if err != nil {
		return err
	}
	err = m.do("move", func() (func() error, error) {
		return m.moveBack, send(m.transit, m.target)
	})
	if err != nil {
		return err
	}
	return m.target.Do(func() error {
		inside := job{before: m.before}
		return inside.undo.unless(m.settle(&inside, cfg))
	})
}

// settle does what is to be done in the target.
func (m *mover) settle(j *job, cfg Interface) error {
	err := j.do("rename to "+cfg.Name, func() (func() error, error) {
		return func() error { return rename(cfg.Name, m.transit) }, rename(m.transit, cfg.Name)
	})
	if err != nil {
		return err
	}
	return j.configure(cfg)
}

func (m *mover) moveBack() error {
	return m.target.Do(func() error { return send(m.transit, m.origin) })
}

// transitName returns a name that no other interface has.
func transitName() string {
	var b [6]byte
	rand.Read(b[:]) // never fails
	return "un" + hex.EncodeToString(b[:])
}

// rename renames an interface of the current namespace, which must be down.
func rename(from, to string) error {
	link, err := lookUp(from)
	if err != nil {
		return err
	}
	err = netlink.LinkSetName(link, to)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: %w", to, ErrExists)
	}
	return err
}

// send moves an interface of the current namespace into another.
func send(name string, to *Handle) error {
	link, err := lookUp(name)
	if err != nil {
		return err
	}
	return to.control(func(fd int) error { return netlink.LinkSetNsFd(link, fd) })
}

// lookUp finds an interface of the current namespace by its name.
func lookUp(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	return link, nil
}
