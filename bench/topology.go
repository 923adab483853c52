package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	err := runAll(ctx, append(steps, t.ports(t.Host), t.ports(t.Server)))
	if err == nil {
		err = t.writeEtc()
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// ports lets a namespace make connections faster than its ports come back from
// TIME_WAIT, which would be what is measured otherwise.
func (t *Topology) ports(namespace string) []string {
	return in(namespace, "sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=1024 65000")
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

// AddContainers makes n empty container namespaces.
func (t *Topology) AddContainers(ctx context.Context, n int) error {
	for range n {
		name := fmt.Sprintf("%s-c%d", t.prefix, len(t.Containers)+1)
		if err := run(ctx, "ip", "netns", "add", name); err != nil {
			return err
		}
		t.Containers = append(t.Containers, name)
		if err := runAll(ctx, [][]string{{"ip", "-n", name, "link", "set", "lo", "up"}, t.ports(name)}); err != nil {
			return err
		}
	}
	return nil
}

// Adopt puts the namespace of a process in the place of container i: of a
// backend that makes its own.
func (t *Topology) Adopt(ctx context.Context, i, pid int) error {
	name := t.Containers[i]
	return runAll(ctx, [][]string{
		{"ip", "netns", "del", name},
		{"ip", "netns", "attach", name, fmt.Sprint(pid)},
		t.ports(name),
	})
}

// RemoveContainers removes the container namespaces and what is in them.
func (t *Topology) RemoveContainers() error {
	var errs []error
	for _, name := range t.Containers {
		errs = append(errs, cleanup([]string{"ip", "netns", "del", name}))
	}
	t.Containers = nil
	return errors.Join(errs...)
}

// Close removes every namespace of the run.
func (t *Topology) Close() error {
	return errors.Join(t.RemoveContainers(), os.RemoveAll(t.etc()), cleanup(
		[]string{"ip", "netns", "del", t.Host}, []string{"ip", "netns", "del", t.Server}))
}
