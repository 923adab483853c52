package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usernet is this project as containers meet it: the daemon and the plugin.
type usernet struct {
	bin    string // directory of the binaries
	dir    string // socket and state
	daemon *process
}

func (*usernet) Name() string { return "usernet" }

func (*usernet) Traits() Traits {
	return Traits{
		MTU: largeMTU, Egress: true, V6: true, Publish: true, Userspace: true,
		Peers: []string{"10.88.0.2", "10.88.0.3"}, DNS: "10.88.0.1",
	}
}

func (u *usernet) Missing() string { return notBuilt(u.bin, "usernet-cni") }

func (u *usernet) Version() string { return usernetVersion(u.bin) }

func notBuilt(dir, name string) string {
	if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
		return fmt.Sprintf("%s is not built: make bench builds it", filepath.Join(dir, name))
	}
	return ""
}

func usernetVersion(bin string) string {
	out, err := exec.Command(filepath.Join(bin, "usernet"), "version").Output()
	if err != nil {
		return unknown
	}
	return firstLine(string(out))
}

func (u *usernet) socket() string { return u.dir + "/usernet.sock" }

func (u *usernet) Up(ctx context.Context, t *Topology) (err error) {
	if u.dir, err = os.MkdirTemp("", "usernet-"); err != nil {
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
	for i, c := range t.Containers {
		if err := u.cni(ctx, t.Host, "ADD", c, i == 0); err != nil {
			return err
		}
	}
	return nil
}

// grow makes more containers until there are n.
func (u *usernet) grow(ctx context.Context, t *Topology, n int) error {
	have := len(t.Containers)
	if err := t.AddContainers(ctx, n-have); err != nil {
		return err
	}
	return together(t.Containers[have:], func(name string) error { return u.cni(ctx, t.Host, "ADD", name, false) })
}

// shrink deletes containers until there are n.
func (u *usernet) shrink(ctx context.Context, t *Topology, n int) error {
	err := together(t.Containers[n:], func(name string) error { return u.cni(ctx, t.Host, "DEL", name, false) })
	return errors.Join(err, t.KeepContainers(n))
}

// Down removes the containers first: the kernel takes twenty milliseconds for
// each device that the end of the daemon removes, and next to none for those
// that go with a namespace.
func (u *usernet) Down(t *Topology) error {
	err := t.KeepContainers(0)
	u.daemon.stop()
	u.daemon = nil
	return errors.Join(err, os.RemoveAll(u.dir))
}

// config is the configuration of the benchmark's network. A daemon that died is
// an error, and not a reason to start another.
func (u *usernet) config(publish bool) string {
	runtime := "{}"
	if publish {
		runtime = fmt.Sprintf(`{"portMappings":[{"hostPort":%d,"containerPort":%d,"protocol":"tcp","hostIP":%q}]}`,
			publishedPort, publishedPort, hostV4)
	}
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"bench","type":"usernet","socket":%q,"autostart":false,
		"capabilities":{"portMappings":true},"runtimeConfig":%s,
		"ipam":{"type":"usernet","ranges":[[{"subnet":"10.88.0.0/16"}],[{"subnet":"fd88::/64"}]]}}`, u.socket(), runtime)
}

// cni runs one verb of the plugin in the host's namespace.
func (u *usernet) cni(ctx context.Context, host, verb, container string, publish bool) error {
	return cniVerb(ctx, host, cniPlugin(u), verb, container, u.config(publish))
}

// pluginTime bounds a plugin that hangs.
const pluginTime = 10 * time.Second

// cniVerb runs one verb of a plugin in the host's namespace. A plugin that has
// begun runs to its end: interrupted, it would leave files and helpers of its own.
func cniVerb(ctx context.Context, host, plugin, verb, container, config string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pluginTime)
	defer cancel()
	cmd := bounded(ctx, in(host, plugin))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+container,
		"CNI_NETNS=/run/netns/"+container, "CNI_IFNAME=eth0", "CNI_PATH="+filepath.Dir(plugin))
	cmd.Stdin = strings.NewReader(config)
	if out, err := cmd.Output(); err != nil {
		return fmt.Errorf("%s %s %s: %w: %s", filepath.Base(plugin), verb, container, err, tail(string(out)))
	}
	return nil
}

// usernetRun is `usernet run`: a sandbox with a switch of its own.
type usernetRun struct {
	bin   string
	procs []*process
}

func (*usernetRun) Name() string { return "usernet-run" }

func (*usernetRun) Traits() Traits {
	return Traits{MTU: largeMTU, Egress: true, V6: true, Publish: true, Userspace: true, DNS: "10.83.0.1"}
}

func (u *usernetRun) Missing() string { return notBuilt(u.bin, "usernet") }

func (u *usernetRun) Version() string { return usernetVersion(u.bin) }

func (u *usernetRun) Up(ctx context.Context, t *Topology) error {
	for i := range t.Containers {
		argv := []string{u.bin + "/usernet", "run", "-q"}
		if i == 0 {
			argv = append(argv, "-p", fmt.Sprintf("%s:%d:%d", hostV4, publishedPort, publishedPort))
		}
		p, err := startSandbox(ctx, t, i, append(argv, "--"))
		if p != nil {
			u.procs = append(u.procs, p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// startSandbox starts a command that makes its own namespaces, and adopts the
// network of what it runs.
func startSandbox(ctx context.Context, t *Topology, i int, argv []string) (*process, error) {
	p, err := start(in(t.Host, append(argv, "sh", "-c", "echo pid $$; exec sleep 3600")...)...)
	if err != nil {
		return nil, err
	}
	pid := 0
	err = p.await(ctx, "command", func() bool {
		_, after, found := strings.Cut(p.output.String(), "pid ")
		line, _, whole := strings.Cut(after, "\n")
		if !found || !whole {
			return false
		}
		pid, err = strconv.Atoi(line)
		return err == nil
	})
	if err != nil {
		return p, err
	}
	return p, t.Adopt(ctx, i, pid)
}

func (u *usernetRun) Down(*Topology) error {
	stopAll(u.procs)
	u.procs = nil
	return nil
}

func stopAll(procs []*process) {
	for _, p := range procs {
		p.stop()
	}
}
