package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Backend gives network to container namespaces.
type Backend interface {
	// Name identifies the backend in results.
	Name() string
	// Missing says what to install when a tool of the backend is not there.
	Missing() string
	// Up connects the topology's containers, which are new and empty.
	Up(context.Context, *Topology) error
	// Down ends what Up began. It is called after a failed Up too.
	Down(*Topology) error
	// Peer is the IPv4 address of container i as other containers reach it;
	// empty when the backend does not join containers.
	Peer(i int) string
	// V6 reports whether containers reach the outside over IPv6.
	V6() bool
	// MTU of the containers' devices.
	MTU() int
}

// process is a backend's long-lived process.
type process struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	done   chan struct{}
}

// start runs a process until stop; its output is kept for reports of stalls.
func start(argv ...string) (*process, error) {
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go p.wait()
	return p, nil
}

// wait reaps the process; start runs it and the process's end ends it.
func (p *process) wait() {
	defer close(p.done)
	// The exit status of a process that stop ended says nothing.
	_ = p.cmd.Wait()
}

func (p *process) stop() {
	if p == nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(3 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// await polls until cond holds, the process ends, or the time is over.
func (p *process) await(ctx context.Context, what string, cond func() bool) error {
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before %s: %s", p.cmd.Path, what, strings.TrimSpace(p.output.String()))
		case <-deadline.C:
			return fmt.Errorf("%s: no %s within 10 s", p.cmd.Path, what)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

func missing(tool, pkg string) string {
	if _, err := exec.LookPath(tool); err != nil {
		return fmt.Sprintf("%s is not installed: apt-get install %s", tool, pkg)
	}
	return ""
}

// hasInterface reports whether a namespace has a device of that name that is up.
func hasInterface(namespace, name string) bool {
	out, err := exec.Command("ip", "-n", namespace, "-br", "addr", "show", "dev", name).Output()
	return err == nil && bytes.Contains(out, []byte("."))
}

// slirp is slirp4netns at its best MTU, one process per container.
type slirp struct{ procs []*process }

func (*slirp) Name() string    { return "slirp4netns" }
func (*slirp) Missing() string { return missing("slirp4netns", "slirp4netns") }
func (*slirp) Peer(int) string { return "" }
func (*slirp) V6() bool        { return false }
func (*slirp) MTU() int        { return 65520 }

func (s *slirp) Up(ctx context.Context, t *Topology) error {
	for _, c := range t.Containers {
		p, err := start(in(t.Host, "slirp4netns", "--configure", "--mtu=65520", "--netns-type=path",
			"/run/netns/"+c, "tap0")...)
		if err != nil {
			return err
		}
		s.procs = append(s.procs, p)
		if err := p.await(ctx, "tap0", func() bool { return hasInterface(c, "tap0") }); err != nil {
			return err
		}
	}
	return nil
}

func (s *slirp) Down(*Topology) error {
	for _, p := range s.procs {
		p.stop()
	}
	s.procs = nil
	return nil
}

// bridge is the kernel: bridge, veth and masquerading.
type bridge struct{}

func (*bridge) Name() string      { return "bridge" }
func (*bridge) Missing() string   { return missing("nft", "nftables") }
func (*bridge) Peer(i int) string { return fmt.Sprintf("10.66.0.%d", i+2) }
func (*bridge) V6() bool          { return true }
func (*bridge) MTU() int          { return 1500 }

func (b *bridge) Up(ctx context.Context, t *Topology) error {
	steps := [][]string{
		{"ip", "-n", t.Host, "link", "add", "br0", "type", "bridge"},
		{"ip", "-n", t.Host, "addr", "add", "10.66.0.1/24", "dev", "br0"},
		{"ip", "-n", t.Host, "addr", "add", "fd66::1/64", "dev", "br0", "nodad"},
		{"ip", "-n", t.Host, "link", "set", "br0", "up"},
		in(t.Host, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"),
		in(t.Host, "nft", "add table inet bench; add chain inet bench post { type nat hook postrouting priority 100; }; add rule inet bench post oifname up0 masquerade"),
	}
	for i, c := range t.Containers {
		port := fmt.Sprintf("port%d", i)
		steps = append(steps, [][]string{
			{"ip", "-n", t.Host, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", c},
			{"ip", "-n", t.Host, "link", "set", port, "master", "br0", "up"},
			{"ip", "-n", c, "addr", "add", b.Peer(i) + "/24", "dev", "eth0"},
			{"ip", "-n", c, "addr", "add", fmt.Sprintf("fd66::%d/64", i+2), "dev", "eth0", "nodad"},
			{"ip", "-n", c, "link", "set", "eth0", "up"},
			{"ip", "-n", c, "route", "add", "default", "via", "10.66.0.1"},
			{"ip", "-n", c, "route", "add", "default", "via", "fd66::1"},
		}...)
	}
	return runAll(ctx, steps)
}

func (*bridge) Down(t *Topology) error {
	return errors.Join(
		cleanup("ip", "-n", t.Host, "link", "del", "br0"),
		cleanup(in(t.Host, "nft", "delete table inet bench")...),
	)
}

// usernet is this project as containers meet it: the daemon and the plugin.
type usernet struct {
	bin    string // directory of the binaries
	dir    string // socket and state
	daemon *process
	added  []string
}

func (*usernet) Name() string      { return "usernet" }
func (*usernet) Peer(i int) string { return fmt.Sprintf("10.88.0.%d", i+2) }
func (*usernet) V6() bool          { return true }
func (*usernet) MTU() int          { return 1500 }

func (u *usernet) Missing() string {
	if _, err := os.Stat(u.bin + "/usernet-cni"); err != nil {
		return fmt.Sprintf("%s/usernet-cni is not built: make build", u.bin)
	}
	return ""
}

func (u *usernet) socket() string { return u.dir + "/usernet.sock" }

func (u *usernet) Up(ctx context.Context, t *Topology) (err error) {
	if u.dir, err = os.MkdirTemp("", "usernet-bench-"); err != nil {
		return err
	}
	u.daemon, err = start(in(t.Host, u.bin+"/usernet", "daemon", "--socket", u.socket(), "--state-dir", u.dir+"/state")...)
	if err != nil {
		return err
	}
	err = u.daemon.await(ctx, "socket", func() bool { _, err := os.Stat(u.socket()); return err == nil })
	if err != nil {
		return err
	}
	for _, c := range t.Containers {
		if err := u.cni(ctx, t.Host, "ADD", c); err != nil {
			return err
		}
		u.added = append(u.added, c)
	}
	return nil
}

func (u *usernet) Down(t *Topology) error {
	var errs []error
	for _, c := range u.added {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		errs = append(errs, u.cni(ctx, t.Host, "DEL", c))
		cancel()
	}
	u.added = nil
	u.daemon.stop()
	u.daemon = nil
	return errors.Join(append(errs, os.RemoveAll(u.dir))...)
}

// config is the conflist entry of the benchmark's network.
const config = `{"cniVersion":"1.0.0","name":"bench","type":"usernet","socket":%q,
 "ipam":{"type":"usernet","ranges":[[{"subnet":"10.88.0.0/16"}],[{"subnet":"fd88::/64"}]]}}`

// cni runs one verb of the plugin in the host's namespace.
func (u *usernet) cni(ctx context.Context, host, verb, container string) error {
	argv := in(host, u.bin+"/usernet-cni")
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+container,
		"CNI_NETNS=/run/netns/"+container, "CNI_IFNAME=eth0", "CNI_PATH="+u.bin)
	cmd.Stdin = strings.NewReader(fmt.Sprintf(config, u.socket()))
	if out, err := cmd.Output(); err != nil {
		return fmt.Errorf("usernet-cni %s %s: %w: %s", verb, container, err, out)
	}
	return nil
}
