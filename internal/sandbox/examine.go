package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// CheckState is the outcome of a check.
type CheckState string

// The outcomes of checks.
const (
	OK      CheckState = "ok"
	Warning CheckState = "warning" // a feature is missing
	Failed  CheckState = "failed"  // sandboxes do not work
)

// Check is one thing that was looked at on this machine.
type Check struct {
	Name  string     `json:"name"`
	State CheckState `json:"state"`
	Found string     `json:"found"`         // what is there
	Fix   string     `json:"fix,omitempty"` // what to do about it
}

// Examine looks at what sandboxes need of this machine. It changes nothing that
// outlasts it: what it tries, it tries in namespaces of its own.
func Examine(ctx context.Context) []Check {
	return []Check{
		checkTUN(), checkNamespaces(), checkSandbox(ctx),
		checkPing(), checkLowPorts(), checkResolvConf(), checkFiles(),
	}
}

func checkTUN() Check {
	c := Check{Name: "/dev/net/tun", State: OK, Found: "can be opened"}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		c.State, c.Found = Failed, err.Error()
		c.Fix = tunHint(err.(syscall.Errno)) //nolint:errorlint // unix.Open returns nothing else
		return c
	}
	unix.Close(fd)
	return c
}

func checkNamespaces() Check {
	c := Check{Name: "namespaces", State: OK, Found: "root makes them without a user namespace"}
	if MayMakeNamespaces() {
		return c
	}
	c.Found = "user namespaces may be made"
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{childArg0, probeArg}
	attr, err := childAttr(nil, true)
	if err == nil {
		cmd.SysProcAttr = attr
		err = cmd.Run()
	}
	if err != nil {
		c.State, c.Found = Failed, err.Error()
		var errno syscall.Errno
		if errors.As(err, &errno) {
			c.Fix = namespaceHint(errno, true)
		} else {
			c.Fix = restrictionHint() // it started, and then died
		}
	}
	return c
}

// checkSandbox runs a command in a sandbox that has no way out.
func checkSandbox(ctx context.Context) Check {
	c := Check{Name: "sandbox", State: OK, Found: "a command was run in one"}
	fail := func(err error) Check {
		c.State, c.Found = Failed, err.Error()
		var setup *SetupError
		if errors.As(err, &setup) {
			c.Found, c.Fix = setup.Step+": "+setup.Err.Error(), setup.Hint
		}
		return c
	}
	network, err := NewPrivate(PrivateConfig{Name: "doctor", Internal: true})
	if err != nil {
		return fail(err)
	}
	defer network.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{childArg0, probeArg}
	p, err := Start(ctx, cmd, Config{Network: network, Name: "doctor"})
	if err != nil {
		return fail(err)
	}
	if err := p.Wait(); err != nil {
		return fail(fmt.Errorf("run a command in it: %w", err))
	}
	if w := p.Warnings(); len(w) > 0 {
		c.State, c.Found = Warning, w[0]
	}
	return c
}

// checkPing looks for the right to open ICMP sockets, which ping from a sandbox
// to the outside needs.
func checkPing() Check {
	c := Check{Name: "ping", State: OK, Found: "ICMP echo sockets may be opened"}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		c.State = Warning
		c.Found = fmt.Sprintf("ping from sandboxes to the outside does not work: group %d is not in net.ipv4.ping_group_range = %q",
			os.Getegid(), strings.Join(strings.Fields(readSysctl("net/ipv4/ping_group_range", "?")), " "))
		c.Fix = `sysctl -w net.ipv4.ping_group_range="0 2147483647"`
		return c
	}
	unix.Close(fd)
	return c
}

func checkLowPorts() Check {
	c := Check{Name: "low ports", State: OK}
	caps, err := effectiveCaps()
	if err == nil && caps&(1<<unix.CAP_NET_BIND_SERVICE) != 0 {
		c.Found = "every port can be published"
		return c
	}
	start := readSysctl("net/ipv4/ip_unprivileged_port_start", "1024")
	c.Found = "ports from " + start + " on can be published"
	if n, err := strconv.Atoi(start); err == nil && n > 80 {
		c.State = Warning
		c.Fix = "sysctl -w net.ipv4.ip_unprivileged_port_start=80"
	}
	return c
}

func checkResolvConf() Check {
	c := Check{Name: "resolv.conf", State: OK}
	conf, err := os.ReadFile(resolvConfPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.State, c.Found = Warning, resolvConfPath+" does not exist: names outside are not found"
	case err != nil:
		c.State, c.Found = Warning, err.Error()
	default:
		servers := 0
		for line := range bytes.Lines(conf) {
			if fields := bytes.Fields(line); len(fields) > 1 && string(fields[0]) == "nameserver" {
				servers++
			}
		}
		c.Found = fmt.Sprintf("names %d resolvers", servers)
		if servers == 1 {
			c.Found = "names 1 resolver"
		}
		if servers == 0 {
			c.State = Warning
		}
	}
	if c.State == Warning {
		c.Fix = "name a resolver: usernet run --dns ADDRESS, or a nameserver line in " + resolvConfPath
	}
	return c
}

// enoughFiles is a few thousand flows: each costs a descriptor.
const enoughFiles = 4096

func checkFiles() Check {
	c := Check{Name: "open files", State: OK}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		c.State, c.Found = Warning, err.Error()
		return c
	}
	// The runtime has raised the soft limit to the hard one already.
	c.Found = fmt.Sprintf("%d allowed, which bounds the flows at a time", limit.Max)
	if limit.Max < enoughFiles {
		c.State = Warning
		c.Fix = "ulimit -Hn 65536 (as root), or LimitNOFILE=65536 in the service"
	}
	return c
}
