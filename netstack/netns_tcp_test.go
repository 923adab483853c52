package netstack_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/netstack"
)

// realWorld is a switch whose container is a namespace with a TUN and whose
// host sockets are made in a namespace of its own, cabled to a third one that
// is the outside.
type realWorld struct {
	s                        *netstack.Switch
	container, host, outside *netns.Handle
}

// Of the outside: the host's router, and the server.
const (
	hostAddr4, serverAddr4 = "10.77.0.1", "10.77.0.2"
	hostAddr6, serverAddr6 = "fd77::1", "fd77::2"
)

func newRealWorld(t *testing.T) *realWorld {
	t.Helper()
	nstest.Require(t)
	checkLeaks(t)
	w := &realWorld{container: nstest.NewNS(t), host: nstest.NewNS(t), outside: nstest.NewNS(t)}
	nstest.Veth(t, w.host, w.outside, hostAddr4+"/24", serverAddr4+"/24", hostAddr6+"/64", serverAddr6+"/64")
	// IPv6 on a new cable needs a moment; a closed port answers when it is there.
	for _, server := range []string{serverAddr4, serverAddr6} {
		nstest.WaitFor(t, testTimeout, func() bool {
			_, err := nstest.Dial(t, w.host, "tcp", net.JoinHostPort(server, "9"))
			return errors.Is(err, syscall.ECONNREFUSED)
		})
	}
	s, err := netstack.New(netstack.Config{
		Name:     "real",
		Gateways: []netip.Prefix{netip.PrefixFrom(gateway4, 24), netip.PrefixFrom(gateway6, 64)},
		DNS:      netstack.DNSConfig{ResolvConf: os.DevNull},
		Host: netstack.Host{DialContext: func(ctx context.Context, network, address string, control netstack.ControlFunc) (c net.Conn, err error) {
			d := net.Dialer{Control: control}
			err = w.host.Do(func() (err error) { c, err = d.DialContext(ctx, network, address); return err })
			return c, err
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.s = s
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the switch: %v", err)
		}
	})
	dev := nstest.TUN(t, w.container, netns.Interface{
		Name: "eth0", MTU: netstack.DefaultMTU,
		Addrs: []netip.Prefix{netip.PrefixFrom(container4, 24), netip.PrefixFrom(container6, 64)},
		Routes: []netns.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: gateway4},
			{Dst: netip.MustParsePrefix("::/0"), Gateway: gateway6},
		},
	})
	if _, err := s.Attach(dev, netstack.LinkConfig{Name: "web", Addrs: []netip.Addr{container4, container6}}); err != nil {
		t.Fatal(err)
	}
	return w
}

// realFamilies runs a test against the outside server's address of each family.
func realFamilies(t *testing.T, f func(t *testing.T, server string)) {
	t.Run("ipv4", func(t *testing.T) { f(t, serverAddr4) })
	t.Run("ipv6", func(t *testing.T) { f(t, serverAddr6) })
}

// requireTools fails or skips, as nstest.Require does, without the programs.
func requireTools(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed, and CI=true", n)
			}
			t.Skipf("%s is not installed", n) //nolint:forbidigo // in CI it fails, above
		}
	}
}

func TestNetnsCurlFetches(t *testing.T) {
	requireTools(t, "curl")
	realFamilies(t, func(t *testing.T, server string) {
		w := newRealWorld(t)
		content := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
		ln := nstest.Listen(t, w.outside, "tcp", net.JoinHostPort(server, "0"))
		got := make(chan string, 1)
		srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			sum := sha256.New()
			io.Copy(sum, r.Body)
			got <- hex.EncodeToString(sum.Sum(nil))
			rw.Write(content)
		})}
		go srv.Serve(ln)
		defer srv.Close()
		upload := t.TempDir() + "/upload"
		if err := os.WriteFile(upload, content, 0o600); err != nil {
			t.Fatal(err)
		}
		out := nstest.Exec(t, w.container, "curl", "-sS", "--max-time", "30", "--data-binary", "@"+upload,
			"-w", "%{remote_ip}", "http://"+ln.Addr().String()+"/")
		if want := string(content) + server; out != want {
			t.Errorf("curl got %d bytes, want %d and then %s", len(out), len(content), server)
		}
		sum := sha256.Sum256(content)
		if g := <-got; g != hex.EncodeToString(sum[:]) {
			t.Errorf("server got digest %s", g)
		}
	})
}

func TestNetnsIperf(t *testing.T) {
	requireTools(t, "iperf3")
	realFamilies(t, func(t *testing.T, server string) {
		w := newRealWorld(t)
		w.startIperf(t, server)
		for _, args := range [][]string{{}, {"-R"}, {"-P", "4"}, {"--bidir"}} {
			argv := append([]string{"iperf3", "-J", "-c", server, "-t", "1"}, args...)
			var res struct {
				Error string
				End   struct {
					Received struct{ Bytes int64 } `json:"sum_received"`
				}
			}
			// The server may still be at the end of the test before, after which
			// it listens anew.
			between := regexp.MustCompile("busy running a test|Connection refused")
			nstest.WaitFor(t, 20*time.Second, func() bool {
				res.Error = ""
				out, err := nstest.TryExec(t, w.container, argv...)
				if jerr := json.Unmarshal([]byte(out), &res); jerr == nil && between.MatchString(res.Error) {
					return false
				} else if err != nil || jerr != nil || res.Error != "" {
					t.Fatalf("iperf3 %v: %v, %v, %s", args, err, jerr, res.Error)
				}
				return true
			})
			if res.End.Received.Bytes < 10<<20 {
				t.Errorf("iperf3 %v moved %d bytes in a second", args, res.End.Received.Bytes)
			}
			t.Logf("iperf3 %v: %.1f Gbit/s", args, float64(res.End.Received.Bytes)*8/1e9)
		}
	})
}

// lineWaiter closes seen when a text has been written to it.
type lineWaiter struct {
	want string
	all  strings.Builder
	seen chan struct{}
	done bool
}

func (l *lineWaiter) Write(p []byte) (int, error) {
	l.all.Write(p)
	if !l.done && strings.Contains(l.all.String(), l.want) {
		l.done = true
		close(l.seen)
	}
	return len(p), nil
}

// What the container's kernel makes of each way to fail: at once, and with the
// errno that a real network would have caused.
func TestNetnsFailuresReachTheContainer(t *testing.T) {
	w := newRealWorld(t)
	for _, tt := range []struct {
		what, host string
		want       error
	}{
		{"closed port", serverAddr4, syscall.ECONNREFUSED},
		{"closed port", serverAddr6, syscall.ECONNREFUSED},
		{"no route on the host", "192.0.2.1", syscall.ENETUNREACH},
		{"no route on the host", "2001:db8::1", syscall.ENETUNREACH},
		{"no neighbour", "10.77.0.99", syscall.EHOSTUNREACH},
		{"no neighbour", "fd77::99", syscall.EHOSTUNREACH},
		// Policy: ICMP type 3 code 13 is EHOSTUNREACH to Linux, ICMPv6 type 1
		// code 1 is EACCES.
		{"metadata", "169.254.169.254", syscall.EHOSTUNREACH},
		{"metadata", "fd00:ec2::254", syscall.EACCES},
		{"gateway's closed port", gateway4.String(), syscall.ECONNREFUSED},
		{"gateway's closed port", gateway6.String(), syscall.ECONNREFUSED},
	} {
		start := time.Now()
		c, err := nstest.Dial(t, w.container, "tcp", net.JoinHostPort(tt.host, "9"))
		took := time.Since(start)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, tt.want) {
			t.Errorf("%s, %s: %v, want %v", tt.what, tt.host, err, tt.want)
		}
		// The host's kernel may take seconds, to look for a neighbour; what it
		// then says must not wait for a second SYN.
		var last netstack.Flow
		eventually(t, func() bool { // the answer may be faster than the books
			flows := w.s.Flows()
			last = flows[len(flows)-1]
			return last.End != nil
		})
		if own := took - last.End.Sub(last.Start); own > 500*time.Millisecond {
			t.Errorf("%s, %s: took %v longer than the host side's dial", tt.what, tt.host, own)
		}
	}
}

// A published port shows the container who calls, over a real network.
func TestNetnsPublishShowsTheClient(t *testing.T) {
	requireTools(t, "socat")
	realFamilies(t, func(t *testing.T, server string) {
		w := newRealWorld(t)
		hostAddr, inside := hostAddr4, container4
		if strings.Contains(server, ":") {
			hostAddr, inside = hostAddr6, container6
		}
		ln := nstest.Listen(t, w.host, "tcp", net.JoinHostPort(hostAddr, "0"))
		p, err := w.s.Publish(netstack.PublishConfig{Link: "web", Proto: "tcp", Port: 80, Listener: ln})
		if err != nil {
			t.Fatal(err)
		}
		proto := "TCP4-LISTEN"
		if inside.Is6() {
			proto = "TCP6-LISTEN"
		}
		nstest.Start(t, w.container, exec.Command("socat", "-t", "10", proto+":80,reuseaddr,fork",
			"SYSTEM:echo \"$SOCAT_PEERADDR\"; cat"))
		var conn net.Conn
		var line string
		nstest.WaitFor(t, testTimeout, func() bool { // until socat listens, the client is reset
			c, err := nstest.Dial(t, w.outside, "tcp", p.Host().String())
			if err != nil {
				return false
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(testTimeout))
			_, werr := fmt.Fprintln(c, "ping")
			cerr := c.(*net.TCPConn).CloseWrite()
			all, err := io.ReadAll(c)
			conn, line = c, string(all)
			return errors.Join(werr, cerr, err) == nil
		})
		local := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr()
		peer, echo, _ := strings.Cut(line, "\n")
		if got, err := netip.ParseAddr(strings.Trim(peer, "[]")); err != nil || got != local {
			t.Errorf("container sees client %q, want %v", peer, local)
		}
		if echo != "ping\n" {
			t.Errorf("echo %q", echo)
		}
	})
}

// The daemon's end resets what it carried, promptly, for both real kernels.
func TestNetnsCloseResetsBothKernels(t *testing.T) {
	realFamilies(t, func(t *testing.T, server string) {
		w := newRealWorld(t)
		ln := nstest.Listen(t, w.outside, "tcp", net.JoinHostPort(server, "0"))
		c, err := nstest.Dial(t, w.container, "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		host, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		if err := w.s.Close(); err != nil {
			t.Error(err)
		}
		host.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := host.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("host reads %v, want ECONNRESET", err)
		}
	})
}
