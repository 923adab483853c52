package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
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
	}
	if err := runAll(ctx, steps); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// AddContainers makes n empty container namespaces.
func (t *Topology) AddContainers(ctx context.Context, n int) error {
	for range n {
		name := fmt.Sprintf("%s-c%d", t.prefix, len(t.Containers)+1)
		if err := run(ctx, "ip", "netns", "add", name); err != nil {
			return err
		}
		t.Containers = append(t.Containers, name)
		if err := run(ctx, "ip", "-n", name, "link", "set", "lo", "up"); err != nil {
			return err
		}
	}
	return nil
}

// RemoveContainers removes the container namespaces and what is in them.
func (t *Topology) RemoveContainers() error {
	var errs []error
	for _, name := range t.Containers {
		errs = append(errs, cleanup("ip", "netns", "del", name))
	}
	t.Containers = nil
	return errors.Join(errs...)
}

// Close removes every namespace of the run.
func (t *Topology) Close() error {
	return errors.Join(t.RemoveContainers(), cleanup("ip", "netns", "del", t.Host), cleanup("ip", "netns", "del", t.Server))
}

// in returns argv to run a command in a namespace.
func in(namespace string, argv ...string) []string {
	return append([]string{"ip", "netns", "exec", namespace}, argv...)
}

func run(ctx context.Context, argv ...string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func runAll(ctx context.Context, steps [][]string) error {
	for _, argv := range steps {
		if err := run(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}

// cleanup runs a command that must also run when the benchmark was cancelled.
func cleanup(argv ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return run(ctx, argv...)
}
