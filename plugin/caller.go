package plugin

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/podman"
	"github.com/usernet/usernet/internal/portowner"
)

// caller is the runtime that runs the plugin.
type caller struct {
	name      string // as the kernel knows it
	pid       int    // 0: unknown
	container string // CNI_CONTAINERID
	env       environ
}

func (i *invocation) caller() caller {
	if i.runtime == nil {
		i.runtime = &caller{container: i.params.ContainerID, env: i.Env}
		if i.Caller != nil {
			i.runtime.pid, i.runtime.name = i.Caller()
		}
	}
	return *i.runtime
}

// owns reports whether a process that holds a port holds it for this container:
// the runtime itself; a child of it, such as the "sleep infinity" to which the
// hook of nerdctl gives its sockets; or the container's conmon, which has
// podman's when a network is connected later. Nothing further up or down counts:
// what started the runtime, and what the runtime started long ago, may well be
// somebody's service.
func (c caller) owns(h portowner.Process) bool {
	if h.PID == os.Getpid() {
		return false // another mapping of this invocation
	}
	if c.pid > 1 && (h.PID == c.pid || parentOf(h.PID) == c.pid) {
		return true
	}
	return h.Name == "conmon" && slices.Contains(arguments(h.PID), c.container)
}

// reserves reports whether the runtime is going to listen on published ports
// itself after the ADD, and would fail if the plugin did. Only root's podman
// does; below a rootless one the plugin is in a namespace of its own.
func (c caller) reserves() bool {
	if c.name != "podman" || !control.DefaultSystem() {
		return false
	}
	// What podman cannot read it would not have come this far with.
	r, err := podman.ReadReservation(os.DirFS("/"), c.env.get)
	return r.On || err != nil
}

// parentOf returns the parent of a process, 0 where it is not known (proc(5),
// the fourth field of "stat"; the second may hold anything up to its last
// bracket).
func parentOf(pid int) int {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return parent
}

// arguments returns the command line of a process.
func arguments(pid int) []string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return nil
	}
	return strings.Split(string(b), "\x00")
}
