package usernet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"

	"github.com/usernet/usernet/internal/sandbox"
	"github.com/usernet/usernet/netstack"
)

// Init must be called first in main, and in TestMain of tests that start
// commands. A sandbox is set up by this program's own executable, started again:
// in such a process Init does not return but becomes the command. In any other
// it returns at once.
func Init() { sandbox.Init() }

// Cmd is an [exec.Cmd] that runs in a network of its own or in one that it shares.
// The embedded Cmd's fields mean what they always mean, but SysProcAttr may not
// ask for namespaces, credentials or another root. Of its methods, those that
// start and wait are replaced by the ones of this type.
//
// Process is the command itself, not a helper: its Pid and Signal are the
// command's. The command is killed when this process dies.
//
// A Cmd runs once, and is not for concurrent use.
type Cmd struct {
	*exec.Cmd

	// Network is what the command is attached to. Nil: a network of its own
	// as Private says, which ends with the command.
	Network *Network

	// Private configures the command's own network when Network is nil.
	Private NetworkConfig

	// Name is the command's name in its network, under which others reach it:
	// lower-case letters, digits and hyphens. Zero: "sandbox".
	Name string

	// Publish lists ports of the host that lead to ports of the command, in the
	// grammar of "usernet run --publish": "8080", "8080:80",
	// "127.0.0.1:8080:80/udp", "[::1]:8000-8010:80-90". Without an address the
	// host listens on 127.0.0.1; host port 0 is any free one, see Published.
	Publish []string

	ctx     context.Context
	process *sandbox.Process
	private *sandbox.Private
	flows   []netstack.Flow // of an own network, once it has ended
}

// Command returns a Cmd that runs the named program with the given arguments, as
// [exec.Command] does.
func Command(name string, arg ...string) *Cmd {
	return &Cmd{Cmd: exec.Command(name, arg...), ctx: context.Background()}
}

// CommandContext is like [Command] with a context that ends the set-up and kills
// the command, as [exec.CommandContext] has it.
func CommandContext(ctx context.Context, name string, arg ...string) *Cmd {
	return &Cmd{Cmd: exec.CommandContext(ctx, name, arg...), ctx: ctx}
}

// Start sets the network up and starts the command in it; it returns when the
// command executes. When it fails nothing is left of the network's set-up. A
// program that does not exist is [exec.ErrNotFound] by [errors.Is]; one that
// cannot be executed is an [*os.PathError].
func (c *Cmd) Start() error {
	publish, err := c.publications()
	if err != nil {
		return err
	}
	network := c.Network.inner()
	if network == nil {
		if network, err = sandbox.NewPrivate(c.Private.inner()); err != nil {
			return err
		}
		c.private = network
	}
	name := c.Name
	if name == "" {
		name = "sandbox"
	}
	ctx := c.ctx
	if ctx == nil { // not made by Command
		ctx = context.Background()
	}
	c.process, err = sandbox.Start(ctx, c.Cmd, sandbox.Config{Network: network, Name: name, Publish: publish})
	if err != nil && c.private != nil {
		c.private.Close() // nothing is attached to it
		c.private = nil
	}
	return err
}

func (c *Cmd) publications() ([]sandbox.Publish, error) {
	var all []sandbox.Publish
	for _, spec := range c.Publish {
		some, err := sandbox.ParsePublish(spec)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// Wait waits for the command and then ends its link, and its own network. The
// error is that of [exec.Cmd.Wait]: nil for exit status 0, an [*exec.ExitError]
// for another.
func (c *Cmd) Wait() error {
	if c.process == nil {
		return errors.New("usernet: the command was not started")
	}
	err := c.process.Wait()
	if c.private != nil {
		c.flows = c.private.Switch().Flows()
		if cerr := c.private.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("end the command's network: %w", cerr)
		}
		c.private = nil
	}
	return err
}

// Run starts the command and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns its standard output. If the command fails
// and Stderr was nil, the [*exec.ExitError] has the standard error.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errors.New("usernet: Stdout is set already")
	}
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	capture := c.Stderr == nil
	if capture {
		c.Stderr = &stderr
	}
	err := c.Run()
	var exit *exec.ExitError
	if capture && errors.As(err, &exit) {
		exit.Stderr = stderr.Bytes()
	}
	return stdout.Bytes(), err
}

// CombinedOutput runs the command and returns its standard output and standard
// error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, errors.New("usernet: Stdout or Stderr is set already")
	}
	var both bytes.Buffer
	c.Stdout, c.Stderr = &both, &both
	err := c.Run()
	return both.Bytes(), err
}

// Addrs returns the command's addresses, with their subnets' lengths, once it
// was started.
func (c *Cmd) Addrs() []netip.Prefix {
	if c.process == nil {
		return nil
	}
	return c.process.Settings().Addrs
}

// Published returns the host's addresses and ports that Publish asked for, in
// that order and with ranges expanded, once the command was started.
func (c *Cmd) Published() []netip.AddrPort {
	if c.process == nil {
		return nil
	}
	var all []netip.AddrPort
	for _, p := range c.process.Settings().Published {
		all = append(all, p.Host)
	}
	return all
}

// Warnings returns what the sandbox does without on this machine, such as ping,
// once the command was started.
func (c *Cmd) Warnings() []string {
	if c.process == nil {
		return nil
	}
	return c.process.Warnings()
}

// Flows returns the conversations of the command's network, oldest first: while
// it runs those so far, and after Wait all of them. For a shared network it is
// [Network.Flows].
func (c *Cmd) Flows() []netstack.Flow {
	switch {
	case c.Network != nil:
		return c.Network.Flows()
	case c.private != nil:
		return c.private.Switch().Flows()
	}
	return c.flows
}

// NetworkConfig describes a [Network]. The zero value has IPv4, IPv6, and a way
// out.
type NetworkConfig struct {
	// Name of the network, in flows and logs. Zero: "default".
	Name string

	// Subnets, at most one per family, such as 10.9.0.0/24 and fd00:9::/64; the
	// first address of each is the gateway's. Zero for a family:
	// 10.83.0.0/24, or the next that no network of the host overlaps, and
	// fd83:7573:6572::/64.
	Subnets []netip.Prefix

	// NoIPv6 leaves IPv6 out.
	NoIPv6 bool

	// MTU of the commands' interfaces in bytes. Zero: 65520.
	MTU int

	// Internal cuts the network off from everything but its own commands.
	Internal bool

	// DNS are the resolvers that names outside the network are asked of. Zero:
	// those of the host's resolv.conf, followed as it changes.
	DNS []netip.AddrPort

	// Hosts are further names that the network's resolver answers.
	Hosts map[string]netip.Addr

	// HostServices open single ports of the host, its loopback included, under
	// a name.
	HostServices []netstack.HostService

	// Log receives life-cycle events, never packets. Zero: discarded.
	Log *slog.Logger

	// OnFlow, if not nil, is called when a flow ends. It must not block.
	OnFlow func(netstack.Flow)
}

func (c NetworkConfig) inner() sandbox.PrivateConfig {
	inner := sandbox.PrivateConfig{
		Name: c.Name, Subnets: c.Subnets, NoIPv6: c.NoIPv6, MTU: c.MTU, Internal: c.Internal,
		DNS: c.DNS, HostServices: c.HostServices, Log: c.Log, OnFlow: c.OnFlow,
	}
	for name, addr := range c.Hosts {
		inner.Hosts = append(inner.Hosts, sandbox.HostEntry{Name: name, Addr: addr})
	}
	return inner
}

// Network connects the commands that name it. Its methods are safe for
// concurrent use.
type Network struct{ private *sandbox.Private }

// NewNetwork makes a network in this process. The caller closes it, after the
// commands on it have ended.
func NewNetwork(cfg NetworkConfig) (*Network, error) {
	private, err := sandbox.NewPrivate(cfg.inner())
	if err != nil {
		return nil, err
	}
	return &Network{private}, nil
}

// inner returns what the sandbox package knows the network as; nil for nil.
func (n *Network) inner() *sandbox.Private {
	if n == nil {
		return nil
	}
	return n.private
}

// Switch returns the network's switch, to attach other devices, publish ports
// while commands run, or capture packets. It ends with the network.
func (n *Network) Switch() *netstack.Switch { return n.private.Switch() }

// DialContext connects to a port of a command on the network, as
// [net.Dialer.DialContext] does: network is "tcp", "tcp4" or "tcp6", and address
// "NAME:PORT" or "ADDRESS:PORT".
func (n *Network) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return n.private.Switch().DialContext(ctx, network, address)
}

// Flows returns the live conversations and the last ended ones, oldest first.
func (n *Network) Flows() []netstack.Flow { return n.private.Switch().Flows() }

// Close ends the network; what is still attached is cut off.
func (n *Network) Close() error { return n.private.Close() }
