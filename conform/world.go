package conform

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/undo"
)

// world is what all cases of a run share: the namespace that plugins run in and
// a directory for the containers' paths.
type world struct {
	ctx      context.Context // ends when the run is to end
	conf     Config
	dir      string
	host     *netns.Handle
	hostPath string
	network  object // the configuration to test
	other    object // a second network
	random   dice
	warm     map[string]bool // by version; see trial.warm
	made     int             // containers, for their names
	stander  *bystander
	undo     undo.List
}

// bystander is an attachment that several cases have in view, one after the
// other, because none of them may touch it.
type bystander struct {
	t *trial
	a *attachment
}

// newWorld makes the host namespace, with nothing in it but its loopback.
func newWorld(ctx context.Context, conf Config) (*world, error) {
	w := &world{ctx: ctx, conf: conf, random: dice{rand.New(rand.NewPCG(conf.Seed, 0))}, warm: map[string]bool{}}
	var done undo.List
	defer done.Run()
	var err error
	if w.dir = conf.Dir; w.dir == "" {
		if w.dir, err = os.MkdirTemp("", "cni-conform-"); err != nil {
			return nil, err
		}
		done.Add(func() { os.RemoveAll(w.dir) })
	}
	if w.host, err = netns.New(); err != nil {
		return nil, fmt.Errorf("host namespace: %w; the suite needs root, or a user namespace of its own", err)
	}
	done.Add(func() { w.host.Close() })
	if err := w.host.Do(prepare); err != nil {
		return nil, fmt.Errorf("host namespace: %w", err)
	}
	w.hostPath = filepath.Join(w.dir, "host")
	if err := mount(w.host, w.hostPath); err != nil {
		return nil, fmt.Errorf("host namespace: %w", err)
	}
	done.Add(func() { unmount(w.hostPath) })
	if w.network, err = parseConf(conf.Conf, conf.Plugin, w.dir); err != nil {
		return nil, err
	}
	w.other = w.network.with(object{"name": fmt.Sprint(w.network["name"]) + "-other"})
	if len(conf.Other) > 0 {
		if w.other, err = parseConf(conf.Other, conf.Plugin, w.dir); err != nil {
			return nil, fmt.Errorf("second network: %w", err)
		}
		if w.other["name"] == w.network["name"] {
			return nil, fmt.Errorf("second network: it has the name of the first, %q", w.network["name"])
		}
	}
	w.undo, done = done, undo.List{}
	return w, nil
}

// hook runs a command of the user's in the host namespace.
func (w *world) hook(ctx context.Context, name, command string) error {
	if command == "" {
		return nil
	}
	// A file, because something that is left running would hold a pipe open.
	log, err := os.CreateTemp(w.dir, name+"-")
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env = append(os.Environ(), DirVariable+"="+w.dir, "CNI_CONFORM_PLUGIN="+w.conf.Plugin)
	cmd.Dir = w.dir
	cmd.Stdout, cmd.Stderr = log, log
	err = w.host.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	said, _ := os.ReadFile(log.Name()) // what cannot be read is not shown
	if _, werr := w.conf.Log.Write(said); werr != nil && err == nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("%s command %q: %w: %s", name, command, err, cut(strings.TrimSpace(string(said))))
	}
	return nil
}

// prepare readies a new namespace. Its interfaces look for no duplicates of their
// IPv6 addresses (RFC 4862 section 5.4): there are none, and each look takes a
// second or two, for which many plugins wait.
func prepare() error {
	for _, key := range []string{"ipv6/conf/default/accept_dad", "ipv6/conf/all/accept_dad"} {
		if err := netns.SetSysctl(key, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return netns.LoopbackUp()
}

// container is a network namespace with a path, as a runtime would make it.
type container struct {
	ns   *netns.Handle
	id   string
	path string // what CNI_NETNS is set to
	file string // what the namespace is mounted on
}

// container makes an empty one; done takes it away.
func (w *world) container(done *undo.List) (*container, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	w.made++
	c := &container{ns: ns, id: fmt.Sprintf("conform-%d-%d", os.Getpid(), w.made)}
	c.file = filepath.Join(w.dir, c.id)
	c.path = c.file
	if err := errors.Join(ns.Do(prepare), mount(ns, c.file)); err != nil {
		ns.Close()
		return nil, fmt.Errorf("make container %s: %w", c.id, err)
	}
	done.Add(c.destroy)
	return c, nil
}

// destroy ends the namespace as the end of a container does: its path is gone,
// and nothing holds it. It may be called again.
func (c *container) destroy() {
	unmount(c.file)
	_ = c.ns.Close() // os.ErrClosed the second time
}

// replace puts another namespace at the container's path, as happens when the
// path goes through a process ID that was given out again.
func (c *container) replace(by *container) error {
	c.destroy()
	return mount(by.ns, c.file)
}

// mount makes a namespace reachable at a path.
func mount(ns *netns.Handle, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.File().Fd()), path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return &os.PathError{Op: "mount namespace on", Path: path, Err: err}
	}
	return nil
}

// unmount takes mount back; what is not there is no fault.
func unmount(path string) {
	_ = unix.Unmount(path, unix.MNT_DETACH)
	_ = os.Remove(path)
}

// settled asks until the answer is nil or time is up, and returns the last one.
func (w *world) settled(ask func() error) error {
	const pause = 20 * time.Millisecond
	deadline := time.Now().Add(w.conf.Settle)
	for {
		err := ask()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-time.After(pause)
	}
}
