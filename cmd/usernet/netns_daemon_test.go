package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

// startDaemon runs a daemon on the world's machine until the test's end.
func (w *world) startDaemon() {
	w.t.Helper()
	cmd := w.command("daemon", "--state-dir", filepath.Join(w.dir, "state"))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	w.start(cmd)
	await(w.t, linesOf(stderr), "serving")
}

// TestNetnsDaemonAndItsClients goes through the command line as a person would:
// a network, two commands on it, ports, flows, captures, and the end.
func TestNetnsDaemonAndItsClients(t *testing.T) {
	need(t, "curl", "tshark")
	w := newWorld(t)
	w.startDaemon()
	expect := func(out string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in\n%s", want, out)
			}
		}
	}
	expect(w.run("network", "create", "web", "--subnet", "10.20.0.0/24", "--subnet", "fd20::/64"), "web 10.20.0.1/24,fd20::1/64")
	expect(w.run("network", "ls"), "NAME", "web", "10.20.0.1/24,fd20::1/64", "api")
	expect(w.run("network", "inspect", "web"), "Gateways", "fd20::1/64")

	server := w.command("run", "--network", "web", "--name", "server", "-p", "203.0.113.1:8080:80", "--", "sh", "-c",
		"mkdir -p www && cd www && echo hello > index.html && echo ready && exec busybox httpd -f -p 80")
	server.Dir = t.TempDir()
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.start(server)
	await(t, linesOf(out), "ready")
	w.run("run", "--network", "web", "--name", "waiter", "--", "sh", "-c", "until busybox nc server 80 </dev/null 2>/dev/null; do :; done")
	expect(w.run("run", "--network", "web", "--name", "client", "--", "sh", "-c", "curl -4 -sS http://server/ && curl -6 -sS http://server/"), "hello\nhello\n")
	expect(nstest.Exec(t, w.outside, "curl", "-sS", "http://203.0.113.1:8080/"), "hello")
	testSummary(t, w)

	expect(w.run("ps"), "NETWORK", "server", "10.20.0.2", "203.0.113.1:8080->80/tcp", "attached", "DEVICE", "tun")
	expect(w.run("inspect", "server"), "web/server/eth0", "10.20.0.2/24", "Sent", "Device          tun")
	testLinkSet(t, w, expect)
	id := strings.Fields(w.run("publish", "server", "203.0.113.1:9090:80"))[0]
	expect(nstest.Exec(t, w.outside, "curl", "-sS", "http://203.0.113.1:9090/"), "hello")
	expect(w.run("port", "ls"), "203.0.113.1:9090", "203.0.113.1:8080")
	expect(w.run("unpublish", id), id)
	if _, err := nstest.TryExec(t, w.outside, "curl", "-sS", "-m", "5", "http://203.0.113.1:9090/"); err == nil {
		t.Error("the port still answers after unpublish")
	}
	expect(w.run("flows"), "peer", "ingress", "203.0.113.2:")
	expect(w.run("flows", "server"), "ingress")
	expect(w.run("stats"), "(all)", "server")

	lease := control.LeaseRequest{
		Network: "other", Container: strings.Repeat("0123456789abcdef", 4), IfName: "eth0", Owner: "podman",
		Sets: [][]control.Range{{{Subnet: netip.MustParsePrefix("10.21.0.0/24")}}, {{Subnet: netip.MustParsePrefix("fd21::/64")}}},
	}
	if _, err := control.Dial(filepath.Join(w.dir, "daemon", "usernet.sock")).Acquire(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	expect(w.run("leases"), "NETWORK", "other", "0123456789ab ", "eth0", "10.21.0.2,fd21::2", "podman")
	if out := w.run("leases", "web"); strings.Contains(out, "10.21.0.2") {
		t.Errorf("of another network:\n%s", out)
	}

	for _, listing := range [][]string{{"ps"}, {"leases"}, {"network", "ls"}, {"network", "inspect", "web"}, {"inspect", "server"}, {"flows"}, {"stats"}, {"port", "ls"}} {
		if out := w.run(append(listing, "--json")...); !json.Valid([]byte(out)) {
			t.Errorf("%s --json prints no JSON:\n%s", strings.Join(listing, " "), out)
		}
	}
	testCapture(t, w)
	if r := w.do(w.command("network", "rm", "web")); r.status != 1 || !strings.Contains(r.stderr, "server") {
		t.Errorf("a network in use: status %d, %s", r.status, r.stderr)
	}
	server.Process.Signal(syscall.SIGTERM)
	server.Wait()
	if out := w.run("ps"); strings.Contains(out, "server") {
		t.Errorf("after its end there is still\n%s", out)
	}
	expect(w.run("network", "rm", "web"), "web")
	r := w.do(w.command("run", "--network", "web", "--", "true"))
	if r.status != 125 || !strings.Contains(r.stderr, "usernet network create web") {
		t.Errorf("a network that is not there: status %d, %s", r.status, r.stderr)
	}
}

// testLinkSet: names and limits of a running command change, what is not named
// stays, and shells complete the link.
func testLinkSet(t *testing.T, w *world, expect func(out string, wants ...string)) {
	t.Helper()
	expect(w.run("link", "set", "server", "--alias", "www", "--alias", "api", "--send", "8M"), "web/server/eth0", "www, api", "sends 8 Mbit/s\n")
	expect(w.run("link", "set", "server", "--receive", "1.5G"), "www, api", "sends 8 Mbit/s, receives 1500 Mbit/s")
	expect(w.run("run", "--network", "web", "--", "curl", "-sS", "http://api/"), "hello")
	expect(w.run("__complete", "link", "set", ""), "server\tweb/server/eth0")
	expect(w.run("__complete", "inspect", ""), "server\tweb/server/eth0")
	var link control.Link
	if out := w.run("link", "set", "server", "--alias", "", "--send", "0", "--receive", "0", "--json"); json.Unmarshal([]byte(out), &link) != nil || len(link.Aliases) != 0 || link.Bandwidth != nil {
		t.Errorf("set back: %s", out)
	}
	if r := w.do(w.command("run", "--network", "web", "--", "curl", "-sS", "http://www/")); r.status == 0 {
		t.Error("an alias that was taken away still answers")
	}
	for wrong, want := range map[string]string{"nobody": "no link \"nobody\"", "server --alias=-x": "alias \"-x\""} {
		if r := w.do(w.command(append([]string{"link", "set", "--hostname", "h"}, strings.Fields(wrong)...)...)); r.status != 1 || !strings.Contains(r.stderr, want) {
			t.Errorf("link set %s: status %d, %s", wrong, r.status, r.stderr)
		}
	}
}

// testSummary holds that what run tells of a command on a daemon's network is
// that command's, and that its capture is whole.
func testSummary(t *testing.T, w *world) {
	t.Helper()
	summaryPath, pcap := filepath.Join(w.dir, "flows.json"), filepath.Join(w.dir, "x.pcapng")
	w.run("run", "--network", "web", "--name", "asker", "--json="+summaryPath, "--pcap", pcap, "--", "curl", "-sS", "http://server/")
	data, err := os.ReadFile(summaryPath)
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Network string
		Flows   []control.Flow
	}
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	peers := 0
	for _, f := range s.Flows {
		if !isLink(f.Link, "asker") && !isLink(f.Peer, "asker") {
			t.Errorf("a flow of another: %+v", f)
		}
		if f.Direction == "peer" {
			peers++
		}
	}
	if s.Network != "web" || peers != 1 {
		t.Errorf("want one flow to the server in\n%s", data)
	}
	out, err := exec.Command("tshark", "-r", pcap, "-Y", "http", "-T", "fields", "-e", "_ws.col.Info").Output()
	if err != nil || !strings.Contains(string(out), "GET / HTTP/1.1") || !strings.Contains(string(out), "200 OK") {
		t.Errorf("the capture holds %q, %v", out, err)
	}
}

// testCapture reads a capture along while packets come.
func testCapture(t *testing.T, w *world) {
	t.Helper()
	capture := w.command("capture", "server")
	pcap, err := capture.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.start(capture)
	tshark := exec.Command("tshark", "-l", "-r", "-", "-Y", "http.request", "-T", "fields", "-e", "http.request.uri")
	tshark.Stdin = pcap
	out, err := tshark.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tshark.Start(); err != nil {
		t.Fatal(err)
	}
	defer tshark.Wait()
	defer tshark.Process.Kill()
	seen := linesOf(out)
	deadline := time.After(30 * time.Second)
	for i := 0; ; i++ {
		nstest.Exec(t, w.outside, "curl", "-sS", fmt.Sprintf("http://203.0.113.1:8080/index.html?%d", i))
		select {
		case line := <-seen:
			if !strings.Contains(line, "/index.html") {
				t.Errorf("tshark says %q", line)
			}
			return
		case <-deadline:
			t.Fatal("tshark sees nothing")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestNetnsRunKilledLeavesNoLink kills usernet: the daemon takes its link back.
func TestNetnsRunKilledLeavesNoLink(t *testing.T) {
	w := newWorld(t)
	w.startDaemon()
	w.run("network", "create", "web")
	cmd := w.command("run", "--network", "web", "--name", "box", "--", "sh", "-c", "echo ready; exec sleep 600")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.start(cmd)
	await(t, linesOf(out), "ready")
	cmd.Process.Kill()
	nstest.WaitFor(t, 10*time.Second, func() bool { return !strings.Contains(w.run("ps"), "box") })
}
