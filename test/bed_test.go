//go:build runtimes

package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

const (
	// binVar names the directory of the built programs; its presence tells the
	// process that runs in namespaces of its own.
	binVar = "USERNET_TEST_BIN"
	// refPlugins is where Debian's containernetworking-plugins are.
	refPlugins = "/usr/lib/cni"
)

func TestMain(m *testing.M) {
	if os.Getenv(binVar) != "" {
		nstest.Main(m)
	}
	code, err := runChild()
	if err != nil {
		fmt.Fprintln(os.Stderr, "test:", err)
		code = 1
	}
	os.Exit(code)
}

// runChild builds the programs and runs the tests in namespaces of their own.
func runChild() (int, error) {
	bin, err := os.MkdirTemp("", "usernet-test-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(bin)
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin+"/",
		"github.com/usernet/usernet/cmd/usernet", "github.com/usernet/usernet/cmd/usernet-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	// Runtimes find a plugin by the type of the network, and plugins find an IPAM
	// plugin by the type of that.
	for _, name := range []string{"cni/usernet", "ipam/host-local"} {
		path := filepath.Join(bin, name)
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			return 0, err
		}
		if err := os.Link(filepath.Join(bin, "usernet-cni"), path); err != nil {
			return 0, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	child := exec.Command(self, os.Args[1:]...)
	child.Env = append(os.Environ(), binVar+"="+bin)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	if os.Geteuid() == 0 {
		child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	}
	if err := child.Run(); child.ProcessState == nil {
		return 0, fmt.Errorf("run the tests in namespaces of their own: %w", err)
	}
	return child.ProcessState.ExitCode(), nil
}

// privateState gives this process's mount namespace an empty /var/lib/cni, where
// libcni keeps results and host-local its leases, and an empty /var/lib/usernet,
// where a daemon that was started by a plugin keeps its state.
var privateState = sync.OnceValue(func() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range []string{"/var/lib/cni", "/var/lib/usernet"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700"); err != nil {
			return fmt.Errorf("mount over %s: %w", dir, err)
		}
	}
	return nil
})

// bed is the world of one test.
type bed struct {
	t             *testing.T
	host, outside *netns.Handle
	dir           string // of the daemon: socket, state
	socket        string
	conf          string // NETCONFPATH
	client        *control.Client
}

// newBed makes the namespaces. The cable has 203.0.113.1 and 2001:db8::1 on the
// host, .2 and ::2 outside.
func newBed(t *testing.T) *bed {
	t.Helper()
	nstest.Require(t)
	if err := privateState(); err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, host: nstest.NewNS(t), outside: nstest.NewNS(t), dir: t.TempDir(), conf: t.TempDir()}
	nstest.Veth(t, b.host, b.outside, "203.0.113.1/24", "203.0.113.2/24", "2001:db8::1/64", "2001:db8::2/64")
	b.socket = filepath.Join(b.dir, "run", "usernet.sock")
	b.client = control.Dial(b.socket)
	return b
}

// need fails the test when a command is missing.
func need(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if _, err := exec.LookPath(c); err != nil {
			t.Fatalf("%v; \"make tools\" installs what ring 3 needs", err)
		}
	}
}

// program returns the path of a built program.
func program(name string) string { return filepath.Join(os.Getenv(binVar), name) }

// startDaemon starts the daemon in the host namespace and waits until it
// serves.
func (b *bed) startDaemon() *exec.Cmd {
	b.t.Helper()
	cmd := exec.Command(program("usernet"), "daemon", "--socket", b.socket, "--state-dir", filepath.Join(b.dir, "state"))
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	nstest.Start(b.t, b.host, cmd)
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("the daemon said:\n%s", log.String())
		}
	})
	nstest.WaitFor(b.t, 10*time.Second, func() bool {
		_, err := b.client.Version(context.Background())
		return err == nil
	})
	return cmd
}

// kill ends a daemon as a crash would.
func (b *bed) kill(cmd *exec.Cmd) {
	b.t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		b.t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
}

// keys are configuration keys.
type keys map[string]any

// allCapabilities lets cnitool pass every capability argument.
var allCapabilities = keys{"portMappings": true, "ips": true, "mac": true, "dns": true, "ipRanges": true, "aliases": true, "bandwidth": true}

// plugin returns a plugin's configuration, with more replacing keys.
func (b *bed) plugin(more keys) keys {
	p := keys{"type": "usernet", "socket": b.socket, "autostart": false, "capabilities": allCapabilities,
		"ipam": ranges("10.88.0.0/24", "fd88::/64")}
	for k, v := range more {
		if v == nil {
			delete(p, k)
		} else {
			p[k] = v
		}
	}
	return p
}

// ranges is an ipam key with one set of each subnet.
func ranges(subnets ...string) keys {
	var sets [][]keys
	for _, s := range subnets {
		sets = append(sets, []keys{{"subnet": s}})
	}
	return keys{"type": "usernet", "ranges": sets}
}

// network writes a configuration list.
func (b *bed) network(name, version string, more keys) {
	b.t.Helper()
	list := keys{"cniVersion": version, "name": name, "plugins": []keys{b.plugin(more)}}
	text, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.conf, name+".conflist"), text, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// container is an empty namespace and its path.
type container struct {
	ns   *netns.Handle
	path string
}

func (b *bed) container() container {
	ns := nstest.NewNS(b.t)
	return container{ns, nstest.Path(b.t, ns)}
}

// cnitool runs a verb for a container in the host namespace; env holds
// CAP_ARGS, CNI_ARGS, CNI_IFNAME.
func (b *bed) cnitool(verb, network string, c container, env ...string) (string, error) {
	b.t.Helper()
	need(b.t, "cnitool")
	cmd := exec.Command("cnitool", verb, network, c.path)
	cmd.Env = append(os.Environ(), "NETCONFPATH="+b.conf, "CNI_PATH="+program("cni")+":"+refPlugins)
	cmd.Env = append(cmd.Env, env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := b.host.Do(cmd.Start); err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("cnitool %s %s: %w: %s%s", verb, network, err, stderr.String(), stdout.String())
	}
	return stdout.String(), nil
}

// must is cnitool for what has to succeed.
func (b *bed) must(verb, network string, c container, env ...string) string {
	b.t.Helper()
	out, err := b.cnitool(verb, network, c, env...)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// result is what the tests read of a CNI result (1.x).
type result struct {
	CNIVersion string `json:"cniVersion"`
	Interfaces []struct {
		Name, Mac, Sandbox string
		Mtu                int
	} `json:"interfaces"`
	IPs []struct {
		Interface        *int
		Address, Gateway string
	} `json:"ips"`
	Routes []struct{ Dst, GW string } `json:"routes"`
	DNS    struct {
		Nameservers []string
		Domain      string
		Search      []string
		Options     []string
	} `json:"dns"`
}

// ip returns the n-th address without its length.
func (r *result) ip(n int) string { return strings.Split(r.IPs[n].Address, "/")[0] }

// add runs ADD and returns its result.
func (b *bed) add(network string, c container, env ...string) *result {
	b.t.Helper()
	return b.parse(b.must("add", network, c, env...))
}

func (b *bed) parse(text string) *result {
	b.t.Helper()
	var r result
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		b.t.Fatalf("decode result %s: %v", text, err)
	}
	return &r
}

// raw runs the plugin itself, as a runtime does, and returns its status and
// what it printed.
func (b *bed) raw(verb, config string, env ...string) (int, string) {
	b.t.Helper()
	cmd := exec.Command(program("cni/usernet"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_PATH="+program("cni")+":"+refPlugins)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdin = strings.NewReader(config)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := b.host.Do(cmd.Start); err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState == nil {
		b.t.Fatal(err)
	}
	if stderr.Len() > 0 {
		b.t.Logf("%s wrote to its standard error: %s", verb, stderr.String())
	}
	return cmd.ProcessState.ExitCode(), stdout.String()
}

// rawConfig is the configuration of one plugin as a runtime sends it.
func (b *bed) rawConfig(name, version string, more keys) string {
	b.t.Helper()
	p := b.plugin(more)
	p["name"], p["cniVersion"] = name, version
	text, err := json.Marshal(p)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// links returns the IDs of the daemon's links.
func (b *bed) links() []string {
	b.t.Helper()
	links, err := b.client.Links(context.Background(), "")
	if err != nil {
		b.t.Fatal(err)
	}
	ids := []string{}
	for _, l := range links {
		ids = append(ids, l.ID)
	}
	return ids
}
