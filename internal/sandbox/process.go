package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Exit statuses of programs that run a command in a sandbox, as env(1), nohup(1)
// and docker-run(1) have them. A command that is killed by signal N counts as
// ExitSignal+N.
const (
	ExitFailure       = 125 // the sandbox could not be set up
	ExitNotExecutable = 126
	ExitNotFound      = 127
	ExitSignal        = 128
)

// DefaultIfName is the sandbox's interface: the name that programs made for
// containers look for.
const DefaultIfName = "eth0"

// Network is what sandboxes are attached to.
type Network interface {
	// Attach makes a link of a TUN. It owns tun on success only.
	Attach(ctx context.Context, tun *os.File, spec LinkSpec) (Attachment, error)
}

// Attachment is one sandbox's link to a network.
type Attachment interface {
	// Settings says what the sandbox's interface is to look like.
	Settings() Settings
	// Commit makes the link last until Detach.
	Commit(ctx context.Context) error
	// Detach removes the link and all that was made for it.
	Detach(ctx context.Context) error
}

// LinkSpec is what a sandbox wants of its network.
type LinkSpec struct {
	Name    string    // the sandbox's name, also in the network's DNS
	Publish []Publish // ports to open
	Netns   uint64    // inode of the sandbox's network namespace
	IfName  string    // the interface inside
}

// Settings is what a network gives a sandbox.
type Settings struct {
	Addrs       []netip.Prefix // each with the length of its subnet
	Gateways    []netip.Addr   // default routes lead here; at most one per family
	MTU         int            // bytes; 0: the device's own
	Nameservers []netip.Addr
	Search      []string  // search domains for resolv.conf
	Options     []string  // options for resolv.conf
	Published   []Publish // as asked for, with the ports that the kernel chose
}

// HostEntry is one line of a hosts file.
type HostEntry struct {
	Name string
	Addr netip.Addr
}

// Config says how a command is run.
type Config struct {
	// Network is what the sandbox is attached to. Required.
	Network Network
	// Name is the sandbox's name in its network. Required.
	Name string
	// Publish lists ports of the host that lead into the sandbox.
	Publish []Publish
	// Hosts are put before the entries of the machine's hosts file.
	Hosts []HostEntry
	// IfName is the interface's name inside. Zero: DefaultIfName.
	IfName string
	// Attached, if not nil, is called when the link is made and before the
	// command can send anything, to start a capture for example. An error
	// ends the set-up.
	Attached func(Settings) error

	fault     func(step string) error // tests fail a step of the parent's
	failChild string                  // tests fail a step of the child's
}

// errFault is the error of a step that a test made fail.
var errFault = errors.New("step was made to fail")

// SetupError says which step of a sandbox's set-up did not work, and where that
// is known what to do about it.
type SetupError struct {
	Step string
	Err  error
	Hint string // empty: the error speaks for itself
}

// Error implements error.
func (e *SetupError) Error() string {
	s := e.Step + ": " + e.Err.Error()
	if e.Hint != "" {
		s += "\n" + e.Hint
	}
	return s
}

// Unwrap returns the cause.
func (e *SetupError) Unwrap() error { return e.Err }

// Process is a command that runs in a sandbox.
type Process struct {
	cmd      *exec.Cmd
	cfg      Config
	link     Attachment
	reaper   *reaper
	ns       namespaces
	settings Settings
	warnings []string

	running chan struct{} // closed once Start has succeeded
	over    chan struct{} // closed once the command has been waited for
	once    sync.Once
	end     func() error // ends the link; more calls return the first one's error
}

// detach takes the link from the network.
func (p *Process) detach() error {
	ctx, cancel := context.WithTimeout(context.Background(), detachTimeout)
	defer cancel()
	return p.link.Detach(ctx)
}

// Start runs cmd in a sandbox and returns once the command itself is executing.
// All of cmd's fields mean what they mean for [exec.Cmd.Start], but
// SysProcAttr may not ask for namespaces, credentials or another root. The
// caller waits by [Process.Wait] and not by cmd.Wait. ctx is for the set-up only.
//
// When Start fails nothing is left of the sandbox, and cmd cannot be used again.
// The error is a [*SetupError], or what [exec.Cmd.Start] returns for a command that
// is not there; when the command cannot be executed it is an [*os.PathError] for
// exec.
func Start(ctx context.Context, cmd *exec.Cmd, cfg Config) (*Process, error) {
	if !hooked.Load() {
		return nil, errors.New("sandbox: the program did not call usernet.Init first in main (in tests: in TestMain)")
	}
	if cmd.Err != nil {
		return nil, cmd.Err
	}
	if cmd.Process != nil {
		return nil, errors.New("sandbox: the command has been started already")
	}
	if cfg.IfName == "" {
		cfg.IfName = DefaultIfName
	}
	if cfg.fault == nil {
		cfg.fault = func(string) error { return nil }
	}
	p := &Process{cmd: cmd, cfg: cfg, running: make(chan struct{}), over: make(chan struct{})}
	p.end = sync.OnceValue(p.detach)
	s := &start{p: p, ownUserns: !MayMakeNamespaces()}
	defer s.undo.Run()
	err := s.run(ctx)
	if s.unwatch != nil {
		s.unwatch()
	}
	if err != nil {
		return nil, err
	}
	s.undo.Keep()
	close(p.running)
	return p, nil
}

// Settings returns what the network gave the sandbox.
func (p *Process) Settings() Settings { return p.settings }

// Warnings are the things that the sandbox does without.
func (p *Process) Warnings() []string { return slices.Clone(p.warnings) }

// Wait waits for the command as [exec.Cmd.Wait] does, takes its link from the
// network and returns the command's own error. What the command left running in
// the background has no network from then on.
func (p *Process) Wait() error {
	err := p.cmd.Wait()
	p.once.Do(func() {
		close(p.over)
		p.reaper.dismiss()
		if derr := p.end(); derr != nil && err == nil {
			err = fmt.Errorf("command succeeded, and then: %w", derr)
		}
	})
	return err
}

// detachTimeout bounds the end of a sandbox. Detaching resets flows and waits
// for nobody outside; only a daemon that hangs can take longer.
const detachTimeout = 5 * time.Second

// spawn starts the command's process and holds the OS thread that did until the
// process has been waited for: its death signal is tied to this thread. Start
// starts it; it ends when over closes, or at once when the start failed.
func (p *Process) spawn(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	select {
	case <-p.running:
		p.awaitEnd()
	case <-p.over:
	}
}

// awaitEnd ends the link with the sandbox's last process when nobody waits for
// the command: the namespace, which the TUN's descriptor keeps, does not tell.
func (p *Process) awaitEnd() {
	if !awaitExit(p.cmd.Process) {
		<-p.over
		return
	}
	for patience := 100 * time.Millisecond; ; patience = time.Second {
		select {
		case <-p.over:
			return
		case <-time.After(patience):
		}
		if !p.ns.inhabited() {
			_ = p.end() // Wait returns the error
			<-p.over
			return
		}
	}
}

// awaitExit waits until a child has exited, and leaves it to be waited for.
func awaitExit(p *os.Process) bool {
	var err error
	handleErr := p.WithHandle(func(pidfd uintptr) {
		for {
			err = unix.Waitid(unix.P_PIDFD, int(pidfd), nil, unix.WEXITED|unix.WNOWAIT, nil)
			if err != unix.EINTR {
				return
			}
		}
	})
	return handleErr == nil && err == nil
}
