package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/tunnel"
)

// childArg0 is how the child knows what it is. It is seen by ps for the few
// milliseconds of the set-up.
const childArg0 = "usernet-sandbox-setup"

// probeArg makes the child end at once with success: to have been started is
// all that a check wants of it.
const probeArg = "probe"

// hooked says that Init was called, without which a child could not find its
// entry and would run the program a second time instead.
var hooked atomic.Bool

// Init must be called first in main, and in TestMain of tests that start
// sandboxes. In a process that [Start] made it does not return: it sets the
// sandbox up and becomes the command. In any other it only notes that it was
// called.
func Init() {
	if len(os.Args) < 2 || os.Args[0] != childArg0 {
		hooked.Store(true)
		return
	}
	switch {
	case os.Args[1] == probeArg:
		os.Exit(0)
	case os.Args[1] == reapArg:
		reap()
		os.Exit(0)
	}
	// execve keeps the namespaces, capabilities and death signal of the
	// thread that calls it, so all of the set-up happens on this one.
	runtime.LockOSThread()
	c, err := newChild(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "usernet: set up the sandbox: %v\n", err)
		os.Exit(ExitFailure)
	}
	step, err := c.run()
	_ = c.pipe.send(childMessage{Fault: newFault(step, err)}, nil) // a parent that is gone needs no reason
	os.Exit(ExitFailure)
}

// child is the set-up's state.
type child struct {
	pipe     *pipe
	ifName   string
	settings childSettings
	warnings []string

	tun      *os.File
	failStep string
}

// newChild reads the arguments: the socket's descriptor, the interface's name
// and, in tests, the step that is to fail.
func newChild(args []string) (*child, error) {
	if len(args) < 2 {
		return nil, fmt.Errorf("%d arguments, want a descriptor and an interface's name", len(args))
	}
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, fmt.Errorf("descriptor %q: %w", args[0], err)
	}
	unix.CloseOnExec(fd)
	p, err := pipeOf(os.NewFile(uintptr(fd), "sandbox"))
	if err != nil {
		return nil, err
	}
	c := &child{pipe: p, ifName: args[1]}
	if len(args) > 2 {
		c.failStep = args[2]
	}
	return c, nil
}

// childSteps are the set-up's steps in order, by the names that errors and tests
// call them by. What needs no settings is done while the parent attaches.
var childSteps = []struct {
	name string
	do   func(*child) error
}{
	{"create the TUN device", (*child).createTUN},
	{"hand the TUN device over", (*child).handOver},
	{"bring the loopback interface up", func(*child) error { return netns.LoopbackUp() }},
	{"set the namespace's parameters", (*child).sysctls},
	{"separate the mounts", func(*child) error { return privateMounts() }},
	{"hide the machine's resolvers", func(*child) error { return maskSockets(resolverSockets) }},
	{"wait for the settings", (*child).awaitSettings},
	{"configure the interface", func(c *child) error { return netns.Configure(c.settings.Interface) }},
	{"put resolv.conf and hosts in place", func(c *child) error { return mountFiles(c.settings.Files) }},
	{"drop privileges", (*child).dropPrivileges},
	{"wait for the parent", (*child).ready},
	{"execute", (*child).exec},
}

// run returns only when a step failed.
func (c *child) run() (step string, err error) {
	for _, s := range childSteps {
		if c.failStep != "" && c.failStep == s.name {
			return s.name, errFault
		}
		if err := s.do(c); err != nil {
			return s.name, err
		}
	}
	return "execute", errors.New("execve returned")
}

func (c *child) createTUN() (err error) {
	c.tun, err = tunnel.Create(tunnel.Options{Name: c.ifName, Persist: true})
	return err
}

// handOver gives the parent the TUN, whose descriptor is then the only one.
func (c *child) handOver() error {
	own, err := ownNamespaces()
	if err != nil {
		return err
	}
	if err := c.pipe.send(childMessage{Device: &own}, c.tun); err != nil {
		return err
	}
	return c.tun.Close()
}

func (c *child) awaitSettings() error {
	var m parentMessage
	if err := c.pipe.receive(&m); err != nil {
		return fmt.Errorf("wait for the configuration: %w", err)
	}
	if m.Settings == nil {
		return errors.New("the parent sent no configuration")
	}
	c.settings = *m.Settings
	return nil
}

// sysctls lets the command ping and listen on every port of its own network.
// Where /proc/sys is read-only, as in many containers, it does without.
func (c *child) sysctls() error {
	if err := netns.SetPingGroupRange(mappedGroups()); err != nil {
		c.warn("ping needs privileges inside the sandbox: %v", err)
	}
	if err := netns.SetSysctl("ipv4/ip_unprivileged_port_start", "0"); err != nil {
		c.warn("ports below 1024 need privileges inside the sandbox: %v", err)
	}
	// What outlives the link learns that there is no network, and does not
	// wait for answers.
	for _, family := range []string{"ipv4", "ipv6"} {
		_ = netns.SetSysctl(family+"/conf/all/ignore_routes_with_linkdown", "1")
	}
	return nil
}

// mappedGroups returns the groups around this process's own that its user
// namespace knows; the kernel takes no others for ping_group_range.
func mappedGroups() (lowest, highest uint32) {
	const last = 1<<31 - 1 // the kernel's maximum for the parameter
	gid := uint64(os.Getgid())
	maps, err := os.ReadFile("/proc/self/gid_map")
	if err != nil {
		return 0, last
	}
	for line := range strings.Lines(string(maps)) {
		var inside, outside, length uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &length); err != nil {
			continue
		}
		if gid >= inside && gid-inside < length {
			return uint32(inside), uint32(min(inside+length-1, last))
		}
	}
	return uint32(gid), uint32(gid)
}

func (c *child) warn(format string, args ...any) {
	c.warnings = append(c.warnings, fmt.Sprintf(format, args...))
}

func (c *child) dropPrivileges() error {
	if c.settings.OwnUserns {
		if err := dropPrivileges(c.settings.Bounding); err != nil {
			return err
		}
	}
	// Set again, and on this thread: the kernel forgets the signal when
	// credentials change, and keeps it per thread.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("die with the parent: %w", err)
	}
	return nil
}

// ready also finds out whether the parent died before the death signal was set:
// its end of the socket is closed then.
func (c *child) ready() error {
	if err := c.pipe.send(childMessage{Ready: &readyMessage{Warnings: c.warnings}}, nil); err != nil {
		return err
	}
	var m parentMessage
	if err := c.pipe.receive(&m); err != nil {
		return fmt.Errorf("wait to go on: %w", err)
	}
	if !m.Go {
		return errors.New("the parent did not let the set-up go on")
	}
	return nil
}

// exec does not return when it succeeds. The environment is the command's
// already, and the socket closes on its own.
func (c *child) exec() error {
	err := syscall.Exec(c.settings.Path, c.settings.Args, os.Environ())
	return &os.PathError{Op: "exec", Path: c.settings.Path, Err: err}
}
