package conform

import (
	"errors"
	"fmt"

	"github.com/usernet/usernet/internal/netns"
)

const sectionDel = "§2 DEL"

func delCases() []definition {
	return []definition{
		{name: "DEL/removes-interface", level: Must, section: sectionDel,
			summary: "DEL removes the interface from the container", run: delRemoves},
		{name: "DEL/leaves-nothing", level: Should, section: sectionDel,
			summary: "after DEL the host namespace has nothing that it had not before ADD",
			run: func(t *trial) error {
				return t.clean(func() error {
					a, err := t.attached()
					if err != nil {
						return err
					}
					return t.del(a)
				})
			}},
		{name: "DEL/prints-nothing", level: Should, section: sectionDel, once: true,
			summary: "a DEL that succeeds prints nothing",
			run: afterAdd(func(t *trial, a *attachment) error {
				return t.request("DEL", a).expect((*Call).silent)
			})},
		{name: "DEL/without-prevResult", level: Must, section: sectionDel,
			summary: "DEL succeeds without prevResult, and removes the interface",
			run: afterAdd(func(t *trial, a *attachment) error {
				if err := t.request("DEL", a).set(object{"prevResult": nil}).expect((*Call).succeeded); err != nil {
					return err
				}
				return t.settled(a.gone)
			})},
		{name: "DEL/interface-gone", level: Must, section: sectionDel,
			summary: "DEL succeeds when the interface is gone already",
			run: afterAdd(func(t *trial, a *attachment) error {
				if err := a.c.ns.Do(func() error { return netns.DeleteLink(a.ifName) }); err != nil {
					return err
				}
				return t.del(a)
			})},
		{name: "DEL/netns-missing", level: Must, section: sectionDel,
			summary: "DEL succeeds when the container's namespace is gone",
			run: afterAdd(func(t *trial, a *attachment) error {
				a.c.destroy()
				return t.del(a)
			})},
		{name: "DEL/netns-empty", level: Must, section: "§2 DEL (CNI_NETNS is optional); containerd and nerdctl do it on every start",
			summary: "DEL succeeds when CNI_NETNS is empty",
			run: afterAdd(func(t *trial, a *attachment) error {
				return t.request("DEL", a).setenv("CNI_NETNS", "").expect((*Call).succeeded)
			})},
		{name: "DEL/netns-unset", level: Must, section: "§2 DEL (CNI_NETNS is optional)", once: true,
			summary: "DEL succeeds when CNI_NETNS is not set",
			run: afterAdd(func(t *trial, a *attachment) error {
				return t.request("DEL", a).unset("CNI_NETNS").expect((*Call).succeeded)
			})},
		{name: "DEL/netns-empty-leaves-nothing", level: Should, section: "§2 DEL (to the fullest extent possible)", once: true,
			summary: "a DEL without namespace takes away what is on the host, once the namespace has ended", run: delEmptyClean},
		{name: "DEL/netns-no-namespace", level: Should, section: "§2 DEL (best effort); a path that was given out again", once: true,
			summary: "DEL succeeds when CNI_NETNS is no network namespace any more",
			run: afterAdd(func(t *trial, a *attachment) error {
				return t.request("DEL", a).setenv("CNI_NETNS", plainFile(t)).expect((*Call).succeeded)
			})},
		{name: "DEL/netns-replaced", level: Must, section: sectionDel, once: true,
			summary: "DEL succeeds when another namespace is at the path",
			run: func(t *trial) error {
				a, other, err := t.replaced(false)
				if err != nil {
					return err
				}
				return errors.Join(t.del(a), other.c.untouched())
			}},
		{name: "DEL/netns-replaced-spares", level: Should, section: "§3 (container and interface name identify an attachment)", once: true,
			summary: "when another container's namespace is at the path, DEL leaves that one's interface alone",
			run: func(t *trial) error {
				a, other, err := t.replaced(true)
				if err != nil {
					return err
				}
				if err := t.del(a); err != nil {
					return err
				}
				return t.alive(other)
			}},
		{name: "DEL/netns-own-spares", level: Should, section: "libcni's skel (error 8)", once: true,
			summary: "when CNI_NETNS is the plugin's own namespace, DEL leaves the host's interface of that name alone", run: delOwn},
	}
}

// afterAdd makes a case of what follows an ADD.
func afterAdd(then func(t *trial, a *attachment) error) func(t *trial) error {
	return func(t *trial) error {
		a, err := t.attached()
		if err != nil {
			return err
		}
		return then(t, a)
	}
}

func delRemoves(t *trial) error {
	a, err := t.attached()
	if err != nil {
		return err
	}
	if err := t.del(a); err != nil {
		return err
	}
	return t.settled(a.c.untouched)
}

func delEmptyClean(t *trial) error {
	return t.clean(func() error {
		a, err := t.attached()
		if err != nil {
			return err
		}
		if err := t.request("DEL", a).setenv("CNI_NETNS", "").expect((*Call).succeeded); err != nil {
			return err
		}
		a.c.destroy()
		return nil
	})
}

// replaced makes an attachment whose container has ended, and at whose path is
// another container, which is attached too if so wanted.
func (t *trial) replaced(attach bool) (a, other *attachment, err error) {
	if a, err = t.attached(); err != nil {
		return nil, nil, err
	}
	if other, err = t.fresh(); err != nil {
		return nil, nil, err
	}
	if attach {
		if _, err := t.add(other); err != nil {
			return nil, nil, err
		}
	}
	return a, other, a.c.replace(other.c)
}

// delOwn deletes with the plugin's own namespace as CNI_NETNS, in which the host
// has an interface that is called like the container's.
func delOwn(t *trial) error {
	a, err := t.attached()
	if err != nil {
		return err
	}
	n, err := t.occupy(t.host, a.ifName)
	if err != nil {
		return fmt.Errorf("an interface of the host's: %w", err)
	}
	t.undo.Add(func() { _ = t.host.Do(func() error { return netns.DeleteLink(a.ifName) }) })
	if _, err := t.request("DEL", a).setenv("CNI_NETNS", t.hostPath).run(); err != nil {
		return err
	}
	return still(t.host, a.ifName, n)
}
