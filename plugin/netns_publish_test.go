package plugin

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// serveAll answers in a namespace, on a port of both protocols, with the client's
// address.
func serveAll(t *testing.T, ns *netns.Handle, port int) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		nstest.Answer(t, ns, "container", network, fmt.Sprintf(":%d", port))
	}
}

func mapping(hostPort int, proto, hostIP string) map[string]any {
	return map[string]any{"hostPort": hostPort, "containerPort": 80, "protocol": proto, "hostIP": hostIP}
}

func (b *bed) publishing(mode string, mappings ...any) string {
	return b.config(map[string]any{"publish": map[string]any{"mode": mode}, "runtimeConfig": map[string]any{"portMappings": mappings}})
}

// TestNetnsPublish: every kind of mapping leads to the container in either mode,
// from the host and from elsewhere, and to nowhere after the DEL.
func TestNetnsPublish(t *testing.T) {
	b := newBed(t)
	peer := nstest.NewNS(t)
	nstest.Veth(t, b.host, peer, "10.77.0.1/24", "10.77.0.2/24", "fd77::1/64", "fd77::2/64")
	b.startDaemon()
	var mappings []any
	for _, proto := range []string{"tcp", "UDP"} {
		mappings = append(mappings,
			mapping(80, proto, ""), // below 1024, both families
			mapping(8080, proto, "127.0.0.1"), mapping(8080, proto, "::1"),
			mapping(8081, proto, "::ffff:127.0.0.1"), mapping(8082, proto, "0.0.0.0"), mapping(8083, proto, "::"),
			mapping(8084, proto, "10.77.0.1"))
		for port := 9000; port < 9010; port++ { // as podman writes a range
			mappings = append(mappings, mapping(port, proto, ""))
		}
	}
	serveAll(t, b.ctr, 80)
	for _, mode := range []string{"listen", "redirect"} {
		config := b.publishing(mode, mappings...)
		r, err := b.run(cmdAdd, config, nil)
		if err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		if got, want := len(b.redirects()), map[string]int{"listen": 0, "redirect": 1}[mode]; got != want {
			t.Errorf("%s: %d tables of redirects, want %d", mode, got, want)
		}
		for _, proto := range []string{"tcp", "udp"} {
			for _, at := range []string{"127.0.0.1:80", "[::1]:80", "127.0.0.1:8080", "[::1]:8080", "127.0.0.1:8081", "127.0.0.1:8082", "[::1]:8083", "127.0.0.1:9009", "[::1]:9000"} {
				gateway := "10.88.0.1"
				if at[0] == '[' {
					gateway = "fd88::1"
				}
				if got := nstest.Ask(t, b.host, proto, at); got != "container "+gateway {
					t.Errorf("%s: %s %s: %q", mode, proto, at, got)
				}
			}
			for at, want := range map[string]string{
				"10.77.0.1:80": "container 10.77.0.2", "[fd77::1]:80": "container fd77::2", "10.77.0.1:8084": "container 10.77.0.2",
				"10.77.0.1:8082": "container 10.77.0.2", "[fd77::1]:8083": "container fd77::2",
				"10.77.0.1:8080": "refused", "[fd77::1]:8080": "refused", "10.77.0.1:8083": "refused", "[fd77::1]:8082": "refused",
			} {
				if got := nstest.Ask(t, peer, proto, at); !strings.Contains(got, want) {
					t.Errorf("%s: %s %s from elsewhere: %q, want %q", mode, proto, at, got, want)
				}
			}
		}
		b.checkAfter(config, r)
		if _, err := b.run(cmdDel, config, nil); err != nil {
			t.Error(err)
		}
		for _, proto := range []string{"tcp", "udp"} {
			if got := nstest.Ask(t, peer, proto, "10.77.0.1:80"); !strings.Contains(got, "refused") {
				t.Errorf("%s: %s after the DEL: %q", mode, proto, got)
			}
		}
		if left := b.redirects(); len(left) > 0 {
			t.Errorf("redirects after the DEL: %v", left)
		}
	}
}

// checkAfter runs CHECK where it succeeds, and seen from where neither sockets
// nor redirects are.
func (b *bed) checkAfter(config string, prev any) {
	b.t.Helper()
	var keys map[string]any
	decode(b.t, config, &keys)
	keys["prevResult"] = prev
	if _, err := b.run(cmdCheck, encode(b.t, keys), nil); err != nil {
		b.t.Errorf("CHECK: %v", err)
	}
	elsewhere := *b
	elsewhere.host = nstest.NewNS(b.t)
	words := "no socket is open"
	if strings.Contains(config, "redirect") {
		words = "no redirect"
	}
	_, err := elsewhere.run(cmdCheck, encode(b.t, keys), nil)
	wantError(b.t, err, ErrAttachment, "0.0.0.0:80/tcp", words)
}

// TestNetnsPublishHeldPort: mode auto goes past the calling runtime alone, and
// mode redirect past everybody.
func TestNetnsPublishHeldPort(t *testing.T) {
	for name, test := range map[string]struct {
		holder string // its name
		args   []string
		caller func(holder int) int // the runtime's process
		auto   string               // what mode auto does: "redirect", or a word of the error
	}{
		"a stranger":                 {"stranger", nil, func(int) int { return 0 }, "by stranger (pid "},
		"another caller's child":     {"stranger", nil, func(int) int { return 1 }, "by stranger (pid "},
		"the runtime itself":         {"runtime", nil, func(holder int) int { return holder }, "redirect"},
		"a child of the runtime":     {"sleep", nil, func(int) int { return os.Getpid() }, "redirect"},
		"the container's conmon":     {"conmon", []string{"--api-version", "1", "-c", "c1"}, func(int) int { return 0 }, "redirect"},
		"another container's conmon": {"conmon", []string{"-c", "c2"}, func(int) int { return 0 }, "by conmon (pid "},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.startDaemon()
			serveAll(t, b.ctr, 80)
			pid := b.heldBy(test.holder, test.args...)
			b.caller = test.caller(pid)
			config := func(mode string) string {
				return b.publishing(mode, mapping(8080, "tcp", "127.0.0.1"), mapping(8080, "udp", "127.0.0.1"))
			}
			_, err := b.run(cmdAdd, config("listen"), nil)
			wantError(t, err, ErrPortInUse, "127.0.0.1:8080/tcp", test.holder, strconv.Itoa(pid))
			for _, mode := range []string{"auto", "redirect"} {
				_, err = b.run(cmdAdd, config(mode), nil)
				if mode == "auto" && test.auto != "redirect" {
					wantError(t, err, ErrPortInUse, "127.0.0.1:8080/tcp", test.auto)
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", mode, err)
				}
				for _, proto := range []string{"tcp", "udp"} {
					if got := nstest.Ask(t, b.host, proto, "127.0.0.1:8080"); got != "container 10.88.0.1" {
						t.Errorf("%s, %s: %q", mode, proto, got)
					}
				}
				if _, err := b.run(cmdDel, config(mode), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// heldBy starts a process that alone holds port 8080 of the host's loopback, of
// both protocols, and returns its pid.
func (b *bed) heldBy(name string, args ...string) int {
	b.t.Helper()
	var files []*os.File
	nstest.In(b.t, b.host, func() error {
		for _, proto := range []string{"tcp", "udp"} {
			f, err := openSocket(context.Background(), proto, netip.MustParseAddrPort("127.0.0.1:8080"))
			if err != nil {
				return err
			}
			files = append(files, f)
		}
		return nil
	})
	script := filepath.Join(b.t.TempDir(), name)
	if err := os.WriteFile(script, []byte("#!/bin/sh\nread forever\n"), 0o700); err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(script, args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { stdin.Close() })
	cmd.ExtraFiles = files
	nstest.Start(b.t, b.host, cmd)
	closeAll(files)
	nstest.WaitFor(b.t, 10*time.Second, func() bool { // until it is the script
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		return err == nil && strings.TrimSpace(string(comm)) == name
	})
	return cmd.Process.Pid
}

// TestNetnsPublishForPodman: podman listens on the ports itself after the ADD,
// unless it is told not to.
func TestNetnsPublishForPodman(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	serveAll(t, b.ctr, 80)
	b.runtime = "podman"
	config := b.publishing("auto", mapping(8080, "tcp", ""))
	for _, reserves := range []bool{false, true} {
		text := fmt.Sprintf("[engine]\nenable_port_reservation = %v\n", reserves)
		file := filepath.Join(t.TempDir(), "containers.conf")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := b.run(cmdAdd, config, nil, "CONTAINERS_CONF="+file); err != nil {
			t.Fatal(err)
		}
		redirected := reserves && control.DefaultSystem() // rootless podman listens elsewhere
		if got := len(b.redirects()) > 0; got != redirected {
			t.Errorf("%q: redirected: %v, want %v", text, got, redirected)
		}
		if redirected {
			nstest.Listen(t, b.host, "tcp4", "0.0.0.0:8080")
			nstest.Listen(t, b.host, "tcp6", "[::]:8080")
		}
		for _, at := range []string{"127.0.0.1:8080", "[::1]:8080"} {
			if got := nstest.Ask(t, b.host, "tcp", at); !strings.HasPrefix(got, "container ") {
				t.Errorf("%q: %s: %q", text, at, got)
			}
		}
		if _, err := b.run(cmdDel, config, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNetnsPublishConflicts: no container takes a port from another, whichever
// way either has it.
func TestNetnsPublishConflicts(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	second := *b
	second.ctr = nstest.NewNS(t)
	second.ctrPath = nstest.Path(t, second.ctr)
	for _, first := range []string{"listen", "redirect"} {
		config := b.publishing(first, mapping(8080, "tcp", "127.0.0.1"), mapping(8053, "udp", "::"))
		if _, err := b.run(cmdAdd, config, nil); err != nil {
			t.Fatal(err)
		}
		owner := map[string]string{"listen": "by usernet (pid ", "redirect": "link web/c1/eth0"}[first]
		for _, mode := range []string{"listen", "redirect", "auto"} {
			for at, m := range map[string]any{"0.0.0.0:8080/tcp": mapping(8080, "tcp", "0.0.0.0"), "[::1]:8053/udp": mapping(8053, "udp", "::1")} {
				_, err := second.run(cmdAdd, second.publishing(mode, m), nil, "CNI_CONTAINERID=c2")
				wantError(t, err, ErrPortInUse, at, owner)
			}
		}
		fine := second.publishing(first, mapping(8080, "udp", "127.0.0.1"), mapping(8080, "tcp", "127.0.0.2"), mapping(8053, "tcp", "::"))
		if _, err := second.run(cmdAdd, fine, nil, "CNI_CONTAINERID=c2"); err != nil {
			t.Errorf("%s: what does not overlap: %v", first, err)
		}
		for id, config := range map[string]string{"c1": config, "c2": fine} {
			if _, err := b.run(cmdDel, config, nil, "CNI_CONTAINERID="+id); err != nil {
				t.Error(err)
			}
		}
	}
	for _, mode := range []string{"listen", "redirect"} {
		_, err := b.run(cmdAdd, b.publishing(mode, mapping(8080, "tcp", "0.0.0.0"), mapping(8080, "tcp", "127.0.0.1")), nil)
		wantError(t, err, ErrPortInUse, "another entry of the same portMappings")
	}
}

// TestNetnsPublishNone: mappings are taken and nothing is opened.
func TestNetnsPublishNone(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	b.heldBy("stranger")
	config := b.publishing("none", mapping(8080, "tcp", ""))
	r, err := b.run(cmdAdd, config, nil)
	if err != nil {
		t.Fatal(err)
	}
	if pubs, err := b.client.Publications(context.Background()); err != nil || len(pubs) > 0 {
		t.Errorf("publications %v, %v", pubs, err)
	}
	var keys map[string]any
	decode(t, config, &keys)
	keys["prevResult"] = r
	if _, err := b.run(cmdCheck, encode(t, keys), nil); err != nil {
		t.Error(err)
	}
}

// TestNetnsRedirectsEndWithTheDaemon: even one that is killed leaves no rule
// that leads nowhere, and neither does a link that ends without a DEL.
func TestNetnsRedirectsEndWithTheDaemon(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	config := b.publishing("redirect", mapping(8080, "tcp", ""), mapping(8080, "udp", ""))
	add := func() {
		t.Helper()
		if _, err := b.run(cmdAdd, config, nil); err != nil {
			t.Fatal(err)
		}
		if len(b.redirects()) != 1 {
			t.Fatal("nothing is redirected")
		}
	}
	add()
	nstest.In(t, b.ctr, func() error { return netns.DeleteLink("eth0") })
	nstest.WaitFor(t, 20*time.Second, func() bool { return len(b.redirects()) == 0 })
	add()
	pubs, err := b.client.Publications(context.Background())
	if err != nil || len(pubs) != 4 {
		t.Fatalf("publications %v, %v", pubs, err)
	}
	for n, p := range pubs {
		if p.HostPort != 8080 || p.SocketPort == 0 || p.SocketPort == 8080 {
			t.Errorf("publication %+v", p)
		}
		if len(b.redirects()) != 1 {
			t.Errorf("the redirects ended with %d of 4 publications", n)
		}
		if err := b.client.Unpublish(context.Background(), p.ID); err != nil {
			t.Fatal(err)
		}
	}
	nstest.WaitFor(t, 20*time.Second, func() bool { return len(b.redirects()) == 0 })
	if _, err := b.run(cmdDel, config, nil); err != nil {
		t.Fatal(err)
	}
	add()
	if err := b.daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	nstest.WaitFor(t, 20*time.Second, func() bool { return len(b.redirects()) == 0 })
}
