package conform

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/usernet/usernet/internal/netns"
)

const sectionAdd = "§2 ADD"

func addCases() []definition {
	return []definition{
		{name: "ADD/makes-interface", level: Must, section: sectionAdd,
			summary: "ADD makes the interface CNI_IFNAME in CNI_NETNS, up and with the addresses of the result",
			run: func(t *trial) error {
				a, err := t.fresh()
				if err != nil {
					return err
				}
				res, err := t.add(a)
				if err != nil {
					return err
				}
				return a.has(res)
			}},
		{name: "ADD/longest-name", level: Must, section: "§2 Parameters, CNI_IFNAME", once: true,
			summary: "an interface name of 15 bytes is used as it is", run: named("fifteen-letters")},
		{name: "ADD/odd-name", level: Must, section: "§2 Parameters, CNI_IFNAME", once: true,
			summary: "an interface name with dots, underscores and capitals is used as it is", run: named("Net_1.x")},
		{name: "ADD/existing-interface", level: Must, section: sectionAdd,
			summary: "ADD fails when the container has an interface of the name, and leaves it alone", run: addExisting},
		{name: "ADD/rollback", level: Should, section: "§2 ADD; containerd ignores a failing DEL after a failed ADD", once: true,
			summary: "an ADD that fails leaves nothing on the host", run: addRollback},
		{name: "ADD/prevResult", level: Must, section: sectionAdd, since: "0.3.0",
			summary: "interfaces and addresses of a prevResult are in the result too", run: addPrevious},
		{name: "ADD/distinct-addresses", level: Must, section: "Overview (a network's endpoints are uniquely addressable)", once: true,
			summary: "two containers have no address in common", run: addDistinct},
		{name: "ADD/two-interfaces", level: Should, section: "§2 ADD (more than once, with a different interface name)", once: true,
			summary: "a container can be added to a network again with another interface name",
			run: func(t *trial) error {
				first, second, err := t.pairInOne()
				if skip, ok := errors.AsType[*unsupportedError](err); ok {
					return skip.err // here that is the case
				}
				if err != nil {
					return err
				}
				return errors.Join(t.alive(first), t.alive(second))
			}},
		{name: "ADD/empty-runtimeConfig", level: Must, section: "§3 Deriving request configuration", since: "0.4.0", once: true,
			summary: "empty objects runtimeConfig and args are accepted",
			run:     added(object{"runtimeConfig": object{}, "args": object{"cni": object{}}})},
		{name: "ADD/reserved-keys", level: Should, section: "§1 Reserved keys", since: "1.1.0", once: true,
			summary: "keys that begin with cni.dev/ are the runtime's, so an unknown one is no error",
			run:     added(object{"cni.dev/conform": object{"x": 1}})},
		{name: "ADD/unknown-args", level: Should, section: "CONVENTIONS, CNI_ARGS; containerd, podman and Nomad send it", once: true,
			summary: "CNI_ARGS that a plugin does not know are passed over when IgnoreUnknown is set",
			run: func(t *trial) error {
				a, err := t.fresh()
				if err != nil {
					return err
				}
				_, err = t.added(t.request("ADD", a).setenv("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web-0;CONFORM_X=1"))
				return err
			}},
		{name: "ADD/no-cniVersion", level: Should, section: "§3 (0.1.0: the key was optional)", until: "0.1.0", once: true,
			summary: "a configuration without cniVersion is one of version 0.1.0, and so is the result", run: addVersionless},
	}
}

// added makes a case of an ADD whose configuration has more keys.
func added(more object) func(t *trial) error {
	return func(t *trial) error {
		a, err := t.fresh()
		if err != nil {
			return err
		}
		_, err = t.added(t.request("ADD", a).set(more))
		return err
	}
}

// named makes a case of an ADD with an interface name.
func named(ifName string) func(t *trial) error {
	return func(t *trial) error {
		c, err := t.container()
		if err != nil {
			return err
		}
		a := t.in(c, ifName)
		res, err := t.add(a)
		if err != nil {
			return err
		}
		if err := a.has(res); err != nil {
			return err
		}
		return t.del(a)
	}
}

// pairInOne adds one container twice, under two interface names. If the second
// is refused, the case is not supported.
func (t *trial) pairInOne() (first, second *attachment, err error) {
	if first, err = t.attached(); err != nil {
		return nil, nil, err
	}
	second = t.in(first.c, "net1")
	if _, err = t.add(second); err != nil {
		return nil, nil, &unsupportedError{why: "a container cannot have two interfaces in one network", err: err}
	}
	return first, second, nil
}

// occupy puts an interface into a container that no plugin made, and returns
// the interface's index.
func (t *trial) occupy(ns *netns.Handle, name string) (int, error) {
	other, err := t.container()
	if err != nil {
		return 0, err
	}
	if err := netns.AddVeth(ns, other.ns, name, "far"); err != nil {
		return 0, err
	}
	return index(ns, name)
}

// index returns the index of an interface of a namespace.
func index(ns *netns.Handle, name string) (n int, err error) {
	err = ns.Do(func() error {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
		n = i.Index
		return nil
	})
	return n, err
}

// still is nil when the interface of that name is the one with the index.
func still(ns *netns.Handle, name string, want int) error {
	n, err := index(ns, name)
	if err == nil && n != want {
		err = fmt.Errorf("interface %s is another one than before", name)
	}
	return err
}

func addExisting(t *trial) error {
	a, err := t.fresh()
	if err != nil {
		return err
	}
	n, err := t.occupy(a.c.ns, a.ifName)
	if err != nil {
		return err
	}
	if err := t.request("ADD", a).expect((*Call).refused); err != nil {
		return err
	}
	return still(a.c.ns, a.ifName, n)
}

func addRollback(t *trial) error {
	a, err := t.fresh()
	if err != nil {
		return err
	}
	if _, err := t.occupy(a.c.ns, a.ifName); err != nil {
		return err
	}
	return t.clean(func() error { return t.request("ADD", a).expect((*Call).refused) })
}

// addPrevious gives a result of a plugin before this one in the chain, which has
// nothing to do with it.
func addPrevious(t *trial) error {
	a, err := t.fresh()
	if err != nil {
		return err
	}
	const before, addr = "before0", "192.0.2.77/32"
	ip := object{"address": addr, "interface": 0}
	if !atLeast(t.version, "1.0.0") {
		ip["version"] = "4"
	}
	res, err := t.added(t.request("ADD", a).set(object{"prevResult": object{
		"cniVersion": t.version,
		"interfaces": []object{{"name": before, "mac": "02:00:00:00:00:77"}},
		"ips":        []object{ip},
		"dns":        object{},
	}}))
	if err != nil {
		return err
	}
	n := slices.IndexFunc(res.Interfaces, func(i *ifResult) bool { return i.Name == before })
	if n < 0 {
		return fmt.Errorf("the result has lost the interface %s of prevResult: %s", before, compact(res.Interfaces))
	}
	for _, ip := range res.IPs {
		if ip.Address == addr && ip.Interface != nil && *ip.Interface == n {
			return res.hasIndices()
		}
	}
	return fmt.Errorf("the result has lost the address %s of prevResult, or its interface: %s", addr, compact(res.IPs))
}

func addDistinct(t *trial) error {
	seen := make(map[netip.Addr]string)
	for range 3 {
		a, err := t.fresh()
		if err != nil {
			return err
		}
		res, err := t.add(a)
		if err != nil {
			return err
		}
		if err := a.distinct(res, seen); err != nil {
			return err
		}
	}
	return nil
}

// distinct notes whose the addresses of a result are; one that is another's
// already is an error.
func (a *attachment) distinct(res *addResult, seen map[netip.Addr]string) error {
	addrs, err := res.addresses(a.c.path)
	if err != nil {
		return err
	}
	for _, p := range addrs {
		if owner := seen[p.Addr()]; owner != "" {
			return fmt.Errorf("container %s has the address %v of %s", a.c.id, p.Addr(), owner)
		}
		seen[p.Addr()] = a.c.id
	}
	return nil
}

func addVersionless(t *trial) error {
	a, err := t.fresh()
	if err != nil {
		return err
	}
	res, err := t.added(t.request("ADD", a).set(object{"cniVersion": nil}))
	if err != nil {
		return err
	}
	return errors.Join(res.hasVersion("0.1.0"), res.hasShape("0.1.0"))
}

// previous is the result of the attachment's ADD as an object to change.
func (a *attachment) previous() (object, error) {
	var o object
	err := json.Unmarshal(a.prev, &o)
	return o, err
}
