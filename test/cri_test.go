//go:build runtimes

package test

import (
	"encoding/json"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// testPods: two pods, as kubelet makes them, reach each other, the outside and
// the names of both; the published port of one is reached from all sides; and
// nothing is left of them.
func testPods(c *containerd) {
	alice := c.run("alice", keys{
		"dnsConfig": keys{"servers": []string{"10.88.0.1"}, "searches": []string{"shop.usernet.internal"}},
		"portMappings": []keys{
			{"protocol": "TCP", "containerPort": 80, "hostPort": 8080},
			{"protocol": "TCP", "containerPort": 80, "hostPort": 8081, "hostIp": "127.0.0.1"},
			{"protocol": "TCP", "containerPort": 81}, // declared, and not published
			{"protocol": "UDP", "containerPort": 7000, "hostPort": 7001},
		},
	})
	bob := c.run("bob", nil)
	for _, s := range []*sandbox{alice, bob} {
		if len(s.ips) != 2 || !strings.HasPrefix(s.ips[0], "10.88.0.") || !strings.HasPrefix(s.ips[1], "fd88::") {
			c.t.Fatalf("addresses of %s: %q", s.name, s.ips)
		}
		s.serve("80")
	}
	for n := range 2 {
		for from, to := range map[*sandbox]*sandbox{alice: bob, bob: alice} {
			wantReply(c, from.get(to.ips[n], "80"), to.name, from.ips[n])
		}
		outside := []string{"203.0.113.2", "2001:db8::2"}[n]
		if out := alice.exec("get", outside, "8000"); !strings.Contains(out, []string{"203.0.113.1", "2001:db8::1"}[n]) {
			c.t.Errorf("%s answered %q", outside, out)
		}
	}
	c.podUDP(alice, bob)
	namesake := c.run("bob", keys{"metadata": keys{"name": "bob", "uid": "uid-2", "namespace": "office", "attempt": 0}})
	for name, want := range map[string]string{ // of the pod, by its resolv.conf
		"bob": bob.ips[0], "alice": alice.ips[1], "bob.shop.": bob.ips[1], "bob.office.": namesake.ips[0], "bob.office.usernet.internal.": namesake.ips[1],
	} {
		if out := alice.exec("nslookup", name); !strings.Contains(out, want) {
			c.t.Errorf("nslookup %s: %s, want %s", name, out, want)
		}
	}
	namesake.remove()
	for _, from := range []*sandbox{alice, bob} { // a hostPort at the node's addresses, its own among them
		wantReply(c, from.get("203.0.113.1", "8080"), "alice", "10.88.0.1")
		wantReply(c, from.get("2001:db8::1", "8080"), "alice", "fd88::1")
	}
	for _, test := range []struct {
		from     *netns.Handle
		at, seen string
	}{
		{c.host, "127.0.0.1:8080", ""},
		{c.host, "[::1]:8080", ""},
		{c.host, "127.0.0.1:8081", ""},
		{c.outside, "203.0.113.1:8080", "203.0.113.2"},
		{c.outside, "[2001:db8::1]:8080", "2001:db8::2"},
	} {
		out := nstest.Exec(c.t, test.from, "curl", "-sS", "-m10", "http://"+test.at+"/cgi-bin/who")
		wantReply(c, out, "alice", test.seen)
	}
	if out, err := nstest.TryExec(c.t, c.outside, "curl", "-sS", "-m2", "http://203.0.113.1:8081/"); err == nil {
		c.t.Errorf("the port on the loopback answers outside: %s", out)
	}
	alice.remove()
	if got := c.links(); len(got) != 1 {
		c.t.Errorf("links %q", got)
	}
	if out, err := nstest.TryExec(c.t, c.host, "curl", "-sS", "-m2", "http://127.0.0.1:8080/"); err == nil {
		c.t.Errorf("the port of a pod that is gone answers: %s", out)
	}
}

// podUDP: alice's UDP port 7000 is reached from bob and, published as 7001, from
// outside; alice sees who asks.
func (c *containerd) podUDP(alice, bob *sandbox) {
	c.t.Helper()
	echo(c.t, alice.namespace(), "alice", ":7000")
	from := bob.namespace()
	for n := range 2 {
		wantReply(c, nstest.Ask(c.t, from, "udp", net.JoinHostPort(alice.ips[n], "7000")), "alice", bob.ips[n])
		node := []string{"203.0.113.1", "2001:db8::1"}[n]
		wantReply(c, nstest.Ask(c.t, c.outside, "udp", net.JoinHostPort(node, "7001")), "alice", []string{"203.0.113.2", "2001:db8::2"}[n])
	}
}

// get asks a pod's web server who answers, and whom.
func (s *sandbox) get(ip, port string) string {
	s.c.t.Helper()
	return s.exec("get", ip, port, "/cgi-bin/who")
}

// wantReply fails the test unless the server of the name answered, and saw the
// client; "" is any.
func wantReply(c *containerd, reply, server, client string) {
	c.t.Helper()
	if !strings.Contains(reply, server+" ") || !strings.Contains(reply, client) {
		c.t.Errorf("got %q, want it to name the server %s and the client %q", reply, server, client)
	}
}

// testRefusedPod: a pod whose port is taken does not start, says why, and
// leaves nothing; kubelet tries again, and succeeds once the port is free.
func testRefusedPod(c *containerd) {
	config := keys{"portMappings": []keys{{"containerPort": 80, "hostPort": 8082}}}
	first := c.run("first", config)
	_, err := c.tryCRI("RunPodSandbox", keys{"config": c.sandboxConfig("second", config)})
	if err == nil || !strings.Contains(err.Error(), ":8082/tcp is in use") {
		c.t.Errorf("a port that is taken: %v", err)
	}
	sctp := keys{"portMappings": []keys{{"protocol": "SCTP", "containerPort": 9, "hostPort": 9}}}
	if _, err := c.tryCRI("RunPodSandbox", keys{"config": c.sandboxConfig("sctp", sctp)}); err == nil || !strings.Contains(err.Error(), "sctp cannot be published") {
		c.t.Errorf("a port of SCTP: %v", err)
	}
	if got := c.links(); !slices.Equal(got, []string{"pods/" + first.id + "/eth0"}) {
		c.t.Errorf("links %q, want that of the first pod", got)
	}
	first.remove()
	second := c.run("second", config)
	second.serve("80")
	wantReply(c, nstest.Exec(c.t, c.host, "curl", "-sS", "-m10", "http://127.0.0.1:8082/cgi-bin/who"), "second", "")
}

// testManyPods: kubelet starts pods at once.
func testManyPods(c *containerd) {
	const pods = 6
	ids, errs := make([]string, pods), make([]error, pods)
	var wg sync.WaitGroup
	for n := range pods {
		wg.Go(func() {
			out, err := c.tryCRI("RunPodSandbox", keys{"config": c.sandboxConfig("many"+strconv.Itoa(n), nil)})
			var pod struct{ PodSandboxID string }
			if err == nil {
				err = json.Unmarshal(out, &pod)
			}
			ids[n], errs[n] = pod.PodSandboxID, err
		})
	}
	wg.Wait()
	seen := map[string]string{}
	for n, id := range ids {
		if errs[n] != nil {
			c.t.Error(errs[n])
			continue
		}
		s := &sandbox{c: c, id: id}
		for _, ip := range s.status().ips {
			if seen[ip] != "" {
				c.t.Errorf("%s has the address %s of %s", id, ip, seen[ip])
			}
			seen[ip] = id
		}
	}
	if len(seen) != 2*pods {
		c.t.Errorf("%d addresses, want %d", len(seen), 2*pods)
	}
	for _, id := range ids {
		wg.Go(func() { (&sandbox{c: c, id: id}).remove() })
	}
	wg.Wait()
}

// testKilledPause: the process that holds the pod's namespace is killed, and
// then the namespace's path is gone as well. The pod can be stopped, and a next
// attempt at it started.
func testKilledPause(c *containerd) {
	for _, pathGone := range []bool{false, true} {
		s := c.run("victim", keys{"portMappings": []keys{{"containerPort": 80, "hostPort": 8083}}})
		status := s.status()
		c.cri("StopContainer", keys{"containerId": s.ctr}, nil)
		c.exec("kill", "-9", strconv.Itoa(status.pid))
		nstest.WaitFor(c.t, 20*time.Second, func() bool { return s.status().state == "SANDBOX_NOTREADY" })
		if pathGone {
			c.exec("sh", "-c", "umount "+status.netns+" && rm "+status.netns)
			// The namespace is dead: the link goes without any DEL.
			nstest.WaitFor(c.t, 20*time.Second, func() bool { return len(c.links()) == 0 })
		} else if got := c.links(); len(got) != 1 {
			c.t.Errorf("the namespace still has a path, and there are the links %q", got)
		}
		s.remove()
		c.empty()
	}
}

// testRestart: containerd is killed and comes back. Its pods keep their network
// and can be stopped.
func testRestart(c *containerd) {
	s := c.run("stays", keys{"portMappings": []keys{{"containerPort": 80, "hostPort": 8084}}})
	s.serve("80")
	before := s.status()
	c.restart()
	if after := s.status(); after.state != "SANDBOX_READY" || !slices.Equal(after.ips, before.ips) || after.pid != before.pid {
		c.t.Errorf("before the restart %+v, after %+v", before, after)
	}
	next := c.run("next", nil)
	for n := range 2 {
		wantReply(c, next.get(s.ips[n], "80"), "stays", next.ips[n])
	}
	wantReply(c, nstest.Exec(c.t, c.host, "curl", "-sS", "-m10", "http://127.0.0.1:8084/cgi-bin/who"), "stays", "")
}

// testBandwidthAnnotations: a pod's annotations limit it, though containerd
// sends them with the largest burst there is.
func testBandwidthAnnotations(c *containerd) {
	slow := c.run("slow", keys{"annotations": keys{"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "40M"}})
	free := c.run("free", nil)
	for _, reverse := range []bool{false, true} {
		slow.inNetns("iperf3", "--server", "--one-off", "--daemon")
		nstest.WaitFor(c.t, 10*time.Second, func() bool {
			return strings.Contains(slow.inNetns("ss", "-Hltn"), ":5201")
		})
		argv, want := []string{"iperf3", "-J", "-c", slow.ips[1], "-O", "1", "-t", "2"}, 20e6
		if reverse {
			argv, want = append(argv, "-R"), 40e6
		}
		got := iperfRate(c.t, free.inNetns(argv...))
		c.t.Logf("%.1f Mbit/s of %.0f", got/1e6, want/1e6)
		// How near a pod gets to its limit is the affair of other tests: a
		// busy machine has no part in how far it goes beyond.
		if got < 0.2*want || got > 1.1*want {
			c.t.Errorf("%.1f Mbit/s, want at most %.0f and some of it", got/1e6, want/1e6)
		}
	}
}

// testDaemonAway: while usernet's daemon is away, pods do not start and say
// why, and those that run can be removed; then all is well again.
func testDaemonAway(c *containerd) {
	gone := c.run("gone", nil)
	c.kill(c.daemon)
	if _, err := c.tryCRI("RunPodSandbox", keys{"config": c.sandboxConfig("early", nil)}); err == nil || !strings.Contains(err.Error(), c.socket) {
		c.t.Errorf("a pod without a daemon: %v", err)
	}
	gone.remove()
	c.startDaemonAgain()
	if got := c.links(); len(got) != 0 {
		c.t.Errorf("links %q", got)
	}
	back := c.run("early", nil)
	back.serve("80")
	wantReply(c, back.get("127.0.0.1", "80"), "early", "127.0.0.1")
	if out := back.exec("get", "203.0.113.2", "8000"); !strings.Contains(out, "203.0.113.1") {
		c.t.Errorf("outside answered %q", out)
	}
}

// testConditions: what kubelet asks before it gives a node any pod. containerd
// 1.6 looks for a configuration only, whatever STATUS would say.
func testConditions(c *containerd) {
	ready := func() (ready bool, message string) {
		var answer struct {
			Status struct {
				Conditions []struct {
					Type            string
					Status          bool
					Reason, Message string
				}
			}
		}
		c.cri("Status", keys{}, &answer)
		for _, cond := range answer.Status.Conditions {
			if cond.Type == "NetworkReady" {
				return cond.Status, cond.Reason + " " + cond.Message
			}
		}
		c.t.Fatalf("no condition NetworkReady in %+v", answer)
		return false, ""
	}
	if ok, message := ready(); !ok {
		c.t.Errorf("not ready: %s", message)
	}
	c.conflists("/etc/cni/net.d")
	nstest.WaitFor(c.t, 20*time.Second, func() bool { ok, _ := ready(); return !ok })
	c.usePods()
	nstest.WaitFor(c.t, 20*time.Second, func() bool { ok, _ := ready(); return ok })
}

// testTwoNetworks: containerd attaches a pod to both networks of a runtime
// handler at once. The pod has the default routes of the first, and reaches
// both.
func testTwoNetworks(c *containerd) {
	red := c.plugin(keys{"ipam": ranges("10.81.0.0/24", "fd81::/64")})
	c.conflists("/etc/cni/two.d", conflist{"10-pods", []keys{c.plugin(nil)}}, conflist{"20-red", []keys{red}})
	peer := c.run("peer", nil)
	peer.serve("80")
	for n := range 3 { // either network may be the first
		both := c.runWith("two", "both"+strconv.Itoa(n), nil)
		for family, flag := range []string{"-4", "-6"} {
			wantReply(c, both.get(peer.ips[family], "80"), "peer", both.ips[family])
			outside := []string{"203.0.113.2", "2001:db8::2"}[family]
			if out := both.exec("ip", flag, "route", "get", outside); !strings.Contains(out, " dev eth0 ") {
				c.t.Errorf("the route to the outside is not that of the first network: %s", out)
			}
			if out := both.exec("get", outside, "8000"); !strings.Contains(out, []string{"203.0.113.1", "2001:db8::1"}[family]) {
				c.t.Errorf("%s answered %q", outside, out)
			}
		}
		both.exec("ping", "-c1", "-W5", "10.81.0.1")
		if got := len(c.links()); got != 3 {
			c.t.Errorf("%d links, want 3", got)
		}
		both.remove()
	}
}

// testDropIn: the configuration that containerd's own documentation installs,
// word for word, and bandwidth after it, run on usernet: by name.
func testDropIn(c *containerd) {
	c.conflists("/etc/cni/net.d", conflist{"10-containerd-net", []keys{
		{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true, "ipam": keys{
			"type":   "host-local",
			"ranges": [][]keys{{{"subnet": "10.88.0.0/16"}}, {{"subnet": "2001:4860:4860::/64"}}},
			"routes": []keys{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}},
		}},
		{"type": "portmap", "capabilities": keys{"portMappings": true}},
		{"type": "bandwidth", "capabilities": keys{"bandwidth": true}},
	}})
	defer c.usePods()
	c.waitNetwork("containerd-net")
	alice := c.run("alice", keys{
		"portMappings": []keys{{"containerPort": 80, "hostPort": 8085}},
		"annotations":  keys{"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "40M"},
	})
	bob := c.run("bob", nil)
	alice.serve("80")
	for n := range 2 {
		wantReply(c, bob.get(alice.ips[n], "80"), "alice", bob.ips[n])
		if out := alice.exec("get", []string{"203.0.113.2", "2001:db8::2"}[n], "8000"); !strings.Contains(out, []string{"203.0.113.1", "2001:db8::1"}[n]) {
			c.t.Errorf("outside answered %q", out)
		}
	}
	wantReply(c, nstest.Exec(c.t, c.outside, "curl", "-sS", "-m10", "http://203.0.113.1:8085/cgi-bin/who"), "alice", "203.0.113.2")
	c.probe(alice, "10.88.0.1", "2001:4860:4860::1") // isGateway: the node is on the bridge
	links, err := c.client.Links(c.t.Context(), "")
	if err != nil || len(links) != 2 {
		c.t.Fatalf("links %+v, %v", links, err)
	}
	for _, l := range links {
		if limited := l.Bandwidth != nil && l.Bandwidth.ToContainer.BitsPerSecond == 20e6 && l.Bandwidth.FromContainer.BitsPerSecond == 40e6; limited != (l.Container == alice.id) {
			c.t.Errorf("%s has the bandwidth %+v", l.ID, l.Bandwidth)
		}
	}
	out := c.exec("ctr", "run", "--rm", "--cni", "--cgroup", c.cgroup+"/one", "--snapshotter", "native", image, "one", "get", alice.ips[1], "80", "/cgi-bin/who")
	wantReply(c, out, "alice", "2001:4860:4860::")
}
