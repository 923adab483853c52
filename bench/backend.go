package main

import (
	"bytes"
	"context"
	"os/exec"
)

// publishedPort is the port of the host's address hostV4 that a backend leads
// to the same port of its first container.
const publishedPort = 5301

// Backend gives network to container namespaces.
type Backend interface {
	// Name identifies the backend in results.
	Name() string
	// Missing says what to install when a tool of the backend is not there.
	Missing() string
	// Version is what the backend calls itself.
	Version() string
	// Traits say what the backend can do.
	Traits() Traits
	// Up connects the topology's containers, which are new and empty.
	Up(context.Context, *Topology) error
	// Down ends what Up began. It is called after a failed Up too.
	Down(*Topology) error
}

// Traits say which scenarios suit a backend.
type Traits struct {
	MTU     int // of the containers' devices, bytes
	Egress  bool
	V6      bool // containers reach the outside over IPv6
	Publish bool // publishedPort leads to container 0
	// Peers are the IPv4 addresses of containers 0 and 1 as they reach each
	// other; nil when the backend does not join containers.
	Peers []string
	// DNS is the resolver in containers; empty: none of the backend's own.
	DNS string
	// Userspace tells the peers to be faster than from the kernel to be level with.
	Userspace bool
}

// backends returns all of them; bin is the directory of usernet's binaries,
// tools that of the peers that are built from source.
func backends(bin, tools string) []Backend {
	return []Backend{
		&usernet{bin: bin}, &usernetRun{bin: bin}, &bridge{}, &slirp{}, &pasta{}, &rootlesskit{}, &tapVsock{dir: tools},
	}
}

// hasAddress reports whether a namespace has a device of that name with an
// IPv4 address.
func hasAddress(namespace, name string) bool {
	out, err := exec.Command("ip", "-n", namespace, "-4", "-br", "addr", "show", "dev", name).Output()
	return err == nil && bytes.Contains(out, []byte("."))
}
