package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
)

const (
	// BinaryEnv names the environment variable that says which executable to
	// start the daemon with.
	BinaryEnv = "USERNET_BINARY"

	// startPatience bounds the wait for a daemon that was started, or that is
	// being restarted by its manager. It takes some 30 ms; a machine that just
	// booted has other things to do as well.
	startPatience = 5 * time.Second

	// exitPatience is how long a daemon that another plugin started at the same
	// time may still take after ours has given way to it.
	exitPatience = 500 * time.Millisecond

	// logName is the file beside the socket that takes what a daemon started
	// here says. maxLog bytes of it are enough to find what was wrong.
	logName = "daemon.log"
	maxLog  = 1 << 20
)

// withDaemon runs fn, which talks to the daemon. When nobody is there it starts
// a daemon if the configuration lets it, waits, and runs fn again; fn must
// therefore have done nothing when it returns control.ErrNotRunning, and
// nothing that cannot be done again when it returns control.ErrConnectionLost.
func (i *invocation) withDaemon(ctx context.Context, fn func(context.Context) error) error {
	err := fn(ctx)
	if !isUnreachable(err) {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startPatience, fmt.Errorf("no daemon served it within %v", startPatience))
	defer cancel()
	if !i.conf.Autostart {
		if errors.Is(err, control.ErrNotRunning) {
			return err // nor is anybody about to be there
		}
		return i.retry(ctx, fn, nil)
	}
	d, serr := i.startDaemon()
	if serr != nil {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("%v; starting it: %v", err, serr), "")
	}
	if err := i.retry(ctx, fn, d.ended); err != nil {
		if isUnreachable(err) || errors.Is(err, context.DeadlineExceeded) {
			return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("start the daemon with %s: %v", d.path, err), d.said())
		}
		return err
	}
	return nil
}

// retry runs fn until it reaches a daemon. ended, if not nil, is closed when
// the daemon that was started is gone again.
func (i *invocation) retry(ctx context.Context, fn func(context.Context) error, ended <-chan struct{}) error {
	wait := 2 * time.Millisecond
	for {
		err := fn(ctx)
		switch {
		case isUnreachable(err):
		case err != nil && ctx.Err() != nil: // the time was up while it waited for an answer
			return fmt.Errorf("%w: %w", control.ErrNotRunning, err)
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		case <-ended:
			ended = nil
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, exitPatience, errors.New("the daemon ended at once"))
			defer cancel()
		case <-time.After(wait):
			wait = min(2*wait, 50*time.Millisecond)
		}
	}
}

// startedDaemon is a daemon process that this invocation started.
type startedDaemon struct {
	path  string // of the executable
	log   *os.File
	from  int64 // where in the log its words begin
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process is gone
}

// startDaemon starts a daemon that outlives the plugin: in a session of its
// own, without the plugin's standard streams, which the runtime waits for.
func (i *invocation) startDaemon() (*startedDaemon, error) {
	if err := i.mayStartHere(); err != nil {
		return nil, err
	}
	path, err := i.findBinary()
	if err != nil {
		return nil, err
	}
	socket := i.socket()
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	d := &startedDaemon{path: path, ended: make(chan struct{})}
	if d.log, d.from, err = openLog(filepath.Join(dir, logName)); err != nil {
		return nil, err
	}
	d.cmd = exec.Command(path, "daemon", "--socket", socket, "--autostarted")
	d.cmd.Env = daemonEnv(i.Env)
	d.cmd.Dir = "/"
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := d.cmd.Start(); err != nil {
		d.log.Close()
		return nil, fmt.Errorf("execute %s: %w", path, err)
	}
	go d.watch()
	return d, nil
}

// mayStartHere refuses the namespace in which rootless podman executes plugins.
// It ends with podman's last container, and its way out with it: a daemon of
// its own would outlive both, hold the socket, and serve the containers after
// it without any network.
func (i *invocation) mayStartHere() error {
	dir := environ(i.Env).get("XDG_RUNTIME_DIR")
	if dir == "" {
		return nil
	}
	paths, err := filepath.Glob(filepath.Join(dir, "netns", "rootless-netns-*"))
	if err != nil || len(paths) == 0 {
		return nil // a pattern in XDG_RUNTIME_DIR itself, or no such podman
	}
	own, err := netns.Current()
	if err != nil {
		return fmt.Errorf("open the plugin's own network namespace: %w", err)
	}
	defer own.Close()
	for _, path := range paths {
		h, err := netns.Open(path)
		if err != nil {
			continue // left over from an earlier boot
		}
		same := h.Equal(own)
		h.Close()
		if same {
			return fmt.Errorf("podman executes the plugin in a network namespace that ends with its last container (%s): "+
				"start the daemon outside of it, as the same user: usernet daemon", path)
		}
	}
	return nil
}

// watch waits for the daemon's end. It is startDaemon's, and ends with the
// daemon or with this process, whichever is first.
func (d *startedDaemon) watch() {
	_ = d.cmd.Wait() // how it ended stands in its log
	close(d.ended)
}

// said returns the last of what the daemon wrote.
func (d *startedDaemon) said() string {
	const most = 2048
	end, err := d.log.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	b := make([]byte, most)
	n, _ := d.log.ReadAt(b, max(d.from, end-most)) // io.EOF is the rule here
	return d.log.Name() + ": " + string(bytes.TrimSpace(b[:n]))
}

// openLog opens a log to append to, emptied when it has grown too long.
func openLog(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("open the daemon's log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.Size() > maxLog {
		err = f.Truncate(0)
	}
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("shorten the daemon's log: %w", err)
	}
	return f, min(st.Size(), maxLog), nil
}

// findBinary looks for the usernet executable: where BinaryEnv says, beside
// this executable, in PATH, and where it is usually installed, because runtimes
// run plugins with little in their PATH.
func (i *invocation) findBinary() (string, error) {
	if path := environ(i.Env).get(BinaryEnv); path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this executable: %w", err)
	}
	own, err := os.Stat(self)
	if err != nil {
		return "", fmt.Errorf("find this executable: %w", err)
	}
	dirs := append([]string{filepath.Dir(self)}, filepath.SplitList(environ(i.Env).get("PATH"))...)
	dirs = append(dirs, "/usr/local/bin", "/usr/bin")
	for _, dir := range dirs {
		path := filepath.Join(dir, "usernet")
		st, err := os.Stat(path)
		if err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			continue
		}
		// In a runtime's directory of plugins this very program is called
		// "usernet", since runtimes find it by the type of the network.
		if !os.SameFile(st, own) {
			return path, nil
		}
	}
	return "", fmt.Errorf("no executable \"usernet\" in %s; install it there, or set %s", strings.Join(dirs, ":"), BinaryEnv)
}

// daemonEnv is the environment without what describes this one invocation.
func daemonEnv(env []string) []string {
	var out []string
	for _, kv := range env {
		if !strings.HasPrefix(kv, "CNI_") {
			out = append(out, kv)
		}
	}
	return out
}

// socket is the path of the daemon's socket.
func (i *invocation) socket() string {
	if i.conf.Socket != "" {
		return i.conf.Socket
	}
	return control.DefaultSocket()
}
