package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// insideEnv tells the process that runs in namespaces of its own.
const insideEnv = "USERNET_BENCH_CHAIN"

func main() {
	ref := flag.String("reference", "/usr/lib/cni", "`DIR` of the reference plugins")
	bin := flag.String("bin", "bin", "`DIR` of usernet's built programs")
	rounds := flag.Int("rounds", 20, "`ROUNDS`, each of one ADD and DEL of both")
	settle := flag.Duration("settle", 300*time.Millisecond, "`PAUSE` before each ADD; 0: in the wake of the namespace before")
	flag.Parse()
	var err error
	if os.Getenv(insideEnv) == "" {
		err = enter()
	} else {
		err = bench(*ref, *bin, *rounds, *settle)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chain:", err)
		os.Exit(1)
	}
}

// enter runs this program in mount, network and process namespaces of its own;
// the daemon ends with the latter.
func enter() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL,
	}
	return cmd.Run()
}

// prepare gives the process a /proc of its own, an empty /run and /var/lib, and
// a loopback.
func prepare() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"tmpfs", "/run"}, {"tmpfs", "/var/lib"}} {
		if err := syscall.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.at, err)
		}
	}
	return errors.Join(os.Chmod("/run", 0o755), os.Mkdir("/run/netns", 0o755), os.Chmod("/var/lib", 0o755), exec.Command("ip", "link", "set", "lo", "up").Run())
}

func bench(ref, bin string, rounds int, settle time.Duration) error {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	if err := prepare(); err != nil {
		return err
	}
	names := "/run/usernet-cni"
	usernet := filepath.Join(bin, "usernet")
	if out, err := exec.Command(usernet, "cni", "install", "--drop-in", "--bin-dir", names).CombinedOutput(); err != nil {
		return fmt.Errorf("install the drop-in names: %w\n%s", err, out)
	}
	daemon := exec.Command(usernet, "daemon", "--log-level", "error")
	daemon.Stdout, daemon.Stderr = os.Stderr, os.Stderr
	if err := daemon.Start(); err != nil {
		return err
	}
	if err := awaitSocket("/run/usernet/usernet.sock"); err != nil {
		return err
	}
	ours := &suite{name: "usernet", dir: names, subnet: "10.91.1.0/24", hostPort: 18081}
	theirs := &suite{name: "reference", dir: ref, subnet: "10.91.2.0/24", hostPort: 18082}
	for n := range rounds + 2 {
		for _, s := range []*suite{ours, theirs} {
			time.Sleep(settle) // for the kernel to be through with the namespace before
			if err := s.round(fmt.Sprintf("c%d", n)); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if n < 2 { // to warm up
				s.took = map[string][]time.Duration{}
			}
		}
	}
	report(ours, theirs)
	return nil
}

// suite is one set of plugins and what they took.
type suite struct {
	name, dir, subnet string
	hostPort          int
	took              map[string][]time.Duration // by "ADD", "DEL", and "ADD bridge"…
}

// list is what podman 4.3 writes, without its keys for people.
func (s *suite) list() []map[string]any {
	base := func(kind string, more map[string]any) map[string]any {
		conf := map[string]any{"cniVersion": "0.4.0", "name": s.name, "type": kind}
		for k, v := range more {
			conf[k] = v
		}
		return conf
	}
	return []map[string]any{
		base("bridge", map[string]any{"bridge": "cni-" + s.name, "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": map[string]any{
			"type": "host-local", "routes": []any{map[string]any{"dst": "0.0.0.0/0"}}, "ranges": []any{[]any{map[string]any{"subnet": s.subnet}}}}}),
		base("portmap", map[string]any{"capabilities": map[string]any{"portMappings": true}, "runtimeConfig": map[string]any{
			"portMappings": []any{map[string]any{"hostPort": s.hostPort, "containerPort": 80, "protocol": "tcp"}}}}),
		base("firewall", map[string]any{"backend": ""}),
		base("tuning", nil),
	}
}

// round attaches a container and detaches it.
func (s *suite) round(id string) error {
	if s.took == nil {
		s.took = map[string][]time.Duration{}
	}
	path := "/run/netns/" + id
	if err := newNamespace(path); err != nil {
		return err
	}
	defer removeNamespace(path)
	list := s.list()
	var prev json.RawMessage
	began := time.Now()
	for _, conf := range list {
		var err error
		if prev, err = s.run("ADD", id, path, conf, prev); err != nil {
			return err
		}
	}
	s.took["ADD"] = append(s.took["ADD"], time.Since(began))
	began = time.Now()
	for _, conf := range slices.Backward(list) {
		if _, err := s.run("DEL", id, path, conf, prev); err != nil {
			return err
		}
	}
	s.took["DEL"] = append(s.took["DEL"], time.Since(began))
	return nil
}

// newNamespace mounts a network namespace in which nothing runs at a path, as
// runtimes do. The thread that made it ends.
func newNamespace(path string) (err error) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the runtime ends the thread
		if err = syscall.Unshare(syscall.CLONE_NEWNET); err == nil {
			err = syscall.Mount("/proc/thread-self/ns/net", path, "", syscall.MS_BIND, "")
		}
	}()
	<-done
	return err
}

func removeNamespace(path string) {
	if err := errors.Join(syscall.Unmount(path, syscall.MNT_DETACH), os.Remove(path)); err != nil {
		fmt.Fprintln(os.Stderr, "chain:", err)
	}
}

// run executes one plugin.
func (s *suite) run(verb, id, path string, conf map[string]any, prev json.RawMessage) (json.RawMessage, error) {
	kind := conf["type"].(string)
	if prev != nil {
		conf["prevResult"] = prev
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(s.dir, kind))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_NETNS="+path,
		"CNI_IFNAME=eth0", "CNI_PATH="+s.dir, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME="+id)
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s of %s: %w: %s%s", verb, kind, err, stdout.String(), stderr.String())
	}
	s.took[verb+" "+kind] = append(s.took[verb+" "+kind], time.Since(began))
	return bytes.TrimSpace(stdout.Bytes()), nil
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// report prints medians, and how many times less ours is.
func report(ours, theirs *suite) {
	fmt.Printf("%-14s %12s %12s %8s   of %d rounds in turns, medians in ms\n", "", theirs.name, ours.name, "ratio", len(ours.took["ADD"]))
	for _, verb := range []string{"ADD", "DEL"} {
		for _, kind := range []string{"", " bridge", " portmap", " firewall", " tuning"} {
			a, b := median(theirs.took[verb+kind]), median(ours.took[verb+kind])
			label := verb + kind
			if kind == "" {
				label = verb + " of all"
			}
			fmt.Printf("%-14s %12.1f %12.1f %8.1f\n", strings.TrimSpace(label), ms(a), ms(b), ms(a)/ms(b))
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// awaitSocket waits for the daemon to serve.
func awaitSocket(path string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 200 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		<-tick.C
	}
	return fmt.Errorf("the daemon does not serve %s after 4 s; it prints why above", path)
}
