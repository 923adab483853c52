package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
)

// ifNameMark stands in the key of a sysctl for the container's interface, as
// with the reference plugin tuning.
const ifNameMark = "IFNAME"

// sysctls returns those to set: args.cni's beat the configuration's, key by key.
func (c *config) sysctls() map[string]string {
	all := maps.Clone(c.Sysctls)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, c.ArgsCNI.Sysctls)
	return all
}

// sysctlFaults judges keys and values as far as they can be without the kernel.
func (c *config) sysctlFaults() []*types.Error {
	var faults []*types.Error
	values := c.sysctls()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if _, err := netSysctl(key, "eth0"); err != nil {
			faults = append(faults, badValue("sysctl", key, err.Error()))
		}
		if v := values[key]; v == "" || strings.ContainsAny(v, "\x00\n") {
			faults = append(faults, badValue("sysctl", map[string]string{key: v}, "want a value on one line"))
		}
	}
	return faults
}

// netSysctl turns a key into a path below /proc/sys/net. What is not net's is
// not the namespace's, and would be set for the whole machine.
func netSysctl(key, ifName string) (string, error) {
	path, ok := strings.CutPrefix(sysctlPath(key), "net/")
	if !ok || !filepath.IsLocal(path) || filepath.Clean(path) != path {
		return "", errors.New(`want a key of the network, such as "net.ipv4.ip_default_ttl"`)
	}
	parts := strings.Split(path, "/")
	for n, part := range parts {
		if part == ifNameMark {
			parts[n] = ifName
		}
	}
	return strings.Join(parts, "/"), nil
}

// setSysctls sets the configured sysctls in the container's namespace.
func (a *adding) setSysctls(context.Context) error {
	values := a.conf.sysctls()
	if len(values) == 0 {
		return nil
	}
	return a.target.Do(func() error {
		for _, key := range slices.Sorted(maps.Keys(values)) {
			if err := a.setSysctl(key, values[key]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *adding) setSysctl(key, value string) error {
	path, err := netSysctl(key, a.params.IfName)
	if err != nil {
		return badValue("sysctl", key, err.Error())
	}
	old, err := netns.Sysctl(path)
	if err != nil {
		return badValue("sysctl", key, sysctlRemedy(err))
	}
	if sameSysctl(old, value) {
		return nil
	}
	a.undo.Add(func() {
		err := a.target.Do(func() error { return netns.SetSysctl(path, old) })
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // that of the interface goes with it
			fmt.Fprintf(a.Stderr, "usernet-cni: undo: %v\n", err)
		}
	})
	if err := netns.SetSysctl(path, value); err != nil {
		return badValue("sysctl", map[string]string{key: value}, sysctlRemedy(err))
	}
	return nil
}

// sysctlRemedy says what to do about a sysctl that cannot be set.
func sysctlRemedy(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "this kernel has no such sysctl in a container's network namespace"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return "the kernel refuses the value"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fmt.Sprintf("it may not be read or written here: %v", err)
	}
	return err.Error()
}

// checkSysctls compares those of the current namespace.
func (c *config) checkSysctls(ifName string) error {
	values := c.sysctls()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		path, err := netSysctl(key, ifName)
		if err != nil {
			return err
		}
		have, err := netns.Sysctl(path)
		if err != nil {
			return err
		}
		if !sameSysctl(have, values[key]) {
			return fmt.Errorf("sysctl %s is %q, not %q", key, have, values[key])
		}
	}
	return nil
}

// sameSysctl compares two values as the kernel writes them: numbers in a row
// are told apart by tabs.
func sameSysctl(a, b string) bool {
	return slices.Equal(strings.Fields(a), strings.Fields(b))
}
