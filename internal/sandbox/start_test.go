package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/nstest"
)

func newPrivate(t *testing.T, cfg PrivateConfig) *Private {
	t.Helper()
	nstest.Require(t)
	n, err := NewPrivate(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close the network: %v", err)
		}
	})
	return n
}

// output runs a shell script in a sandbox and returns what it printed.
func output(t *testing.T, cfg Config, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if cfg.Name == "" {
		cfg.Name = "box"
	}
	p, err := Start(t.Context(), cmd, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out.String())
	}
	return out.String()
}

func TestNetnsCommandHasItsOwnNetwork(t *testing.T) {
	n := newPrivate(t, PrivateConfig{Subnets: []netip.Prefix{
		netip.MustParsePrefix("10.90.1.0/24"), netip.MustParsePrefix("fd90:1::/64"),
	}, MTU: 1400})
	out := output(t, Config{Network: n, Hosts: []HostEntry{{"db", netip.MustParseAddr("192.0.2.7")}}},
		"ip -br addr; ip route; ip -6 route; cat /etc/resolv.conf /etc/hosts; cat /sys/class/net/eth0/mtu /proc/sys/net/ipv4/ip_unprivileged_port_start; ip link show eth0")
	for _, want := range []string{
		"10.90.1.2/24 fd90:1::2/64",
		"default via 10.90.1.1 dev eth0",
		"default via fd90:1::1 dev eth0",
		"nameserver 10.90.1.1\nnameserver fd90:1::1\n",
		"192.0.2.7\tdb\n10.90.1.2\tbox\nfd90:1::2\tbox\n",
		"mtu 1400",
		"\n0\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

func TestNetnsMachineKeepsItsFiles(t *testing.T) {
	n := newPrivate(t, PrivateConfig{})
	before, err := os.ReadFile(resolvConfPath)
	if err != nil {
		t.Fatal(err)
	}
	mounts := mountsOfOwn(t)
	output(t, Config{Network: n, Attached: func(Settings) error { return nil }}, "true")
	if after, err := os.ReadFile(resolvConfPath); err != nil || !bytes.Equal(before, after) {
		t.Errorf("resolv.conf was %q and is %q, %v", before, after, err)
	}
	if after := mountsOfOwn(t); !slices.Equal(mounts, after) {
		t.Errorf("mounts were\n%s\nand are\n%s", mounts, after)
	}
}

// mountsOfOwn lists the mounts of this namespace but for those that keep
// network namespaces by name: other tests make and remove such all the time.
func mountsOfOwn(t *testing.T) []string {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(strings.Split(string(info), "\n"), func(line string) bool {
		return strings.Contains(line, " - nsfs ")
	})
}

// TestNetnsCommandIsTheProcess holds that nothing stands between the caller and
// the command: pid, directory, environment, descriptors, exit status.
func TestNetnsCommandIsTheProcess(t *testing.T) {
	n := newPrivate(t, PrivateConfig{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const descriptors = `ls /proc/self/fd | tr '\n' ' '`
	plain := exec.Command("sh", "-c", descriptors)
	plain.ExtraFiles = []*os.File{w}
	without, err := plain.Output()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `echo $$ $PWD $COLOUR "$(cat)"; echo extra >&3; `+descriptors+"; exit 7")
	cmd.Dir, cmd.Env = "/", []string{"COLOUR=green", "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = strings.NewReader("input")
	cmd.ExtraFiles = []*os.File{w}
	var out bytes.Buffer
	cmd.Stdout = &out
	args, path := cmd.Args, cmd.Path
	p, err := Start(t.Context(), cmd, Config{Network: n, Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if cmd.Path != path || len(cmd.Args) != len(args) {
		t.Errorf("Start left the command as %s %q", cmd.Path, cmd.Args)
	}
	pid := cmd.Process.Pid
	var exit *exec.ExitError
	if err := p.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("Wait: %v, want exit status 7", err)
	}
	if want := itoa(pid) + " / green input\n" + string(without); out.String() != want {
		t.Errorf("the command printed %q, want %q", out.String(), want)
	}
	extra := make([]byte, 16)
	k, err := r.Read(extra)
	if string(extra[:k]) != "extra\n" {
		t.Errorf("the extra file got %q, %v", extra[:k], err)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

func TestNetnsCommandThatCannotBeExecuted(t *testing.T) {
	n := newPrivate(t, PrivateConfig{})
	script := t.TempDir() + "/script"
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		want error
	}{
		"missing":             {"/no/such/program", fs.ErrNotExist},
		"missing interpreter": {script, fs.ErrNotExist},
		"directory":           {"/etc", fs.ErrPermission},
		"no program":          {textFile(t), syscall.ENOEXEC},
	} {
		_, err := Start(t.Context(), &exec.Cmd{Path: c.path, Args: []string{c.path}}, Config{Network: n, Name: "box"})
		var path *os.PathError
		if !errors.As(err, &path) || path.Op != "exec" || path.Path != c.path || !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want an error of exec %s that is %v", name, err, c.path, c.want)
		}
	}
	_, err := Start(t.Context(), exec.Command("no-such-program"), Config{Network: n, Name: "box"})
	if !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("a name that is not in PATH: %v", err)
	}
	if links := n.Switch().Links(); len(links) != 0 {
		t.Errorf("links are left: %v", links)
	}
}

func textFile(t *testing.T) string {
	path := t.TempDir() + "/text"
	if err := os.WriteFile(path, []byte("no program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestNetnsEachStepIsUndone fails every step of the parent's and of the child's
// in turn.
func TestNetnsEachStepIsUndone(t *testing.T) {
	n := newPrivate(t, PrivateConfig{})
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := netip.MustParseAddrPort(free.Addr().String())
	free.Close()
	marker := t.TempDir() + "/ran"
	output(t, Config{Network: n}, "true") // what is opened once and kept is open now

	try := func(t *testing.T, cfg Config) {
		t.Helper()
		before := openFiles(t)
		cfg.Network, cfg.Name = n, "box"
		cfg.Publish = []Publish{{Proto: "tcp", Host: host, Port: 80}}
		cmd := exec.Command("touch", marker)
		_, err := Start(t.Context(), cmd, cfg)
		var setup *SetupError
		if !errors.As(err, &setup) || !strings.Contains(err.Error(), errFault.Error()) {
			t.Fatalf("Start: %v, want the injected fault as a *SetupError", err)
		}
		if _, err := os.Stat(marker); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the command was executed: %v", err)
		}
		if cmd.Process != nil && cmd.ProcessState == nil {
			t.Errorf("the set-up process %d was not waited for", cmd.Process.Pid)
		}
		if links, leases := n.Switch().Links(), n.pool.Leases(); len(links) != 0 || len(leases) != 0 {
			t.Errorf("left over: links %v, leases %v", links, leases)
		}
		l, err := net.Listen("tcp", host.String())
		if err != nil {
			t.Errorf("the published port is not free: %v", err)
		} else {
			l.Close()
		}
		nstest.WaitFor(t, 5*time.Second, func() bool { return openFiles(t) <= before })
	}
	for _, s := range parentSteps {
		t.Run("parent/"+s.name, func(t *testing.T) {
			try(t, Config{fault: func(step string) error {
				if step == s.name {
					return errFault
				}
				return nil
			}})
		})
	}
	for _, s := range childSteps {
		t.Run("child/"+s.name, func(t *testing.T) { try(t, Config{failChild: s.name}) })
	}
	t.Run("attached", func(t *testing.T) { try(t, Config{Attached: func(Settings) error { return errFault }}) })

	output(t, Config{Network: n, Publish: []Publish{{Proto: "tcp", Host: host, Port: 80}}}, "touch "+marker)
	if _, err := os.Stat(marker); err != nil {
		t.Errorf("after all the faults a command does not run: %v", err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNetnsStartEndsWithItsContext(t *testing.T) {
	n := newPrivate(t, PrivateConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Start(ctx, exec.Command("true"), Config{Network: n, Name: "box", Attached: func(Settings) error {
		cancel()
		return nil
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v, want %v", err, context.Canceled)
	}
	if links := n.Switch().Links(); len(links) != 0 {
		t.Errorf("links are left: %v", links)
	}
}

// TestNetnsLinkEndsWithTheLastProcess holds that the switch learns of a sandbox's
// end although nobody waits for its command.
func TestNetnsLinkEndsWithTheLastProcess(t *testing.T) {
	n := newPrivate(t, PrivateConfig{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := exec.Command("sh", "-c", "cat <&3 >/dev/null & exec sleep 60")
	cmd.ExtraFiles = []*os.File{r}
	p, err := Start(t.Context(), cmd, Config{Network: n, Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	r.Close()
	link := n.Switch().Link("box")
	nstest.WaitFor(t, 10*time.Second, func() bool { return processes(t, p) == 2 })
	cmd.Process.Kill()
	select {
	case <-link.Done():
		t.Error("the link ended before the last process")
	case <-time.After(500 * time.Millisecond):
	}
	w.Close() // cat ends
	select {
	case <-link.Done():
	case <-time.After(10 * time.Second):
		t.Error("the link does not end with the last process")
	}
}

// processes counts those of a sandbox.
func processes(t *testing.T, p *Process) int {
	t.Helper()
	return p.ns.each(func(int) {})
}

// TestNetnsNoNetworkAfterTheCommand holds that what a command leaves running is
// told that nothing can be reached, within the second that the kernel takes to
// tell of a lost carrier.
func TestNetnsNoNetworkAfterTheCommand(t *testing.T) {
	n := newPrivate(t, PrivateConfig{})
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", `(read line
		for i in $(seq 50); do ip route get 192.0.2.1 >/dev/null 2>&1 || break; sleep 0.1; done
		ip -4 route get 192.0.2.1; ip -6 route get 2001:db8::1
		ip -br link show eth0; echo over) <&3 >out 2>&1 &`)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Dir, cmd.ExtraFiles = dir, []*os.File{r}
	p, err := Start(t.Context(), cmd, Config{Network: n, Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var out []byte
	nstest.WaitFor(t, 10*time.Second, func() bool {
		out, _ = os.ReadFile(dir + "/out")
		return bytes.HasSuffix(out, []byte("over\n"))
	})
	if got := strings.Count(string(out), "unreachable"); got != 2 {
		t.Errorf("after the command's end its network is\n%s\nwant it unreachable by IPv4 and IPv6", out)
	}
}

func TestNetnsWishesThatCannotBeMet(t *testing.T) {
	n := newPrivate(t, PrivateConfig{})
	for name, attr := range map[string]*syscall.SysProcAttr{
		"root directory": {Chroot: "/tmp"},
		"credentials":    {Credential: &syscall.Credential{Uid: 1}},
		"namespaces":     {Cloneflags: syscall.CLONE_NEWUTS},
	} {
		cmd := exec.Command("true")
		cmd.SysProcAttr = attr
		if _, err := Start(t.Context(), cmd, Config{Network: n, Name: "box"}); err == nil || !strings.Contains(err.Error(), "SysProcAttr") {
			t.Errorf("%s: %v", name, err)
		}
	}
	cmd := exec.Command("sh", "-c", "ps -o sid= -p $$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var out bytes.Buffer
	cmd.Stdout = &out
	p, err := Start(t.Context(), cmd, Config{Network: n, Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	p.Wait()
	if got := strings.TrimSpace(out.String()); got != itoa(pid) {
		t.Errorf("Setsid: session %s, want %d", got, pid)
	}
}

func TestNetnsNamesOfSandboxesAreTheirOwn(t *testing.T) {
	n := newPrivate(t, PrivateConfig{})
	cmd := exec.Command("sleep", "60")
	p, err := Start(t.Context(), cmd, Config{Network: n, Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); p.Wait() }()
	if _, err := Start(t.Context(), exec.Command("true"), Config{Network: n, Name: "box"}); err == nil {
		t.Error("a second sandbox took the name of the first")
	}
	if got := len(n.pool.Leases()); got != 1 {
		t.Errorf("%d leases, want 1", got)
	}
}
