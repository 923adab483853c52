package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// mtuFlag gives a peer the MTU that it is fastest with.
var mtuFlag = "--mtu=" + strconv.Itoa(largeMTU)

// slirp is slirp4netns at its best MTU, one process per container.
type slirp struct {
	dir   string
	procs []*process
}

func (*slirp) Name() string    { return "slirp4netns" }
func (*slirp) Missing() string { return missing("slirp4netns", "slirp4netns") }
func (*slirp) Version() string { return versionOf("slirp4netns", "--version") }

func (*slirp) Traits() Traits {
	return Traits{MTU: largeMTU, Egress: true, Publish: true, Userspace: true, DNS: "10.0.2.3"}
}

func (s *slirp) Up(ctx context.Context, t *Topology) (err error) {
	if s.dir, err = os.MkdirTemp("", "slirp-"); err != nil {
		return err
	}
	for i, c := range t.Containers {
		api := filepath.Join(s.dir, c)
		p, err := start(in(t.Host, "slirp4netns", "--configure", mtuFlag, "--netns-type=path",
			"--api-socket="+api, "/run/netns/"+c, "tap0")...)
		if err != nil {
			return err
		}
		s.procs = append(s.procs, p)
		if err := p.await(ctx, "tap0", func() bool { return hasAddress(c, "tap0") }); err != nil {
			return err
		}
		if i == 0 {
			if err := s.publish(ctx, p, api); err != nil {
				return err
			}
		}
	}
	return nil
}

// publish asks the process's control socket, which comes after tap0, to listen for
// container 0.
func (s *slirp) publish(ctx context.Context, p *process, api string) error {
	var c net.Conn
	err := p.await(ctx, "control socket", func() bool {
		var err error
		c, err = net.Dial("unix", api)
		return err == nil
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c, `{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":%q,"host_port":%d,"guest_port":%d}}`,
		hostV4, publishedPort, publishedPort)
	if err != nil {
		return err
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		return err
	}
	answer := make([]byte, 512)
	n, err := c.Read(answer)
	if err != nil || !strings.Contains(string(answer[:n]), "return") {
		return fmt.Errorf("slirp4netns add_hostfwd: %s, %w", answer[:n], err)
	}
	return nil
}

func (s *slirp) Down(*Topology) error {
	stopAll(s.procs)
	s.procs = nil
	return os.RemoveAll(s.dir)
}

// pasta is pasta (passt) at its best MTU, one process per container.
type pasta struct{ procs []*process }

func (*pasta) Name() string    { return "pasta" }
func (*pasta) Missing() string { return missing("pasta", "passt") }
func (*pasta) Version() string { return versionOf("pasta", "--version") }

func (*pasta) Traits() Traits {
	return Traits{MTU: largeMTU, Egress: true, V6: true, Publish: true, Userspace: true}
}

func (p *pasta) Up(ctx context.Context, t *Topology) error {
	for i, c := range t.Containers {
		tcp := "none"
		if i == 0 {
			tcp = fmt.Sprintf("%s/%d", hostV4, publishedPort)
		}
		proc, err := start(in(t.Host, "pasta", "--foreground", "--config-net", "--no-map-gw", "--runas", "0", mtuFlag, "--ns-ifname", "eth0",
			"-t", tcp, "-u", "none", "-T", "none", "-U", "none", "--netns", "/run/netns/"+c)...)
		if err != nil {
			return err
		}
		p.procs = append(p.procs, proc)
		if err := proc.await(ctx, "eth0", func() bool { return hasAddress(c, "eth0") }); err != nil {
			return err
		}
	}
	return nil
}

func (p *pasta) Down(*Topology) error {
	stopAll(p.procs)
	p.procs = nil
	return nil
}

// rootlesskit is RootlessKit with its builtin port driver, for published ports;
// its egress is slirp4netns's.
type rootlesskit struct{ procs []*process }

func (*rootlesskit) Name() string { return "rootlesskit" }
func (*rootlesskit) Missing() string {
	if why := missing("rootlesskit", "rootlesskit"); why != "" {
		return why
	}
	return missing("slirp4netns", "slirp4netns")
}
func (*rootlesskit) Version() string { return versionOf("rootlesskit", "--version") }

func (*rootlesskit) Traits() Traits { return Traits{MTU: largeMTU, Publish: true, Userspace: true} }

func (r *rootlesskit) Up(ctx context.Context, t *Topology) error {
	p, err := startSandbox(ctx, t, 0, []string{
		"rootlesskit", "--net=slirp4netns", mtuFlag, "--disable-host-loopback",
		"--port-driver=builtin", "-p", fmt.Sprintf("%s:%d:%d/tcp", hostV4, publishedPort, publishedPort), "--",
	})
	if p != nil {
		r.procs = append(r.procs, p)
	}
	return err
}

func (r *rootlesskit) Down(*Topology) error {
	stopAll(r.procs)
	r.procs = nil
	return nil
}

// tapVsock is gvisor-tap-vsock: gvproxy on the host, gvforwarder with a TAP in
// the container, as a virtual machine has it, and three times as fast with a
// large MTU as with its default.
type tapVsock struct {
	dir   string // of the two executables
	sock  string
	procs []*process
}

func (*tapVsock) Name() string      { return "gvisor-tap-vsock" }
func (v *tapVsock) Missing() string { return notBuilt(v.dir, "gvproxy") }
func (v *tapVsock) Version() string { return versionOf(filepath.Join(v.dir, "gvproxy"), "--version") }

func (*tapVsock) Traits() Traits {
	return Traits{MTU: largeMTU, Egress: true, Publish: true, Userspace: true, DNS: "192.168.127.1"}
}

func (v *tapVsock) Up(ctx context.Context, t *Topology) (err error) {
	dir, err := os.MkdirTemp("", "gvproxy-")
	if err != nil {
		return err
	}
	v.sock = filepath.Join(dir, "sock")
	c := t.Containers[0] // a gvproxy serves one machine
	err = runAll(ctx, [][]string{
		{"ip", "-n", c, "tuntap", "add", "tap0", "mode", "tap"},
		{"ip", "-n", c, "addr", "add", "192.168.127.2/24", "dev", "tap0"},
		{"ip", "-n", c, "link", "set", "tap0", "up", "mtu", strconv.Itoa(largeMTU)},
		{"ip", "-n", c, "route", "add", "default", "via", "192.168.127.1"},
	})
	if err != nil {
		return err
	}
	for _, argv := range [][]string{
		in(t.Host, filepath.Join(v.dir, "gvproxy"), "-listen", "unix://"+v.sock, "-ssh-port", "-1", mtuFlag),
		in(c, filepath.Join(v.dir, "gvforwarder"), "-preexisting", "-iface", "tap0", mtuFlag, "-stop-if-exist", "", "-url", "unix://"+v.sock),
	} {
		p, err := start(argv...)
		if err != nil {
			return err
		}
		v.procs = append(v.procs, p)
		if err := p.await(ctx, "socket", func() bool { _, err := os.Stat(v.sock); return err == nil }); err != nil {
			return err
		}
	}
	return v.publish(ctx)
}

// publish asks gvproxy's API to listen for the container.
func (v *tapVsock) publish(ctx context.Context) error {
	var d net.Dialer
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", v.sock) },
	}}
	body := fmt.Sprintf(`{"local":"%s:%d","remote":"192.168.127.2:%d"}`, hostV4, publishedPort, publishedPort)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://gvproxy/services/forwarder/expose", strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New("gvproxy: expose: " + resp.Status)
	}
	return nil
}

func (v *tapVsock) Down(*Topology) error {
	stopAll(v.procs)
	v.procs = nil
	return os.RemoveAll(filepath.Dir(v.sock))
}

const unknown = "unknown"

func versionOf(argv ...string) string {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return unknown
	}
	return firstLine(string(out))
}

func firstLine(s string) string { line, _, _ := strings.Cut(strings.TrimSpace(s), "\n"); return line }
