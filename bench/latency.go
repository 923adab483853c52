package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// cniLatency is ADD and DEL of one more container, beside the reference's bridge
// plugin alone; bench/chain measures the list that runtimes have.
func cniLatency() Scenario {
	return Scenario{
		Name:    "cni",
		Applies: func(b Backend) bool { return cniPlugin(b) != "" },
		Figures: []Figure{{Name: "add", Unit: "ms"}, {Name: "del", Unit: "ms"}},
		Run: func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
			if why := missing(cniPlugin(backend), "containernetworking-plugins"); why != "" {
				return nil, errors.New(why)
			}
			const times = 10
			var add, del []float64
			for range times {
				a, d, err := oneMore(ctx, b.topo, backend)
				if err != nil {
					return nil, err
				}
				add, del = append(add, a), append(del, d)
			}
			return []float64{median(add), median(del)}, nil
		},
	}
}

// cniPlugin is the executable that attaches containers to the backend's
// network; empty: it has none. Debian has the reference's in /usr/lib/cni.
func cniPlugin(b Backend) string {
	switch b := b.(type) {
	case *usernet:
		return b.bin + "/usernet-cni"
	case *bridge:
		return "/usr/lib/cni/bridge"
	}
	return ""
}

// oneMore adds a container, deletes it, and returns the milliseconds of each.
func oneMore(ctx context.Context, t *Topology, backend Backend) (add, del float64, err error) {
	name := t.prefix + "-more"
	leases := filepath.Join("/run", t.prefix)
	if err := run(ctx, "ip", "netns", "add", name); err != nil {
		return 0, 0, err
	}
	defer func() {
		err = errors.Join(err, cleanup([]string{"ip", "netns", "del", name}), os.RemoveAll(leases))
	}()
	plugin := cniPlugin(backend)
	config := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"bench","type":"bridge","bridge":"br0","isGateway":false,
		"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.66.9.0/24"}],[{"subnet":"fd66:9::/64"}]]}}`, leases)
	if u, ok := backend.(*usernet); ok {
		config = u.config(false)
	}
	verb := func(v string) (float64, error) {
		begin := time.Now()
		err := cniVerb(ctx, t.Host, plugin, v, name, config)
		return float64(time.Since(begin)) / float64(time.Millisecond), err
	}
	if add, err = verb("ADD"); err != nil {
		return 0, 0, err
	}
	del, err = verb("DEL")
	return add, del, err
}

// runLatency is how long a sandbox takes from its start to the first byte from
// outside, and to its end with a command that does nothing further.
func runLatency() Scenario {
	return Scenario{
		Name: "run", Figures: []Figure{{Name: "first-byte", Unit: "ms"}, {Name: "end", Unit: "ms"}},
		Applies: func(b Backend) bool { return sandboxArgv(b) != nil },
		Run: func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
			server, err := b.serve(ctx)
			defer server.stop()
			if err != nil {
				return nil, err
			}
			const times = 10
			var first, end []float64
			for range times {
				f, e, err := b.firstByte(ctx, sandboxArgv(backend))
				if err != nil {
					return nil, err
				}
				first, end = append(first, f), append(end, e)
			}
			return []float64{median(first), median(end)}, nil
		},
	}
}

// firstByte runs a probe in a sandbox and returns the milliseconds until the
// byte that it prints, and until its end. ip netns exec is some 4 of either.
func (b *Bench) firstByte(ctx context.Context, sandbox []string) (first, end float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	argv := append(sandbox, b.self, "probe", "get", "-addr", outside)
	cmd := bounded(ctx, in(b.topo.Host, argv...))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	since := func() float64 { return float64(time.Since(begin)) / float64(time.Millisecond) }
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	_, readErr := out.Read(make([]byte, 1))
	first = since()
	if err := errors.Join(cmd.Wait(), readErr); err != nil {
		return 0, 0, fmt.Errorf("%s: %w: %s", sandbox[0], err, tail(stderr.String()))
	}
	return first, since(), nil
}

// sandboxArgv starts a command in a network of its own; nil: the backend cannot.
func sandboxArgv(b Backend) []string {
	switch b := b.(type) {
	case *usernetRun:
		return []string{b.bin + "/usernet", "run", "-q", "--"}
	case *pasta:
		return []string{"pasta", "--config-net", "--no-map-gw", "--runas", "0", "-q", "--"}
	case *rootlesskit:
		return []string{"rootlesskit", "--net=slirp4netns", "--mtu=65520", "--disable-host-loopback", "--"}
	}
	return nil
}
