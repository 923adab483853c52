package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a long-lived process of a backend or a load.
type process struct {
	cmd    *exec.Cmd
	output lockedBuffer
	done   chan struct{}
}

// lockedBuffer keeps what a process prints, readable while it runs.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs a process until stop; its output is kept for reports of stalls.
func start(argv ...string) (*process, error) {
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	// The group ends together: some peers leave children that hold the output.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go p.wait()
	return p, nil
}

// wait reaps the process; start runs it and the process's end ends it.
func (p *process) wait() {
	defer close(p.done)
	// The exit status of a process that stop ended says nothing.
	_ = p.cmd.Wait()
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the process and its children.
func (p *process) stop() {
	if p == nil {
		return
	}
	// An error means that they are gone already.
	_ = syscall.Kill(-p.pid(), syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(3 * time.Second):
		_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
		<-p.done
	}
}

// await polls until cond holds, the process ends, or the time is over.
func (p *process) await(ctx context.Context, what string, cond func() bool) error {
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before %s: %s", p.cmd.Path, what, tail(p.output.String()))
		case <-deadline.C:
			return fmt.Errorf("%s: no %s within 10 s: %s", p.cmd.Path, what, tail(p.output.String()))
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// result returns what the process has printed when it has ended by itself.
func (p *process) result(ctx context.Context) (string, error) {
	select {
	case <-p.done:
		return p.output.String(), nil
	case <-ctx.Done():
		return "", fmt.Errorf("%s: %w: %s", p.cmd.Path, ctx.Err(), tail(p.output.String()))
	}
}

// tail is the end of what a process printed, for one line of a report.
func tail(s string) string {
	const most = 300
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return s
}

// in returns argv to run a command in a namespace.
func in(namespace string, argv ...string) []string {
	return append([]string{"ip", "netns", "exec", namespace}, argv...)
}

func run(ctx context.Context, argv ...string) error {
	_, err := output(ctx, argv...)
	return err
}

// output runs a command and returns its standard output; the error tells what
// the command printed.
func output(ctx context.Context, argv ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := bounded(ctx, argv)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.Bytes(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, tail(stderr.String()+stdout.String()))
	}
	return stdout.Bytes(), nil
}

// bounded is a command that ends with ctx, and with all its children then: they may
// hold the output, and outlive a command that is ended.
func bounded(ctx context.Context, argv []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

func runAll(ctx context.Context, steps [][]string) error {
	for _, argv := range steps {
		if err := run(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}

// cleanup runs commands that must also run when the benchmark was cancelled.
func cleanup(steps ...[]string) error {
	var errs []error
	for _, argv := range steps {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		errs = append(errs, run(ctx, argv...))
		cancel()
	}
	return errors.Join(errs...)
}

// missing says what to install when a tool is not there, else "".
func missing(tool, pkg string) string {
	if _, err := exec.LookPath(tool); err != nil {
		return fmt.Sprintf("%s is not installed: apt-get install %s", tool, pkg)
	}
	return ""
}

// listens reports whether a namespace has a tcp or udp socket that waits on a port.
func listens(namespace, network string, port int) bool {
	out, err := exec.Command("ip", in(namespace, "ss", "-Hln", "--"+network, fmt.Sprintf("sport = :%d", port))[1:]...).Output()
	return err == nil && len(out) > 0
}
