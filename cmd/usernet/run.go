package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/sandbox"
)

const runName = "run"

const runLong = `Runs CMD in a network of its own: an interface with IPv4 and IPv6, the outside
through this process's own sockets, DNS with the machine's resolvers, ping.
What it has not: the machine's loopback and the machine's own addresses. One
port of them is opened by --host-service.

Standard streams, terminal, environment, directory, user and signals are CMD's
own. Root is not needed; /dev/net/tun must be accessible ("usernet doctor"). Run by
root, the network's own process has nice -5 unless it was started with another.

Publishing ports:  -p [HOSTIP:]PORT[-END][:PORT[-END]][/tcp|/udp]
  The first port is the machine's, the second CMD's; without the second it is
  the same. Without HOSTIP the machine listens on 127.0.0.1. Port 0, as in
  0:80, is any free one. HOSTIP/PORTS and lists divided by commas are
  understood too. CMD sees the client's own address; clients on the machine's
  loopback appear as the gateway.

Exit status: CMD's own, or 128+N when signal N killed it; 127 when CMD was not
found, 126 when it cannot be executed, 125 when its network cannot be set up.`

const runExamples = `  usernet run -- curl https://example.com
  usernet run -p 8080:80 -- python3 -m http.server 80
  usernet run -p 0.0.0.0:53:5353/udp -p '[::1]:8000-8003' -- ./server
  usernet run --host-service db=127.0.0.1:5432 -- psql -h db
  usernet run --pcap build.pcapng --json=flows.json -- make
  usernet run --network web --name client -- curl http://server`

// runFlags are run's flags as they were given.
type runFlags struct {
	publish      []string
	network      string
	name         string
	subnets      []string
	dns          []string
	addHosts     []string
	mtu          int
	noIPv6       bool
	hostServices []string
	pcap         string
	json         string
	quiet        bool
	verbose      bool
}

// jsonToStderr is what --json without a file is.
const jsonToStderr = "-"

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:     runName + " [flags] [--] CMD [ARG...]",
		Short:   "Run a command in a network of its own",
		Long:    runLong,
		Example: runExamples,
		Args:    args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return a.runSandbox(cmd.Context(), cmd, &f, argv)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows CMD is CMD's
	flags.StringArrayVarP(&f.publish, "publish", "p", nil, "let a port of this machine lead to CMD, `[HOSTIP:]PORT[:PORT][/udp]`; repeatable")
	flags.StringVar(&f.network, "network", "", "join `NAME`, a network of the daemon")
	flags.StringVar(&f.name, "name", "", "CMD's `NAME` in its network, for others to reach it by (default run-PID)")
	flags.StringArrayVar(&f.subnets, "subnet", nil, "`SUBNET` of the network, IPv4 or IPv6; once per family (default 10.83.0.0/24 or near, fd83:7573:6572::/64)")
	flags.StringArrayVar(&f.dns, "dns", nil, "resolver `ADDRESS[:PORT]` to ask instead of the machine's; repeatable")
	flags.StringArrayVar(&f.addHosts, "add-host", nil, "add `NAME:ADDRESS` to CMD's hosts file and resolver; repeatable")
	flags.IntVar(&f.mtu, "mtu", 0, "MTU of CMD's interface in `BYTES` (default 65520)")
	flags.BoolVar(&f.noIPv6, "no-ipv6", false, "leave IPv6 out")
	flags.StringArrayVar(&f.hostServices, "host-service", nil, "open `NAME=HOST:PORT` of this machine to CMD, as NAME:PORT; repeatable. The only way to the loopback")
	flags.StringVar(&f.pcap, "pcap", "", "write CMD's packets to `FILE` as pcapng, for wireshark")
	flags.StringVar(&f.json, "json", "", "write a summary with all flows as JSON when CMD has ended, to standard error or to =`FILE`")
	flags.Lookup("json").NoOptDefVal = jsonToStderr
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print no warnings")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "tell what is set up and what ends")
	return cmd
}

// runSandbox is run but for its flags.
func (a *app) runSandbox(ctx context.Context, cmd *cobra.Command, f *runFlags, argv []string) error {
	plan, err := a.plan(cmd, f)
	if err != nil {
		return &statusError{sandbox.ExitFailure, err}
	}
	a.leaveCPUs()
	r := &runner{app: a, flags: f, log: slog.New(slog.DiscardHandler), started: time.Now()}
	if f.verbose {
		r.log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if err := r.openNetwork(plan); err != nil {
		return &statusError{sandbox.ExitFailure, err}
	}
	status, err := r.run(ctx, plan, argv)
	if cerr := r.network.close(); err == nil {
		err = cerr
	}
	if err != nil && status == 0 {
		status = sandbox.ExitFailure
	}
	if status == 0 {
		return nil
	}
	return &statusError{status, err}
}

// runner runs one command.
type runner struct {
	*app
	flags   *runFlags
	log     *slog.Logger
	network runNetwork
	started time.Time
}

// run starts the command, waits for it and reports. The status is the command's,
// or says with err why there was none.
func (r *runner) run(ctx context.Context, plan *plan, argv []string) (status int, err error) {
	outputs, err := r.openOutputs()
	if err != nil {
		return sandbox.ExitFailure, err
	}
	defer outputs.close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r.stdin, r.stdout, r.stderr
	signals := catchSignals()
	defer signals.stop()
	startCtx, cancel := signals.cancelOnSignal(ctx)
	process, err := sandbox.Start(startCtx, cmd, sandbox.Config{
		Network: r.network, Name: plan.name, Publish: plan.publish, Hosts: plan.hosts,
		Attached: func(sandbox.Settings) error { return r.network.record(plan.name, outputs.pcap) },
	})
	cancel()
	if err != nil {
		return startStatus(err), r.startError(err)
	}
	if plan.network == "" { // the switch is in this process
		r.raisePriority()
	}
	r.tell(plan, process)
	over := make(chan struct{})
	go signals.forwardTo(cmd.Process, over)
	waitErr := process.Wait()
	close(over)
	status, ok := exitCodeOf(waitErr)
	if !ok && waitErr != nil {
		return sandbox.ExitFailure, waitErr
	}
	if err := r.network.stopRecording(); err != nil {
		r.warn("the capture %s is not whole: %v", r.flags.pcap, err)
	}
	if err := r.summarize(plan, process, status, outputs.summary); err != nil {
		return sandbox.ExitFailure, err
	}
	return status, nil
}

// raisePriority gives this process the nice value of a switch. The command, which
// runs already, keeps its own.
func (r *runner) raisePriority() {
	if _, err := preferNice(); err != nil {
		r.log.Warn("priority is not raised", "err", err)
	}
}

func (r *runner) warn(format string, args ...any) {
	if !r.flags.quiet {
		fmt.Fprintf(r.stderr, "usernet: "+format+"\n", args...)
	}
}

// tell prints what the user could not know: which ports the kernel chose, and
// what does not work here. With --verbose it prints all.
func (r *runner) tell(plan *plan, process *sandbox.Process) {
	for _, w := range process.Warnings() {
		r.warn("%s", w)
	}
	settings := process.Settings()
	for i, p := range settings.Published {
		if plan.publish[i].Host.Port() == 0 || r.flags.verbose {
			r.warn("%s leads to port %d/%s of %s", p.Host, p.Port, p.Proto, plan.name)
		}
	}
	if r.flags.verbose {
		r.warn("%s has %s", plan.name, list(settings.Addrs))
	}
}

// startStatus is the exit status for a command that did not start.
func startStatus(err error) int {
	var path *os.PathError
	switch {
	case errors.Is(err, errInterrupted):
		return sandbox.ExitSignal + int(syscall.SIGINT)
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, exec.ErrDot):
		return sandbox.ExitNotFound
	case errors.As(err, &path) && path.Op == "exec" && errors.Is(err, fs.ErrNotExist):
		return sandbox.ExitNotFound
	case errors.As(err, &path) && path.Op == "exec":
		return sandbox.ExitNotExecutable
	}
	var lookup *exec.Error
	if errors.As(err, &lookup) {
		if errors.Is(err, fs.ErrNotExist) {
			return sandbox.ExitNotFound
		}
		return sandbox.ExitNotExecutable
	}
	return sandbox.ExitFailure
}

// startError explains errors that say less than they know.
func (r *runner) startError(err error) error {
	if startStatus(err) == sandbox.ExitNotFound && r.flags.json == jsonToStderr {
		return fmt.Errorf("%w; was it meant as the file of --json? Write --json=FILE", err)
	}
	var path *os.PathError
	if !errors.As(err, &path) || path.Op != "exec" {
		return err
	}
	if errors.Is(err, syscall.ENOEXEC) {
		return fmt.Errorf("%w; it is no program for this machine, or a script without a #! line", err)
	}
	if _, statErr := os.Stat(path.Path); statErr == nil && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w; the file is there, so the interpreter that it names is not", err)
	}
	return err
}

// shellStatus is a finished process's status as a shell has it.
func shellStatus(state *os.ProcessState) int {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return sandbox.ExitSignal + int(ws.Signal())
	}
	return state.ExitCode()
}

// defaultName is the name of a sandbox that was given none: no two at a time
// have the same.
func defaultName() string { return fmt.Sprintf("run-%d", os.Getpid()) }

// joined lists flags for an error.
func joined(flags []string) string { return "--" + strings.Join(flags, ", --") }
