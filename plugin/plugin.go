package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/control"
)

// Process is the process that one invocation runs as. Env, Stdin, Stdout and
// Stderr must be set.
type Process struct {
	// Name is the program's name as it was started, os.Args[0]. The last
	// element of the path decides what the plugin is: one of [DropInNames], or
	// else the plugin of type "usernet".
	Name string
	// Env is the environment, in the form of os.Environ.
	Env []string
	// Stdin gives the network configuration. VERSION may be asked without.
	Stdin io.Reader
	// Stdout takes one JSON document, or nothing.
	Stdout io.Writer
	// Stderr takes what is for people; runtimes pass it to their log.
	Stderr io.Writer
	// Caller finds the program that runs the plugin, as the function [Caller] does;
	// it is called at most once, by verbs that ask. A garbage collection judges
	// only links of the same name, so that two runtimes can share a network, and a
	// host port that the process holds is held for the container. Nil: unknown.
	Caller func() (pid int, name string)
	// Interruptible returns a context that ends when the process is asked to end,
	// for verbs that then take back what they did; others may just end. Nil: ctx is
	// all there is.
	Interruptible func(ctx context.Context) (context.Context, context.CancelFunc)
	// Release is usernet's own version. Empty: "unknown".
	Release string
}

// Caller returns the process of the runtime: the nearest ancestor that does not
// run as a plugin itself, as a plugin does that runs another for it (IPAM,
// multus). name is what the kernel calls it (proc(5) "comm"), "" when it is gone.
func Caller() (pid int, name string) {
	pid = os.Getppid()
	for range maxDelegation {
		up := parentOf(pid)
		if up <= 1 || !runsAsPlugin(pid) {
			break
		}
		pid = up
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return pid, ""
	}
	return pid, strings.TrimSpace(string(b))
}

// maxDelegation is how many plugins may have run each other.
const maxDelegation = 8

// runsAsPlugin reports whether a process was started with CNI_COMMAND. What the
// caller may not read is none of its plugins.
func runsAsPlugin(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	return err == nil && environ(strings.Split(string(b), "\x00")).get("CNI_COMMAND") != ""
}

// invocation is one run of a verb that has a configuration.
type invocation struct {
	Process
	program *program
	params  parameters
	input   []byte  // the configuration as it came; IPAM plugins get it whole
	version string  // to print results and errors in
	conf    *config // judged
	client  *control.Client
	runtime *caller // nil: not asked for yet
	missing bool    // no daemon had a link to detach

	// afterStep is called after each step of an ADD and after a DEL's tombstone;
	// an error from it makes the step fail. For tests; nil otherwise.
	afterStep func(step string) error
}

// done reports a finished step.
func (i *invocation) done(step string) error {
	if i.afterStep == nil {
		return nil
	}
	return i.afterStep(step)
}

// maxInput bounds the configuration; CNI has no limit, memory has.
const maxInput = 4 << 20

// Run carries out one invocation and returns the exit status: 0, or 1 after
// an error object was written to Stdout. Without CNI_COMMAND it tells on
// Stderr what the program is, and returns 0. Cancelling ctx makes an ADD take
// back what it did.
func Run(ctx context.Context, p Process) int {
	if p.Release == "" {
		p.Release = "unknown"
	}
	inv := &invocation{Process: p, version: newestVersion}
	return inv.exit(inv.run(ctx))
}

// exit reports err as the specification wants it.
func (i *invocation) exit(err error) int {
	if err == nil {
		return 0
	}
	if perr := printError(i.Stdout, i.version, asCNI(err)); perr != nil {
		fmt.Fprintf(i.Stderr, "usernet-cni: %v; the error was: %v\n", perr, err)
	}
	return 1
}

func (i *invocation) run(ctx context.Context) error {
	i.program = programOf(i.Name)
	switch environ(i.Env).get("CNI_COMMAND") {
	case "":
		printAbout(i.Stderr, i.program, i.Release)
		return nil
	case cmdVersion:
		return printVersions(i.Stdout, i.Stdin)
	}
	if err := i.read(); err != nil {
		return err
	}
	return i.program.verbs[i.params.Command](i, ctx) // readParameters let no other pass
}

// read judges environment and configuration. The version comes first: what
// another version of the specification calls its keys cannot be judged.
func (i *invocation) read() error {
	var err error
	if i.params, err = readParameters(i.Env, i.program.loopback); err != nil {
		return err
	}
	if i.input, err = io.ReadAll(io.LimitReader(i.Stdin, maxInput+1)); err != nil {
		return fail(types.ErrIOFailure, "read the network configuration on standard input: %v", err)
	}
	if len(i.input) > maxInput {
		return fail(types.ErrDecodingFailure, "network configuration on standard input: longer than %d bytes", maxInput)
	}
	var head struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(i.input, &head); err != nil {
		return fail(types.ErrDecodingFailure, "decode the network configuration on standard input: %v", err)
	}
	if i.version, err = negotiate(i.params.Command, head.CNIVersion); err != nil {
		return err
	}
	how := strict
	if i.params.Command == cmdDel {
		how = lenient
	}
	if i.conf, err = i.program.schema.parse(i.input, how); err != nil {
		return err
	}
	i.client = control.Dial(i.conf.Socket)
	return nil
}

// interruptible is Process.Interruptible.
func (i *invocation) interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	if i.Interruptible == nil {
		return ctx, func() {}
	}
	return i.Interruptible(ctx)
}

// key is the identity of the link that the invocation is about.
func (i *invocation) key() control.LinkKey {
	return control.LinkKey{Network: i.conf.Name, Container: i.params.ContainerID, IfName: i.params.IfName}
}

// linkAlias is the interface alias (IFLA_IFALIAS) by which a DEL knows that a
// device is the one its ADD made, and not another that took the name or the
// namespace's path since.
func linkAlias(k control.LinkKey) string {
	const most = 255 // IFALIASZ less its terminating zero
	s := "usernet " + k.String()
	return s[:min(len(s), most)]
}

// isUnreachable reports whether an error of the daemon's client means that
// there is nobody to talk to now, or nobody any more: everything that is asked
// with one request can be asked again.
func isUnreachable(err error) bool {
	return errors.Is(err, control.ErrNotRunning) || errors.Is(err, control.ErrConnectionLost) ||
		control.CodeOf(err) == control.CodeUnavailable
}
