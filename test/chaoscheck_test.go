//go:build runtimes

package test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usernet/usernet/internal/control"
)

// reconcile brings the daemon in line with the workers, as a runtime does with
// GC, and holds the whole world against what they know.
func (c *chaos) reconcile() {
	c.collect()
	// Uncommitted links end with their plugins' connections, and links of dead
	// containers when the daemon sees it: a moment later.
	var diff []string
	deadline := time.Now().Add(20 * time.Second)
	for {
		if diff = c.compare(); len(diff) == 0 || time.Now().After(deadline) {
			break
		}
		<-time.After(5 * time.Millisecond)
	}
	for _, d := range diff {
		c.count("leaked or lost address, link, device, listener, namespace")
		c.fault("after %d kills: %s", c.kills(), d)
	}
	for _, name := range c.hostDevices() {
		c.count("leaked or lost address, link, device, listener, namespace")
		c.fault("after %d kills: left in the host's namespace: %s", c.kills(), name)
	}
	c.count("reconciliation")
}

// compare lists what differs between the workers' knowledge and the world.
func (c *chaos) compare() (diff []string) {
	differ := func(format string, args ...any) { diff = append(diff, fmt.Sprintf(format, args...)) }
	links, err := c.b.client.Links(context.Background(), "")
	if err != nil {
		return []string{err.Error()}
	}
	want := map[control.LinkKey]*chaosWorker{}
	for _, w := range c.workers {
		if w.addrs != nil {
			want[w.key] = w
		}
	}
	leased, listening := map[string]int64{}, []int{}
	for _, l := range links {
		w := want[l.Key()]
		if w == nil {
			differ("leaked: link %s (%s) with the addresses %v", l.ID, l.State, l.Addrs)
			continue
		}
		delete(want, l.Key())
		leased[l.Network] += int64(len(l.Addrs))
		if !slices.EqualFunc(l.Addrs, w.addrs, func(p netip.Prefix, a netip.Addr) bool { return p.Addr() == a }) {
			differ("link %s has the addresses %v, its ADD returned %v", l.ID, l.Addrs, w.addrs)
		}
		if l.State == control.LinkAttached {
			listening = append(listening, w.port)
		}
	}
	for key := range want {
		differ("lost: the ADD of %v succeeded, and the daemon does not know it", key)
	}
	networks, err := c.b.client.Networks(context.Background())
	if err != nil {
		return append(diff, err.Error())
	}
	for _, n := range networks {
		if n.Pool.Leased != leased[n.Name] {
			differ("leaked: network %s has %d addresses leased, its links have %d", n.Name, n.Pool.Leased, leased[n.Name])
		}
	}
	return append(diff, c.compareKernel(links, listening)...)
}

// compareKernel is compare for what the kernel holds.
func (c *chaos) compareKernel(links []control.Link, listening []int) (diff []string) {
	attached := map[control.LinkKey]bool{}
	for _, l := range links {
		attached[l.Key()] = l.State == control.LinkAttached
	}
	want := map[string][]string{} // devices by container
	for _, w := range c.workers {
		if attached[w.key] && w.addrs != nil {
			want[w.path] = append(want[w.path], w.key.IfName)
		}
	}
	for _, w := range c.workers {
		if w.ns == nil || w.canary == "" {
			continue
		}
		devices, err := tunDevices(w.ns)
		slices.Sort(devices)
		slices.Sort(want[w.path])
		if err != nil || !slices.Equal(devices, want[w.path]) {
			diff = append(diff, fmt.Sprintf("container %s has the devices %v, want %v (%v)", w.key.Container, devices, want[w.path], err))
		}
	}
	slices.Sort(listening)
	if have, err := c.listeners(); err != nil || !slices.Equal(have, listening) {
		diff = append(diff, fmt.Sprintf("the host listens on the ports %v, want %v (%v)", have, listening, err))
	}
	return diff
}

// listeners returns the ports that the host's namespace listens on.
func (c *chaos) listeners() ([]int, error) {
	ports := []int{}
	err := c.b.host.Do(func() error {
		for _, table := range []string{"tcp", "tcp6"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(text)) {
				col := strings.Fields(line)
				if len(col) < 4 || col[3] != "0A" { // TCP_LISTEN
					continue
				}
				_, hex, _ := strings.Cut(col[1], ":")
				port, err := strconv.ParseUint(hex, 16, 16)
				if err != nil {
					return err
				}
				ports = append(ports, int(port))
			}
		}
		return nil
	})
	slices.Sort(ports)
	return ports, err
}
