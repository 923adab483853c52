//go:build runtimes

package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
)

// chaosWorker plays a runtime with one container at a time.
type chaosWorker struct {
	c   *chaos
	n   int
	rng *rand.Rand
	ids int

	// The container; ns is nil when there is none.
	ns     *netns.Handle
	path   string
	canary string // a cable's end in the host's namespace, which dies with the container's
	key    control.LinkKey
	port   int
	tried  bool         // an ADD may have done something
	addrs  []netip.Addr // of an ADD that succeeded; nil: none did
}

func (w *chaosWorker) run(ctx context.Context) {
	for ctx.Err() == nil {
		switch dice := w.rng.IntN(100); {
		case w.ns == nil:
			if err := w.create(); err != nil {
				w.c.fault("worker %d: make a container: %v", w.n, err)
				return
			}
		case dice < 6:
			w.die()
		case !w.tried:
			w.add()
		case w.addrs != nil && dice < 70:
			w.rest(ctx)
		default:
			w.del()
		}
	}
}

// rest lets the container live for a moment.
func (w *chaosWorker) rest(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Duration(w.rng.IntN(60)) * time.Millisecond):
	}
}

// create makes a container without a network.
func (w *chaosWorker) create() error {
	w.ids++
	id := fmt.Sprintf("w%d-%d", w.n, w.ids)
	names := []string{"web", "deep"}
	w.key = control.LinkKey{Network: names[w.rng.IntN(2)], Container: id, IfName: "eth0"}
	w.port, w.tried, w.addrs = 20000+100*w.n+w.ids%100, false, nil
	w.path = filepath.Join(w.c.b.dir, id)
	w.canary = fmt.Sprintf("c%d-%d", w.n, w.ids)
	ns, err := netns.New()
	if err != nil {
		return err
	}
	w.ns = ns
	if err := os.WriteFile(w.path, nil, 0o600); err != nil {
		return err
	}
	conn, err := ns.File().SyscallConn()
	if err != nil {
		return err
	}
	var merr error
	err = conn.Control(func(fd uintptr) {
		merr = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), w.path, "", unix.MS_BIND, "")
		if merr == nil {
			merr = w.c.b.host.Do(func() error {
				return netlink.LinkAdd(&netlink.Veth{
					LinkAttrs: netlink.LinkAttrs{Name: w.canary}, PeerName: "canary", PeerNamespace: netlink.NsFd(int(fd)),
				})
			})
		}
	})
	return errors.Join(err, merr)
}

// join makes w a second network's attachment of another worker's container.
func (w *chaosWorker) join(o *chaosWorker) {
	w.ns, w.path, w.port = o.ns, o.path, 20000+100*w.n
	w.key = control.LinkKey{Network: "web", Container: o.key.Container, IfName: "net1"}
	if o.key.Network == "web" {
		w.key.Network = "deep"
	}
}

// die ends the container without a DEL.
func (w *chaosWorker) die() {
	if w.ns == nil {
		return
	}
	w.c.letGo(w.addrs)
	if w.canary != "" { // else it is another worker's container
		if err := errors.Join(unix.Unmount(w.path, unix.MNT_DETACH), os.Remove(w.path), w.ns.Close()); err != nil {
			w.c.fault("worker %d: end the container: %v", w.n, err)
		}
	}
	w.ns, w.addrs, w.tried = nil, nil, false
	w.c.count("container died")
}

// add runs ADD, which may be killed. Of one that was, as of one that failed,
// the runtime knows nothing, and runs DEL.
func (w *chaosWorker) add() {
	w.tried = true
	args, err := json.Marshal([]keys{{"hostPort": w.port, "containerPort": 80, "hostIP": "127.0.0.1"}})
	if err != nil {
		w.c.fault("worker %d: %v", w.n, err)
		return
	}
	killed, status, out := w.plugin("ADD", `"portMappings":`+string(args))
	switch {
	case killed:
	case status == 0:
		w.succeeded(out)
	default:
		w.failed("ADD", out)
	}
}

func (w *chaosWorker) succeeded(out string) {
	var r result
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.IPs) != 2 {
		w.c.fault("ADD %v: %v, %s", w.key, err, out)
		return
	}
	for n := range r.IPs {
		w.addrs = append(w.addrs, netip.MustParseAddr(r.ip(n)))
	}
	w.c.hold(w.key, w.addrs)
	w.c.count("ADD: succeeded")
}

// failed judges an error: what is asked is always possible, so that only the
// state of the daemon can be in the way (11), those who hold all addresses
// (102), or a process that is being killed and has not closed its sockets yet
// (100).
func (w *chaosWorker) failed(verb, out string) {
	code, err := errCode(out)
	if err != nil || code != 11 && code != 100 && code != 102 {
		w.c.fault("%s %v: %v, %s", verb, w.key, err, out)
	}
	w.c.count(fmt.Sprintf("%s: failed with code %d", verb, code))
}

// del runs DEL, which may be killed, and is repeated then or left to GC.
func (w *chaosWorker) del() {
	w.c.letGo(w.addrs)
	w.addrs = nil
	killed, status, out := w.plugin("DEL", "")
	switch {
	case killed && w.rng.IntN(2) == 0:
	case killed:
		w.die()
	case status != 0:
		w.c.fault("DEL %v: %s", w.key, out)
	default:
		w.c.count("DEL: succeeded")
		w.tried = false
	}
}

// plugin runs a verb for the worker's container, and kills it before it ends
// one time in chaos.oneIn.
func (w *chaosWorker) plugin(verb, runtimeConfig string) (killed bool, status int, out string) {
	config := strings.TrimSuffix(w.c.configs[w.key.Network], "}") + `,"runtimeConfig":{` + runtimeConfig + "}}"
	cmd := exec.Command(program("cni/usernet"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_PATH="+program("cni"), "CNI_CONTAINERID="+w.key.Container,
		"CNI_IFNAME="+w.key.IfName, "CNI_NETNS="+w.path)
	cmd.Stdin = strings.NewReader(config)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if err := w.c.b.host.Do(cmd.Start); err != nil {
		w.c.fault("worker %d: run the plugin: %v", w.n, err)
		return true, 0, ""
	}
	if w.c.oneIn > 0 && w.rng.IntN(w.c.oneIn) == 0 {
		timer := time.AfterFunc(time.Duration(w.rng.IntN(60_000))*time.Microsecond, func() {
			_ = cmd.Process.Kill() // it may have ended
		})
		defer timer.Stop()
	}
	err := cmd.Wait()
	if ws, ok := cmd.ProcessState.Sys().(interface{ Signaled() bool }); ok && ws.Signaled() {
		w.c.count("kill: plugin")
		return true, 0, ""
	}
	if cmd.ProcessState == nil {
		w.c.fault("worker %d: run the plugin: %v", w.n, err)
	}
	return false, cmd.ProcessState.ExitCode(), stdout.String()
}

// tunDevices lists the TUNs and TAPs of a namespace.
func tunDevices(ns *netns.Handle) (names []string, err error) {
	err = ns.Do(func() error {
		links, err := listLinks()
		for _, l := range links {
			if l.Type() == "tuntap" {
				names = append(names, l.Attrs().Name)
			}
		}
		return err
	})
	return names, err
}

// listLinks asks again when interfaces change while it reads.
func listLinks() ([]netlink.Link, error) {
	for {
		links, err := netlink.LinkList() //nolint:forbidigo // asks again itself
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return links, err
		}
	}
}

// hostDevices lists the host's TUNs and TAPs and the canaries of containers
// that are no more, once they have had the time to go.
func (c *chaos) hostDevices() []string {
	alive := map[string]bool{}
	for _, w := range c.workers {
		if w.ns != nil {
			alive[w.canary] = true
		}
	}
	var left []string
	deadline := time.Now().Add(20 * time.Second)
	for {
		left = nil
		err := c.b.host.Do(func() error {
			links, err := listLinks()
			for _, l := range links {
				name := l.Attrs().Name
				if l.Type() == "tuntap" || strings.HasPrefix(name, "c") && strings.Contains(name, "-") && !alive[name] {
					left = append(left, fmt.Sprintf("%s (%s)", name, l.Type()))
				}
			}
			return err
		})
		if err != nil {
			left = append(left, err.Error())
		}
		if len(left) == 0 || time.Now().After(deadline) {
			slices.Sort(left)
			return left
		}
		<-time.After(5 * time.Millisecond)
	}
}
