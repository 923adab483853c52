//go:build runtimes

package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// machineConf is what podman needs on machines without systemd, with both
// generations of cgroups, and with a low limit of descriptors, as CI has them.
// The rest of its configuration is the one that docs/podman.md tells users to
// write.
const machineConf = `[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1024:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
`

const storageConf = `[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
`

// podmanBed is a machine with podman.
type podmanBed struct {
	*machine
	uid   int    // who runs podman
	home  string // of uid
	netns string // where podman keeps namespaces
	// devices are the interfaces of the host namespace before any container.
	devices string
}

// podmanDirs are podman's own directories.
var podmanDirs = []string{"/var/lib/containers", "/etc/containers", "/home"}

// newPodmanBed starts the machine. more is shell code for it.
func newPodmanBed(t *testing.T, more string) *podmanBed {
	t.Helper()
	need(t, "podman", "buildah", "runc", "conmon", "ss", "nft")
	p := &podmanBed{home: "/root", netns: "/run/netns"}
	p.machine = newBed(t).startMachine(podmanDirs, "mkdir -p /etc/containers/containers.conf.d\n"+more)
	p.write("/etc/containers/containers.conf.d/machine.conf", machineConf)
	p.write("/etc/containers/storage.conf", storageConf)
	p.write("/etc/containers/policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
	p.devices = p.interfaces(p.host)
	return p
}

// with returns the bed for a subtest.
func (p *podmanBed) with(t *testing.T) *podmanBed {
	sub, m, base := *p, *p.machine, *p.bed
	base.t = t
	m.bed, sub.machine = &base, &m
	return &sub
}

// command is a command on the machine, with little in its environment.
func (p *podmanBed) command(ctx context.Context, argv ...string) *exec.Cmd {
	uid := strconv.Itoa(p.uid)
	enter := []string{"--target", strconv.Itoa(p.init), "--mount", "--pid", "--setuid", uid, "--setgid", uid, "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, argv...)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/opt/bin:" + os.Getenv("PATH"), "HOME=" + p.home}
	if p.uid != 0 {
		cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR=/run/user/"+uid)
	}
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// try runs a command on the machine and returns its standard output; the error
// holds what it said on the other.
func (p *podmanBed) try(argv ...string) (string, error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Minute)
	defer cancel()
	return p.run(p.command(ctx, argv...))
}

func (p *podmanBed) run(cmd *exec.Cmd) (string, error) {
	p.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := p.host.Do(cmd.Start); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// do is try for what has to succeed, without the white space around its output.
func (p *podmanBed) do(argv ...string) string {
	p.t.Helper()
	out, err := p.try(argv...)
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// start starts a container that sleeps, and has the test answer in its
// namespace with the container's name at the ports; it returns the namespace.
func (p *podmanBed) start(name string, ports []string, args ...string) *netns.Handle {
	p.t.Helper()
	argv := append([]string{"podman", "run", "-d", "--name", name, "--stop-timeout", "0"}, p.parent()...)
	argv = append(argv, args...)
	p.do(append(argv, image, "sleep", "1000")...)
	return p.answer(name, ports...)
}

// parent puts containers into the test's cgroup; ordinary users have none here.
func (p *podmanBed) parent() []string {
	if p.uid != 0 {
		return nil
	}
	return []string{"--cgroup-parent", p.cgroup}
}

// answer answers with the container's name in its namespace.
func (p *podmanBed) answer(name string, ports ...string) *netns.Handle {
	p.t.Helper()
	ns := p.namespace(name)
	for _, port := range ports {
		echo(p.t, ns, name, ":"+port)
	}
	return ns
}

// namespace opens the network namespace of a container.
func (p *podmanBed) namespace(name string) *netns.Handle {
	p.t.Helper()
	pid := p.do("podman", "inspect", "--format", "{{.State.Pid}}", name)
	ns, err := netns.Open(p.path("/proc/" + pid + "/ns/net"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { ns.Close() })
	return ns
}

// ask decodes what "usernet" prints with --json, as the user of podman: a
// daemon serves nobody else.
func (p *podmanBed) ask(into any, argv ...string) {
	p.t.Helper()
	out := p.do(append(append([]string{"usernet"}, argv...), "--json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		p.t.Fatalf("usernet %v: %v in %s", argv, err, out)
	}
}

// links returns the daemon's links by container name and network.
func (p *podmanBed) links() map[string]control.Link {
	p.t.Helper()
	var links []control.Link
	p.ask(&links, "ps")
	byName := map[string]control.Link{}
	for _, l := range links {
		byName[l.Hostname+" "+l.Network] = l
	}
	return byName
}

// remove removes containers by force.
func (p *podmanBed) remove(names ...string) {
	p.t.Helper()
	p.do(append([]string{"podman", "rm", "--force", "--time", "0"}, names...)...)
}

// nothingLeft holds that no container has left anything behind: links, leases,
// listeners, redirections, devices, namespaces, descriptors.
func (p *podmanBed) nothingLeft() {
	p.t.Helper()
	if links := p.links(); len(links) != 0 {
		p.t.Errorf("links left: %v", links)
	}
	var networks []control.Network
	p.ask(&networks, "network", "ls")
	for _, n := range networks {
		if n.Pool.Leased != 0 {
			p.t.Errorf("%d addresses of %s are still leased", n.Pool.Leased, n.Name)
		}
	}
	if out := nstest.Exec(p.t, p.host, "ss", "-Htuln"); strings.TrimSpace(out) != "" {
		p.t.Errorf("listeners left on the host:\n%s", out)
	}
	if out := nstest.Exec(p.t, p.host, "nft", "list", "tables"); out != "" {
		p.t.Errorf("redirections left on the host:\n%s", out)
	}
	if out := p.interfaces(p.host); out != p.devices {
		p.t.Errorf("interfaces of the host:\n%swere\n%s", out, p.devices)
	}
	left, err := os.ReadDir(p.path(p.netns))
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(left) != 0 {
		p.t.Errorf("namespaces left: %v, %v", left, err)
	}
	nstest.WaitFor(p.t, 10*time.Second, func() bool { return p.tunsOfDaemon() == 0 })
}

// interfaces lists those of a namespace. On standard error ip tells of the
// namespaces outside of the machine that come and go meanwhile.
func (p *podmanBed) interfaces(ns *netns.Handle) string {
	p.t.Helper()
	return nstest.Exec(p.t, ns, "sh", "-c", "ip -o link 2>/dev/null")
}

// tunsOfDaemon counts the descriptors of devices that the daemon holds.
func (p *podmanBed) tunsOfDaemon() int {
	p.t.Helper()
	tuns := 0
	for _, pid := range p.processes("usernet") {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			p.t.Fatal(err)
		}
		for _, fd := range fds {
			if target, err := os.Readlink(fd); err == nil && target == "/dev/net/tun" {
				tuns++
			}
		}
	}
	return tuns
}

// processes returns the machine's processes of some names, by the numbers that
// they have outside of it.
func (p *podmanBed) processes(names ...string) []int {
	p.t.Helper()
	machine, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.init))
	if err != nil {
		p.t.Fatal(err)
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		p.t.Fatal(err)
	}
	var pids []int
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil {
			continue // not a process
		}
		// A process that has ended meanwhile has neither.
		ns, _ := os.Readlink(filepath.Join("/proc", dir.Name(), "ns", "pid"))
		comm, _ := os.ReadFile(filepath.Join("/proc", dir.Name(), "comm"))
		if ns == machine && slices.Contains(names, strings.TrimSpace(string(comm))) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// importImage gives podman the image.
func (p *podmanBed) importImage() {
	p.t.Helper()
	p.write("/opt/busybox.tar", string(imageRoot(p.t)))
	p.do("podman", "import", "/opt/busybox.tar", image)
}
