package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

// clients are programs that people use, and what they must print.
var clients = []struct{ name, script, want string }{
	{"curl IPv4", "curl -4 -sS http://outside.example/", "this is the outside world, you are 203.0.113.1"},
	{"curl IPv6", "curl -6 -sS http://outside.example/", "this is the outside world, you are 2001:db8:113::1"},
	{"wget", "busybox wget -qO- http://203.0.113.2/", "this is the outside world, you are 203.0.113.1"},
	{"nc", `printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc 203.0.113.2 80`, "this is the outside world"},
	{"dig UDP", "dig +short outside.example A", "203.0.113.2"},
	{"dig UDP IPv6", "dig +short outside.example AAAA", "2001:db8:113::2"},
	{"dig to the outside", "dig +short @203.0.113.2 outside.example A", "203.0.113.2"},
	{"dig of a name that is not", "dig no.example A", "NXDOMAIN"},
	{"own name", "getent ahostsv4 box", "10.83.0.2"},
	{"own name by DNS", "dig +short box AAAA", "fd83:7573:6572::2"},
	{"ping", "ping -c 2 -i 0.2 -W 5 203.0.113.2", "2 received"},
	{"ping IPv6", "ping -6 -c 2 -i 0.2 -W 5 2001:db8:113::2", "2 received"},
	{"ping the gateway", "ping -c 1 -W 5 10.83.0.1", "1 received"},
	{"traceroute", "traceroute -n -q 1 -w 5 203.0.113.2", " 1  10.83.0.1 "},
	{"traceroute IPv6", "traceroute -6 -n -q 1 -w 5 2001:db8:113::2", "2001:db8:113::2 "},
	{"TCP without pacing", "grep -q bbr /proc/sys/net/ipv4/tcp_congestion_control || echo as fast as it can", "as fast as it can"},
	{"traceroute ICMP", "traceroute -I -n -q 1 -w 5 203.0.113.2", "203.0.113.2 "},
}

func testClients(t *testing.T, w *world, wrap func(*exec.Cmd) *exec.Cmd) {
	need(t, "curl", "busybox", "dig", "ping", "traceroute")
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) {
			r := w.do(wrap(w.command("run", "--name", "box", "--", "sh", "-c", c.script)))
			if r.status != 0 || !strings.Contains(r.stdout, c.want) {
				t.Errorf("%s: status %d, want %q in\n%s%s", c.script, r.status, c.want, r.stdout, r.stderr)
			}
		})
	}
}

func TestNetnsRunAsRoot(t *testing.T) {
	testClients(t, newWorld(t), func(cmd *exec.Cmd) *exec.Cmd { return cmd })
}

func TestNetnsRunAsNobody(t *testing.T) {
	w := newWorld(t)
	w.openToNobody()
	testClients(t, w, func(cmd *exec.Cmd) *exec.Cmd { return asNobody(t, cmd) })
	t.Run("identity", func(t *testing.T) {
		r := w.do(asNobody(t, w.command("run", "--", "sh", "-c", "id -u; id -g; grep -E 'CapEff|CapPrm|CapAmb' /proc/self/status")))
		if want := "65534\n65534\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n"; r.stdout != want {
			t.Errorf("got %q, want %q\n%s", r.stdout, want, r.stderr)
		}
	})
	t.Run("low port inside", func(t *testing.T) {
		r := w.do(asNobody(t, w.command("run", "--", "sh", "-c", "busybox nc -l -p 80 </dev/null & busybox nc -w 1 127.0.0.1 80 </dev/null; for i in 1 2 3 4 5 6 7 8 9; do busybox nc 127.0.0.1 80 </dev/null && break; done; wait")))
		if strings.Contains(r.stderr, "ermission") {
			t.Errorf("port 80 of its own network: %s", r.stderr)
		}
	})
	t.Run("no device", func(t *testing.T) {
		cmd := w.command("run", "--", "true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		r := w.do(cmd)
		if r.status != 125 || !strings.Contains(r.stderr, "chmod 666 /dev/net/tun") {
			t.Errorf("status %d, %s; want 125 and the command that mends it", r.status, r.stderr)
		}
	})
}

func TestNetnsRunExitStatus(t *testing.T) {
	w := newWorld(t)
	text := filepath.Join(w.dir, "text")
	if err := os.WriteFile(text, []byte("no program\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		argv   []string
		status int
		stderr string
	}{
		{[]string{"true"}, 0, ""},
		{[]string{"sh", "-c", "exit 3"}, 3, ""},
		{[]string{"sh", "-c", "kill -KILL $$"}, 137, ""},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		{[]string{"no-such-program"}, 127, `usernet: exec: "no-such-program": executable file not found in $PATH`},
		{[]string{"/no/such/program"}, 127, "usernet: exec /no/such/program: no such file or directory"},
		{[]string{text}, 126, text + ": permission denied"},
		{[]string{"/etc"}, 126, "/etc"},
	} {
		r := w.do(w.command(append([]string{"run", "--"}, c.argv...)...))
		if r.status != c.status || !strings.Contains(r.stderr, c.stderr) || c.stderr == "" && r.stderr != "" {
			t.Errorf("%q: status %d, stderr %q; want %d, %q", c.argv, r.status, r.stderr, c.status, c.stderr)
		}
	}
}

func TestNetnsRunForwardsSignals(t *testing.T) {
	w := newWorld(t)
	cmd := w.command("run", "--", "sh", "-c",
		`for s in HUP INT QUIT TERM USR1 USR2; do trap "echo got $s" $s; done; trap 'exit 9' USR2; echo ready; while :; do sleep 0.05; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.start(cmd)
	lines := linesOf(out)
	await(t, lines, "ready")
	for sig, name := range map[syscall.Signal]string{
		syscall.SIGHUP: "HUP", syscall.SIGINT: "INT", syscall.SIGQUIT: "QUIT", syscall.SIGTERM: "TERM", syscall.SIGUSR1: "USR1",
	} {
		cmd.Process.Signal(sig)
		await(t, lines, "got "+name)
	}
	cmd.Process.Signal(syscall.SIGUSR2)
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 9 {
		t.Errorf("status %d, want 9", got)
	}
}

// TestNetnsRunKilled kills usernet itself: the command goes with it, and what
// the command has started, even in sessions of its own.
func TestNetnsRunKilled(t *testing.T) {
	w := newWorld(t)
	w.openToNobody()
	for user, wrap := range map[string]func(*exec.Cmd) *exec.Cmd{
		"root":   func(cmd *exec.Cmd) *exec.Cmd { return cmd },
		"nobody": func(cmd *exec.Cmd) *exec.Cmd { return asNobody(t, cmd) },
	} {
		t.Run(user, func(t *testing.T) {
			cmd := wrap(w.command("run", "--", "sh", "-c",
				`sleep 600 & echo child $!; setsid sh -c 'echo grandchild $$; exec sleep 600' & echo command $$; wait`))
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			w.start(cmd)
			lines := linesOf(out)
			var pids []int
			for range 3 {
				pids = append(pids, mustPID(t, await(t, lines, " ")))
			}
			cmd.Process.Kill()
			for _, pid := range pids {
				nstest.WaitFor(t, 10*time.Second, func() bool { return !alive(pid) })
			}
		})
	}
}

func TestNetnsRunPublishesWithTheClientsAddress(t *testing.T) {
	need(t, "socat")
	w := newWorld(t)
	serve := func(args ...string) {
		cmd := w.command(append([]string{"run"}, args...)...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		w.start(cmd)
		await(t, linesOf(out), "ready")
	}
	serve("-p", "203.0.113.1:8080:80", "-p", "[2001:db8:113::1]:8080:80", "-p", "203.0.113.1/5353:53/udp", "--", "sh", "-c",
		`socat TCP4-LISTEN:80,fork SYSTEM:'echo $SOCAT_PEERADDR' &
		 socat TCP6-LISTEN:80,fork,ipv6only SYSTEM:'echo $SOCAT_PEERADDR' &
		 socat UDP4-LISTEN:53,fork SYSTEM:'echo $SOCAT_PEERADDR' &
		 until test $(ss -tln | grep -c :80) = 2 && ss -uln | grep -q :53; do :; done; echo ready; wait`)
	for _, c := range []struct{ client, want string }{
		{"socat -T 20 - TCP4:203.0.113.1:8080 </dev/null", "203.0.113.2"},
		{"socat -T 20 - TCP6:[2001:db8:113::1]:8080 </dev/null", "[2001:0db8:0113:0000:0000:0000:0000:0002]"},
	} {
		if out := nstest.Exec(t, w.outside, "sh", "-c", c.client); out != c.want+"\n" {
			t.Errorf("%s: %q, want %s", c.client, out, c.want)
		}
	}
	if got := w.askOverUDP("203.0.113.1:5353"); got != "203.0.113.2\n" {
		t.Errorf("over UDP: %q", got)
	}
	r := w.do(w.command("run", "-p", "203.0.113.1:8080:80", "--", "true"))
	if r.status != 125 || !strings.Contains(r.stderr, "203.0.113.1:8080") || !strings.Contains(r.stderr, "in use") {
		t.Errorf("a port in use: status %d, %s", r.status, r.stderr)
	}
}

func TestNetnsRunTellsWhichPortTheKernelChose(t *testing.T) {
	w := newWorld(t)
	cmd := w.command("run", "--name", "box", "-p", "0:80", "--", "sleep", "600")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.start(cmd)
	line := await(t, linesOf(stderr), " leads to port 80/tcp of box")
	at, err := netip.ParseAddrPort(strings.Fields(line)[1])
	if err != nil || at.Port() == 0 || at.Addr().String() != "127.0.0.1" {
		t.Errorf("%q names %v, %v", line, at, err)
	}
}

func TestNetnsRunHostLoopback(t *testing.T) {
	need(t, "curl")
	w := newWorld(t)
	l := nstest.Listen(t, w.host, "tcp", "127.0.0.1:0")
	go serveHTTP(l, "the loopback")
	port := l.Addr().(*net.TCPAddr).Port
	for _, host := range []string{"127.0.0.1", "10.83.0.1", "203.0.113.1", "2001:db8:113::1", "0.0.0.0"} {
		url := "http://" + net.JoinHostPort(host, strconv.Itoa(port)) + "/"
		r := w.do(w.command("run", "--", "curl", "-sS", "-m", "5", url))
		if r.status == 0 || r.stdout != "" || strings.Contains(r.stderr, "timed out") {
			t.Errorf("%s from inside: status %d %q %q; want a refusal at once", url, r.status, r.stdout, r.stderr)
		}
	}
	got := w.run("run", "--host-service", fmt.Sprintf("db=localhost:%d", port), "--", "curl", "-sS", fmt.Sprintf("http://db:%d/", port))
	if !strings.Contains(got, "this is the loopback") {
		t.Errorf("the host service answers %q", got)
	}
}

func TestNetnsRunFlags(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"--subnet", "10.7.0.0/24", "--subnet", "fd07::/64", "--", "ip", "-br", "addr"}, []string{"10.7.0.2/24 fd07::2/64"}},
		{[]string{"--no-ipv6", "--", "sh", "-c", "ip -br addr; cat /etc/resolv.conf"}, []string{"10.83.0.2/24", "!fd83", "nameserver 10.83.0.1"}},
		{[]string{"--mtu", "1300", "--", "ip", "link", "show", "eth0"}, []string{"mtu 1300"}},
		{[]string{"--add-host", "db:192.0.2.9", "--", "sh", "-c", "getent hosts db; dig +short db"}, []string{"192.0.2.9", "\n192.0.2.9"}},
		{[]string{"--name", "me", "--", "getent", "hosts", "me"}, []string{"fd83:7573:6572::2"}},
	} {
		out := w.run(append([]string{"run"}, c.args...)...)
		for _, want := range c.want {
			text, absent := strings.CutPrefix(want, "!")
			if strings.Contains(out, text) == absent {
				t.Errorf("%q: want %q in\n%s", c.args, want, out)
			}
		}
	}
}

// TestNetnsRunSaysWhatWasMeant holds what is said of flags that are understood and
// still do not do what was meant.
func TestNetnsRunSaysWhatWasMeant(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"--json", "flows.json", "--", "true"}, 127, "Write --json=FILE"},
		{[]string{"-p", "192.0.2.77:80", "--", "true"}, 125, "published at addresses of this machine"},
		{[]string{"--subnet", "203.0.113.0/28", "--", "true"}, 0, "overlaps 203.0.113.0/24 of this machine"},
	} {
		r := w.do(w.command(append([]string{"run"}, c.args...)...))
		if r.status != c.status || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%q: status %d, want %d with %q in\n%s", c.args, r.status, c.status, c.want, r.stderr)
		}
	}
}

func TestNetnsRunWritesPcapAndSummary(t *testing.T) {
	need(t, "curl", "tshark")
	w := newWorld(t)
	pcap, summaryPath := filepath.Join(w.dir, "x.pcapng"), filepath.Join(w.dir, "flows.json")
	w.run("run", "--name", "box", "--pcap", pcap, "--json="+summaryPath, "--", "curl", "-sS", "http://outside.example/")
	out, err := exec.Command("tshark", "-r", pcap, "-Y", "http or dns", "-T", "fields", "-e", "_ws.col.Info").CombinedOutput()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, out)
	}
	for _, want := range []string{"GET / HTTP/1.1", "200 OK", "A outside.example"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in the capture:\n%s", want, out)
		}
	}
	data, err := os.ReadFile(summaryPath)
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Name       string
		Addrs      []netip.Prefix
		ExitStatus int
		Flows      []control.Flow
	}
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	found := false
	for _, f := range s.Flows {
		found = found || f.Direction == "egress" && f.Proto == "tcp" && f.Destination.Port() == 80 &&
			!f.End.IsZero() && f.FromContainerBytes > 0 && f.ToContainerBytes > 0
	}
	if s.Name != "box" || len(s.Addrs) != 2 || s.ExitStatus != 0 || !found {
		t.Errorf("the summary is %s", data)
	}
	r := w.do(w.command("run", "--json", "--", "sh", "-c", "exit 4"))
	if r.status != 4 || !strings.Contains(r.stderr, `"exitStatus": 4`) || r.stdout != "" {
		t.Errorf("--json: status %d, stdout %q, stderr %q", r.status, r.stdout, r.stderr)
	}
}

func TestNetnsDemo(t *testing.T) {
	w := newWorld(t)
	begun := time.Now()
	out := w.run("demo")
	if took := time.Since(begun); took > demoLimit {
		t.Errorf("the demo took %v", took)
	}
	if !strings.Contains(out, "All 9 steps worked") {
		t.Errorf("the demo says\n%s", out)
	}
	w.openToNobody()
	if r := w.do(asNobody(t, w.command("demo"))); r.status != 0 || !strings.Contains(r.stdout, "All 9 steps worked") {
		t.Errorf("as nobody: status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
}

func TestNetnsDoctor(t *testing.T) {
	w := newWorld(t)
	r := w.do(w.command("doctor", "--json"))
	var checks []struct{ Name, State, Found, Fix string }
	if err := json.Unmarshal([]byte(r.stdout), &checks); err != nil || r.status != 0 || len(checks) != 8 {
		t.Fatalf("status %d, %v, %s%s", r.status, err, r.stdout, r.stderr)
	}
	for _, c := range checks {
		if c.State == "failed" || c.Name == "ping" && c.State != "ok" {
			t.Errorf("%+v", c)
		}
	}
	w.openToNobody()
	cmd := w.command("doctor")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if r := w.do(cmd); r.status != 1 || !strings.Contains(r.stdout, "-> let every user open it: chmod 666 /dev/net/tun") {
		t.Errorf("without the device: status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
}
