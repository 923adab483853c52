//go:build runtimes

package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// tryCRI calls a method of the CRI API and returns its answer's JSON.
func (c *containerd) tryCRI(method string, request any) ([]byte, error) {
	c.t.Helper()
	cmd := exec.Command("cri", filepath.Join(c.path("/run/containerd"), "containerd.sock"), method)
	if request != nil {
		text, err := json.Marshal(request)
		if err != nil {
			c.t.Fatal(err)
		}
		cmd.Stdin = bytes.NewReader(text)
	}
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%s: %w: %s", method, err, exit.Stderr)
	}
	return out, err
}

// cri is tryCRI for what has to succeed, decoding the answer.
func (c *containerd) cri(method string, request, answer any) {
	c.t.Helper()
	out, err := c.tryCRI(method, request)
	if err != nil {
		c.t.Fatal(err)
	}
	if answer == nil {
		return
	}
	if err := json.Unmarshal(out, answer); err != nil {
		c.t.Fatalf("decode the answer of %s, %s: %v", method, out, err)
	}
}

// sandbox is a pod that runs, with one container in it.
type sandbox struct {
	c             *containerd
	name, id, ctr string
	ips           []string // IPv4, IPv6
}

// sandboxConfig is a PodSandboxConfig with what kubelet gives at least.
func (c *containerd) sandboxConfig(name string, more keys) keys {
	config := keys{
		"metadata": keys{"name": name, "uid": "uid-" + name, "namespace": "shop", "attempt": 0},
		"hostname": name, "linux": keys{"cgroupParent": c.cgroup},
	}
	for k, v := range more {
		config[k] = v
	}
	return config
}

// run starts a pod and a container in it that sleeps, removed at the test's
// end.
func (c *containerd) run(name string, more keys) *sandbox {
	c.t.Helper()
	return c.runWith("", name, more)
}

// runWith is run with a runtime handler of containerd's configuration.
func (c *containerd) runWith(handler, name string, more keys) *sandbox {
	c.t.Helper()
	config := c.sandboxConfig(name, more)
	s := &sandbox{c: c, name: name}
	var pod struct{ PodSandboxID string }
	c.cri("RunPodSandbox", keys{"config": config, "runtimeHandler": handler}, &pod)
	s.id = pod.PodSandboxID
	c.t.Cleanup(s.remove)
	s.ips = s.status().ips
	var made struct{ ContainerID string }
	c.cri("CreateContainer", keys{"podSandboxId": s.id, "sandboxConfig": config, "config": keys{
		"metadata": keys{"name": "main"}, "image": keys{"image": image}, "linux": keys{},
	}}, &made)
	s.ctr = made.ContainerID
	c.cri("StartContainer", keys{"containerId": s.ctr}, nil)
	return s
}

// remove stops and removes the pod; kubelet does both more than once.
func (s *sandbox) remove() {
	s.c.t.Helper()
	for _, method := range []string{"StopPodSandbox", "StopPodSandbox", "RemovePodSandbox"} {
		_, err := s.c.tryCRI(method, keys{"podSandboxId": s.id})
		if err != nil && !strings.Contains(err.Error(), "code = NotFound") {
			s.c.t.Error(err)
		}
	}
}

// sandboxStatus is what the tests read of PodSandboxStatus.
type sandboxStatus struct {
	state string
	ips   []string
	pid   int    // of the pause process, on containerd's machine
	netns string // its path, there
}

func (s *sandbox) status() sandboxStatus {
	s.c.t.Helper()
	var answer struct {
		Status struct {
			State   string
			Network struct {
				IP            string
				AdditionalIPs []struct{ IP string }
			}
		}
		Info map[string]string
	}
	s.c.cri("PodSandboxStatus", keys{"podSandboxId": s.id, "verbose": true}, &answer)
	var info struct {
		PID         int
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
	}
	if err := json.Unmarshal([]byte(answer.Info["info"]), &info); err != nil {
		s.c.t.Fatalf("%v in %q", err, answer.Info["info"])
	}
	status := sandboxStatus{state: answer.Status.State, pid: info.PID}
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" {
			status.netns = ns.Path
		}
	}
	if network := answer.Status.Network; network.IP != "" {
		status.ips = append(status.ips, network.IP)
		for _, more := range network.AdditionalIPs {
			status.ips = append(status.ips, more.IP)
		}
	}
	return status
}

// try runs a command in the pod's container, at most 10 seconds.
func (s *sandbox) try(argv ...string) (string, error) {
	s.c.t.Helper()
	var answer struct {
		Stdout, Stderr []byte
		ExitCode       int
	}
	s.c.cri("ExecSync", keys{"containerId": s.ctr, "cmd": argv, "timeout": 10}, &answer)
	out := string(answer.Stdout) + string(answer.Stderr)
	if answer.ExitCode != 0 {
		return out, fmt.Errorf("%s in %s: status %d: %s", strings.Join(argv, " "), s.name, answer.ExitCode, out)
	}
	return out, nil
}

// exec is try for what has to succeed.
func (s *sandbox) exec(argv ...string) string {
	s.c.t.Helper()
	out, err := s.try(argv...)
	if err != nil {
		s.c.t.Fatal(err)
	}
	return out
}

// inNetns runs a command of containerd's machine in the pod's network.
func (s *sandbox) inNetns(argv ...string) string {
	s.c.t.Helper()
	return s.c.exec(append([]string{"nsenter", "--net=" + s.status().netns, "--"}, argv...)...)
}

// namespace opens the pod's network namespace.
func (s *sandbox) namespace() *netns.Handle {
	s.c.t.Helper()
	// /var/run is an absolute link, which would lead out of the machine.
	ns, err := netns.Open(s.c.path(strings.TrimPrefix(s.status().netns, "/var")))
	if err != nil {
		s.c.t.Fatal(err)
	}
	s.c.t.Cleanup(func() { ns.Close() })
	return ns
}

// serve starts a web server that answers every request with the pod's name and
// its client's address.
func (s *sandbox) serve(port string) {
	s.c.t.Helper()
	s.exec("sh", "-c", "mkdir -p /tmp/www/cgi-bin; printf '#!/bin/sh\\necho; echo '"+s.name+"' $REMOTE_ADDR\\n' > /tmp/www/cgi-bin/who; chmod +x /tmp/www/cgi-bin/who; httpd -h /tmp/www -p "+port)
}

// empty waits until nothing of any container is left: no link and no interface
// on the host.
func (c *containerd) empty() {
	c.t.Helper()
	nstest.WaitFor(c.t, 20*time.Second, func() bool { return len(c.links()) == 0 })
	nstest.WaitFor(c.t, 20*time.Second, func() bool {
		return nstest.Exec(c.t, c.host, "ip", "-o", "link", "show", "type", "tun") == ""
	})
	if out := c.exec("sh", "-c", "ls /run/netns"); out != "" {
		c.t.Errorf("namespaces left: %s", out)
	}
}
