//go:build runtimes

package test

import (
	"archive/tar"
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
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// image is what the containers of podman run: busybox and nothing else.
const image = "localhost/busybox"

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

// podmanBed is a bed with a machine for podman in it: mounts and processes of
// their own on the host namespace, where podman, the plugins and the daemon
// have their files in the places where users have them.
type podmanBed struct {
	*bed
	init   int    // the machine's first process; all others end with it
	cgroup string // of the containers, in every hierarchy
	uid    int    // who runs podman
	home   string // of uid
	netns  string // where podman keeps namespaces
	// devices are the interfaces of the host namespace before any container.
	devices string
}

// machineScript makes the machine's mounts, says so, and waits for the test's
// end. It is process 1, so its shell collects what others leave behind.
const machineScript = `set -e
exec 3<&0
mount --make-rprivate /
mount --make-rshared / # among the machine's own namespaces, as podman expects it
mount -t proc proc /proc
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/lock
for dir in /var/lib/cni /var/lib/usernet /var/lib/containers /etc/containers /etc/cni /opt /home; do
	mkdir -p $dir
	mount -t tmpfs -o mode=0755 tmpfs $dir
done
mkdir -p /etc/containers/containers.conf.d /etc/cni/net.d /opt/bin
cp $BIN/usernet $BIN/usernet-cni /opt/bin
echo ready
cat <&3 >/dev/null &
wait
`

// newPodmanBed starts the machine. more is shell code for it.
func newPodmanBed(t *testing.T, more string) *podmanBed {
	t.Helper()
	need(t, "podman", "buildah", "runc", "conmon", "nsenter", "busybox", "ss", "ip")
	p := &podmanBed{bed: newBed(t), cgroup: fmt.Sprintf("/usernet-test-%d", os.Getpid()), home: "/root", netns: "/run/netns"}
	t.Cleanup(p.removeCgroups)
	machine := exec.Command("sh", "-c", strings.Replace(machineScript, "echo ready\n", more+"echo ready\n", 1))
	machine.Env = append(os.Environ(), "BIN="+os.Getenv(binVar))
	machine.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	var errs bytes.Buffer
	machine.Stderr = &errs
	// The machine ends with its standard input, were this process killed.
	stdin, err := machine.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := machine.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	nstest.Start(t, p.host, machine)
	t.Cleanup(func() { stdin.Close() })
	ready := make([]byte, len("ready\n"))
	if n, err := stdout.Read(ready); err != nil || string(ready[:n]) != "ready\n" {
		t.Fatalf("start the machine: %v; %s", err, errs.String())
	}
	p.init = machine.Process.Pid
	p.write("/etc/containers/containers.conf.d/machine.conf", machineConf)
	p.write("/etc/containers/storage.conf", storageConf)
	p.write("/etc/containers/policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
	p.devices = nstest.Exec(t, p.host, "ip", "-o", "link")
	return p
}

// with returns the bed for a subtest.
func (p *podmanBed) with(t *testing.T) *podmanBed {
	sub := *p
	base := *p.bed
	base.t = t
	sub.bed = &base
	return &sub
}

// path leads to a file of the machine from outside of it.
func (p *podmanBed) path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(p.init), "root", name)
}

// write makes a file of the machine.
func (p *podmanBed) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(p.path(name), []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// removeCgroups removes what the cgroup manager leaves: empty parents, and after
// a test that failed those of containers, once their processes are gone.
func (p *podmanBed) removeCgroups() {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + p.cgroup) // errors only on a bad pattern
	var dirs []string
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	slices.Reverse(dirs) // children first
	nstest.WaitFor(p.t, 10*time.Second, func() bool {
		dirs = slices.DeleteFunc(dirs, func(dir string) bool { return unix.Rmdir(dir) == nil })
		return len(dirs) == 0
	})
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
		p.t.Fatal(err)
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
// listeners, devices, namespaces, descriptors.
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
	if out := nstest.Exec(p.t, p.host, "ip", "-o", "link"); out != p.devices {
		p.t.Errorf("interfaces of the host:\n%swere\n%s", out, p.devices)
	}
	left, err := os.ReadDir(p.path(p.netns))
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(left) != 0 {
		p.t.Errorf("namespaces left: %v, %v", left, err)
	}
	nstest.WaitFor(p.t, 10*time.Second, func() bool { return p.tunsOfDaemon() == 0 })
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

// importImage gives podman the image: busybox and a link for each command.
func (p *podmanBed) importImage() {
	p.t.Helper()
	p.write("/opt/busybox.tar", string(busyboxTar(p.t)))
	p.do("podman", "import", "/opt/busybox.tar", image)
}

func busyboxTar(t *testing.T) []byte {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	put := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/"} {
		put(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	put(tar.Header{Name: "bin/busybox", Mode: 0o755}, program)
	for _, name := range []string{"cat", "ip", "nc", "nslookup", "sh", "sleep", "timeout", "wget"} {
		put(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}
