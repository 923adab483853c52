package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
)

// Addresses of the topology. The outside server has one per family.
const (
	hostV4, hostV6     = "10.77.0.1", "fd77::1"
	serverV4, serverV6 = "10.77.0.2", "fd77::2"
)

// Topology is the set of namespaces that a run measures in.
type Topology struct {
	Host, Server string   // names of network namespaces
	Containers   []string // rebuilt for each backend
	prefix       string
}

// NewTopology makes the host and the server. The caller closes it.
func NewTopology(ctx context.Context) (*Topology, error) {
	prefix := fmt.Sprintf("ubench%d", os.Getpid())
	t := &Topology{Host: prefix + "-host", Server: prefix + "-srv", prefix: prefix}
	steps := [][]string{
		{"ip", "netns", "add", t.Host},
		{"ip", "netns", "add", t.Server},
		{"ip", "-n", t.Host, "link", "set", "lo", "up"},
		{"ip", "-n", t.Server, "link", "set", "lo", "up"},
		{"ip", "-n", t.Host, "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", t.Server},
		{"ip", "-n", t.Host, "addr", "add", hostV4 + "/24", "dev", "up0"},
		{"ip", "-n", t.Host, "addr", "add", hostV6 + "/64", "dev", "up0", "nodad"},
		{"ip", "-n", t.Server, "addr", "add", serverV4 + "/24", "dev", "eth0"},
		{"ip", "-n", t.Server, "addr", "add", serverV6 + "/64", "dev", "eth0", "nodad"},
		{"ip", "-n", t.Host, "link", "set", "up0", "up"},
		{"ip", "-n", t.Server, "link", "set", "eth0", "up"},
		// Some peers copy their addresses from the interface of the default route.
		{"ip", "-n", t.Host, "route", "add", "default", "via", serverV4},
		{"ip", "-n", t.Host, "route", "add", "default", "via", serverV6},
	}
	err := runAll(ctx, append(steps, tcpSettings(t.Host), tcpSettings(t.Server)))
	if err == nil {
		err = t.writeEtc()
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// tcpSettings let a namespace make connections faster than its ports come back
// from TIME_WAIT, which would be what is measured otherwise, and let no load
// learn from the one before it.
func tcpSettings(namespace string) []string {
	return in(namespace, "sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=1024 65000",
		"net.ipv4.tcp_no_metrics_save=1")
}

// writeEtc makes files that ip netns exec binds over those of /etc: the server
// is the host's resolver, and root may map users, as RootlessKit wants it.
func (t *Topology) writeEtc() error {
	if err := os.MkdirAll(t.etc(), 0o755); err != nil {
		return err
	}
	const ids = "root:100000:65536\n"
	for name, text := range map[string]string{"resolv.conf": "nameserver " + serverV4 + "\n", "subuid": ids, "subgid": ids} {
		if err := os.WriteFile(filepath.Join(t.etc(), name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (t *Topology) etc() string { return filepath.Join("/etc/netns", t.Host) }

// AddContainers makes n more container namespaces, which are empty.
func (t *Topology) AddContainers(ctx context.Context, n int) error {
	have := len(t.Containers)
	for i := range n {
		t.Containers = append(t.Containers, fmt.Sprintf("%s-c%d", t.prefix, have+i+1))
	}
	return together(t.Containers[have:], func(name string) error {
		return runAll(ctx, [][]string{
			{"ip", "netns", "add", name}, {"ip", "-n", name, "link", "set", "lo", "up"}, tcpSettings(name),
		})
	})
}

// Adopt puts the namespace of a process in the place of container i: of a
// backend that makes its own.
func (t *Topology) Adopt(ctx context.Context, i, pid int) error {
	name := t.Containers[i]
	return runAll(ctx, [][]string{
		{"ip", "netns", "del", name},
		{"ip", "netns", "attach", name, strconv.Itoa(pid)},
		tcpSettings(name),
	})
}

// KeepContainers removes all container namespaces but the first n, and what is
// in them.
func (t *Topology) KeepContainers(n int) error {
	surplus := t.Containers[min(n, len(t.Containers)):]
	t.Containers = t.Containers[:len(t.Containers)-len(surplus)]
	return together(surplus, func(name string) error {
		if !isNamespace(name) { // its making was interrupted
			return nil
		}
		return cleanup([]string{"ip", "netns", "del", name})
	})
}

// Close removes every namespace of the run.
func (t *Topology) Close() error {
	errs := []error{t.KeepContainers(0), os.RemoveAll(t.etc())}
	for _, name := range []string{t.Host, t.Server} {
		if isNamespace(name) {
			errs = append(errs, cleanup([]string{"ip", "netns", "del", name}))
		}
	}
	return errors.Join(errs...)
}

// isNamespace reports whether there is a network namespace of that name.
func isNamespace(name string) bool {
	_, err := os.Stat(filepath.Join("/run/netns", name))
	return err == nil
}

// together does something for all names, eight at a time: what the kernel does
// in a network namespace is mostly waiting.
func together(names []string, do func(name string) error) error {
	todo := make(chan string)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for range min(8, len(names)) {
		wg.Go(func() {
			for name := range todo {
				if err := do(name); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, name := range names {
		todo <- name
	}
	close(todo)
	wg.Wait()
	if len(errs) > 3 { // the others say the same
		errs = append(errs[:3], fmt.Errorf("and %d more", len(errs)-3))
	}
	return errors.Join(errs...)
}

// routeMTU bounds the packets from a namespace to an address, and over TCP
// their answers too, since a connection announces what its route takes. It adds
// a route to the address alone, that remove takes away.
func routeMTU(ctx context.Context, namespace, addr string, mtu int) (remove func(), err error) {
	out, err := output(ctx, "ip", "-n", namespace, "-j", "route", "get", addr)
	if err != nil {
		return nil, err
	}
	var routes []struct{ Gateway, Dev string }
	if err := json.Unmarshal(out, &routes); err != nil || len(routes) != 1 {
		return nil, fmt.Errorf("no route to %s: %s: %w", addr, out, err)
	}
	route := []string{"ip", "-n", namespace, "route", "replace", addr, "dev", routes[0].Dev, "mtu", strconv.Itoa(mtu)}
	if gateway := routes[0].Gateway; gateway != "" {
		route = append(route, "via", gateway)
	}
	// An error means that the namespace is gone, and the route with it.
	return func() { _ = cleanup([]string{"ip", "-n", namespace, "route", "del", addr}) }, run(ctx, route...)
}
