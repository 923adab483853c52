package conform

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/netns"
)

const (
	sectionCheck = "§2 CHECK"
	checkSince   = "0.4.0"
)

func checkCases() []definition {
	return []definition{
		{name: "CHECK/after-ADD", level: Must, section: sectionCheck, since: checkSince,
			summary: "CHECK succeeds right after ADD, again and again",
			run: afterAdd(func(t *trial, a *attachment) error {
				return errors.Join(t.check(a), t.check(a), t.check(a))
			})},
		{name: "CHECK/prints-nothing", level: Should, section: sectionCheck, since: checkSince, once: true,
			summary: "a CHECK that succeeds prints nothing",
			run: afterAdd(func(t *trial, a *attachment) error {
				return t.request("CHECK", a).expect((*Call).silent)
			})},
		{name: "CHECK/without-prevResult", level: Must, section: "§2 CHECK (the plugin must consult the prevResult)", since: checkSince,
			summary: "CHECK fails without prevResult",
			run: afterAdd(func(t *trial, a *attachment) error {
				return t.request("CHECK", a).set(object{"prevResult": nil}).expect((*Call).refused)
			})},
		{name: "CHECK/interface-gone", level: Should, section: sectionCheck, since: checkSince,
			summary: "CHECK fails when the interface is gone",
			run: broken(func(_ *trial, a *attachment) error {
				return a.c.ns.Do(func() error { return netns.DeleteLink(a.ifName) })
			})},
		{name: "CHECK/address-gone", level: Should, section: sectionCheck, since: checkSince,
			summary: "CHECK fails when the interface has lost an address of prevResult",
			run: broken(func(_ *trial, a *attachment) error {
				return a.onLink(dropAddress)
			})},
		{name: "CHECK/address-changed", level: Should, section: sectionCheck, since: checkSince,
			summary: "CHECK fails when the interface has another address instead",
			run: broken(func(_ *trial, a *attachment) error {
				return a.onLink(func(l netlink.Link, p netip.Prefix) error {
					return errors.Join(dropAddress(l, p), netlink.AddrAdd(l, foreign(p)))
				})
			})},
		{name: "CHECK/interface-down", level: Should, section: "§2 CHECK (in an invalid state)", since: checkSince, once: true,
			summary: "CHECK fails when the interface is down",
			run: broken(func(_ *trial, a *attachment) error {
				return a.onLink(func(l netlink.Link, _ netip.Prefix) error { return netlink.LinkSetDown(l) })
			})},
		{name: "CHECK/route-gone", level: Should, section: sectionCheck, since: checkSince, once: true,
			summary: "CHECK fails when a route of prevResult is gone", run: broken(dropRoute)},
		{name: "CHECK/other-address", level: Should, section: "§2 CHECK (the plugin must consult the prevResult)", since: checkSince, once: true,
			summary: "CHECK fails when prevResult has an address that the interface never had", run: checkForeign},
		{name: "CHECK/later-route", level: Must, section: "§2 CHECK (a later chained plugin may have modified routes)", since: checkSince, once: true,
			summary: "CHECK succeeds when there are more routes than ADD made",
			run: afterAdd(func(t *trial, a *attachment) error {
				if err := a.onLink(addRoute); err != nil {
					return err
				}
				return t.check(a)
			})},
		{name: "CHECK/netns-missing", level: Should, section: sectionCheck, since: checkSince, once: true,
			summary: "CHECK fails when the namespace is gone",
			run: broken(func(_ *trial, a *attachment) error {
				a.c.destroy()
				return nil
			})},
		{name: "CHECK/netns-replaced", level: Should, section: sectionCheck, since: checkSince, once: true,
			summary: "CHECK fails when another namespace is at the path",
			run: func(t *trial) error {
				a, _, err := t.replaced(false)
				if err != nil {
					return err
				}
				return t.request("CHECK", a).expect((*Call).refused)
			}},
		{name: "CHECK/after-DEL", level: Should, section: sectionCheck, since: checkSince, once: true,
			summary: "CHECK fails after DEL",
			run:     broken(func(t *trial, a *attachment) error { return t.del(a) })},
		{name: "CHECK/before-0.4.0", level: Must, section: "§2 CHECK (since 0.4.0)", until: "0.3.1",
			summary: "CHECK fails in a version that does not have it", run: tooEarly("CHECK")},
		{name: "CHECK/before-0.4.0/code", level: Should, section: "§5 Error", until: "0.3.1", once: true,
			summary: "the error is 1, incompatible version (or 4, as the version's own unknown CNI_COMMAND)", run: tooEarly("CHECK", 1, 4)},
	}
}

// broken makes a case of a CHECK that has to fail because of what happened
// since the ADD, with an error object of its own words.
func broken(how func(t *trial, a *attachment) error) func(t *trial) error {
	return afterAdd(func(t *trial, a *attachment) error {
		prev := a.prev
		if err := how(t, a); err != nil {
			return err
		}
		a.prev = prev
		return t.request("CHECK", a).expect((*Call).refused)
	})
}

// tooEarly makes a case of a verb in a version before its own. No codes: it has
// to fail, however.
func tooEarly(verb string, codes ...uint) func(t *trial) error {
	return func(t *trial) error {
		var a *attachment
		more := object{}
		if verb == "CHECK" {
			var err error
			if a, err = t.attached(); err != nil {
				return err
			}
			more["prevResult"] = a.prev // so that it is not this which is missed
		}
		return t.request(verb, a).set(more).expect(func(c *Call) error {
			if len(codes) == 0 {
				return c.refused()
			}
			return c.code(codes...)
		})
	}
}

// onLink calls fn in the container with the interface and its result's first
// address.
func (a *attachment) onLink(fn func(netlink.Link, netip.Prefix) error) error {
	res, err := parseResult(string(a.prev))
	if err != nil {
		return err
	}
	addrs, err := res.addresses(a.c.path)
	if err != nil {
		return err
	}
	if len(addrs) == 0 {
		return &unsupportedError{why: "the network gives no addresses"}
	}
	return a.c.ns.Do(func() error {
		link, err := netlink.LinkByName(a.ifName)
		if err != nil {
			return fmt.Errorf("interface %s in the container: %w", a.ifName, err)
		}
		return fn(link, addrs[0])
	})
}

func dropAddress(l netlink.Link, p netip.Prefix) error {
	return netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)})
}

// foreign is an address for documentation of the same family.
func foreign(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(stranger(p), p.Bits()))}
}

func stranger(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return netip.MustParseAddr("192.0.2.99")
	}
	return netip.MustParseAddr("2001:db8:99::99")
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addRoute adds a route through the interface that no plugin made.
func addRoute(l netlink.Link, p netip.Prefix) error {
	dst := stranger(p)
	return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.PrefixFrom(dst, dst.BitLen())), Scope: netlink.SCOPE_LINK})
}

// dropRoute removes the first route of the result.
func dropRoute(_ *trial, a *attachment) error {
	res, err := parseResult(string(a.prev))
	if err != nil {
		return err
	}
	if len(res.routes()) == 0 {
		return &unsupportedError{why: "the network gives no routes"}
	}
	dst, err := netip.ParsePrefix(res.routes()[0].Dst)
	if err != nil {
		return err
	}
	return a.onLink(func(l netlink.Link, _ netip.Prefix) error {
		// SCOPE_NOWHERE is any scope, to the kernel.
		return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst), Scope: netlink.SCOPE_NOWHERE})
	})
}

func checkForeign(t *trial) error {
	a, err := t.attached()
	if err != nil {
		return err
	}
	prev, err := a.previous()
	if err != nil {
		return err
	}
	ips, _ := prev["ips"].([]any)
	if len(ips) == 0 {
		return &unsupportedError{why: "the network gives no addresses"}
	}
	first, _ := ips[0].(map[string]any)
	text, _ := first["address"].(string)
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return err
	}
	first["address"] = netip.PrefixFrom(stranger(p), p.Bits()).String()
	return t.request("CHECK", a).set(object{"prevResult": prev}).expect((*Call).refused)
}
