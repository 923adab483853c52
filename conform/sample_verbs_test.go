package conform

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/netns"
)

// Of the sample plugin: what comes after ADD.

func (s *sample) del() error {
	switch {
	case s.fault("del-needs-netns") && s.netns == "":
		return failed(4, "CNI_NETNS is missing")
	case s.fault("del-needs-prevResult") && s.conf.Prev == nil && atLeast(s.conf.CNIVersion, "0.4.0"):
		return failed(7, "prevResult is missing")
	}
	if _, err := os.Stat(s.file + ".half"); err == nil && s.fault("dies-badly") {
		return failed(999, "an ADD is under way")
	}
	if _, err := os.Stat(s.file); err != nil && s.fault("del-once") {
		return failed(3, "unknown container")
	}
	all, err := s.leases()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range all {
		if l.Network != s.conf.Name {
			continue
		}
		own := l.Container == s.id && l.IfName == s.ifName
		if own || s.fault("del-all") || s.fault("del-container") && l.Container == s.id {
			errs = append(errs, s.remove(l))
		}
	}
	if s.netns == "" || s.fault("del-keeps-interface") {
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, s.unplug(s.netns, s.file, s.ifName, false))...)
}

// remove takes away a lease, what it has on the host, and its interface.
func (s *sample) remove(l lease) error {
	file := filepath.Join(s.conf.State, l.Network+"_"+l.Container+"_"+l.IfName)
	if s.fault("leaks") {
		return nil
	}
	err := os.Remove(file)
	if !s.fault("leaks-without-netns") || s.netns != "" {
		err = errors.Join(err, onLo(l.Addr, false))
	}
	if s.fault("del-keeps-interface") {
		return err
	}
	return errors.Join(err, s.unplug(l.Netns, file, l.IfName, true))
}

// unplug deletes an interface if it is the attachment's. Where there is a lease
// it may be one whose ADD was killed before it gave the interface its alias.
func (s *sample) unplug(path, file, ifName string, leased bool) error {
	ns, err := netns.Open(path)
	if err != nil {
		if s.fault("del-needs-namespace") {
			return err
		}
		return nil
	}
	defer ns.Close()
	return ns.Do(func() error {
		link, err := netlink.LinkByName(ifName)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		if link.Attrs().Alias == file || leased && link.Attrs().Alias == "" || s.fault("del-by-name") {
			return netlink.LinkDel(link)
		}
		return nil
	})
}

func (s *sample) check() error {
	prev := s.conf.Prev
	switch {
	case s.fault("check-always"):
		return nil
	case s.fault("check-never"):
		return failed(999, "broken")
	case prev == nil && s.fault("check-without-prevResult"):
		return nil
	case prev == nil:
		return failed(7, "prevResult is missing")
	}
	ns, err := netns.Open(s.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error { return s.judge(prev) })
}

// judge compares the interface of the current namespace with the result.
func (s *sample) judge(prev *addResult) error {
	i, err := net.InterfaceByName(s.ifName)
	if err != nil {
		return failed(999, "%s: %v", s.ifName, err)
	}
	if i.Flags&net.FlagUp == 0 && !s.fault("check-ignores-down") {
		return failed(999, "%s is down", s.ifName)
	}
	if s.fault("check-counts-routes") {
		if n := len(routes()); n > 2 {
			return failed(999, "%d routes", n)
		}
	}
	// An interface that goes down loses its routes, and one without addresses.
	ignored := s.fault("check-ignores-routes") || s.fault("check-ignores-down") || s.fault("check-ignores-addresses")
	if !ignored && !routes().routeTo(sampleRoute) {
		return failed(999, "no route to %s", sampleRoute)
	}
	if s.fault("check-ignores-addresses") {
		return nil
	}
	want, err := prev.addresses(s.netns)
	if err != nil {
		return err
	}
	have, err := i.Addrs()
	if err != nil {
		return err
	}
	for _, p := range want {
		if !slices.ContainsFunc(have, func(a net.Addr) bool { return a.String() == p.String() }) {
			return failed(999, "%s has no %v", s.ifName, p)
		}
	}
	return nil
}

// routes are those of the current namespace.
func routes() snapshot {
	s := snapshot{}
	_ = s.routes4() // none, when it fails
	return s
}

func (s *sample) gc() (string, error) {
	var valid []sampleKey
	switch {
	case s.conf.Valid != nil:
		valid = *s.conf.Valid
	case s.conf.Legacy != nil:
		valid = *s.conf.Legacy
	case s.fault("gc-needs-list"):
		return "", failed(7, "no list")
	}
	all, err := s.leases()
	if err != nil || s.fault("gc-idle") {
		return "", err
	}
	for _, l := range all {
		keep := slices.ContainsFunc(valid, func(k sampleKey) bool {
			return k.Container == l.Container && k.IfName == l.IfName
		})
		switch {
		case s.fault("gc-everything"):
			keep = false
		case s.fault("gc-any-network") && l.Network != s.conf.Name:
			keep = false
		case l.Network != s.conf.Name:
			keep = true
		}
		if !keep {
			err = errors.Join(err, s.remove(l))
		}
	}
	if s.fault("gc-prints") {
		return "{}", err
	}
	return "", err
}
