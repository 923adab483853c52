//go:build runtimes

package test

import (
	"fmt"
	"strings"

	"github.com/usernet/usernet/internal/nstest"
)

// kubePod is a pod as Kubernetes writes it, whose containers share a network: one
// answers at the loopback, and both have the pod's name servers.
const kubePod = `apiVersion: v1
kind: Pod
metadata: {name: shop}
spec:
  containers:
  - name: web
    image: %[1]s
    imagePullPolicy: Never
    command: [/bin/sleep, "1000"]
    ports:
    - {containerPort: 80, hostPort: 8095}
    - {containerPort: 80, hostPort: 8096, protocol: UDP}
    - {containerPort: 81, hostPort: 8097, hostIP: 127.0.0.2}
  - name: side
    image: %[1]s
    imagePullPolicy: Never
    command: [/bin/nc, -l, -p, "7005", -e, /bin/cat, /etc/resolv.conf]
`

// runcOfPods leaves the limits of descriptors out, for which podman asks the most
// that a kernel allows where a file for Kubernetes has no say: machines of CI
// allow less. machineConf says so for all other containers.
const runcOfPods = `#!/bin/sh
for arg; do
	[ "$last" = --bundle ] && sed -i 's/"rlimits":\[[^]]*\]/"rlimits":[]/' "$arg/config.json"
	last=$arg
done
exec runc "$@"
`

// testPlayKube has podman play a pod, as it is in a file for Kubernetes, and
// take it down again. The pod's pause process is catatonit of Debian's package,
// of which podman makes an image by itself.
func (p *podmanBed) testPlayKube(n podmanNet) {
	p.t.Helper()
	need(p.t, "catatonit")
	p.write("/opt/shop.yaml", fmt.Sprintf(kubePod, image))
	p.write("/opt/bin/runc-of-pods", runcOfPods)
	p.do("chmod", "755", "/opt/bin/runc-of-pods")
	p.write("/etc/containers/containers.conf.d/pods.conf", "[engine.runtimes]\nrunc = [\"/opt/bin/runc-of-pods\"]\n")
	_, err := p.try("podman", "play", "kube", "--network", n.name, "/opt/shop.yaml")
	// No flag puts the pod into the test's own cgroup.
	if id, err := p.try("podman", "pod", "inspect", "--format", "{{.ID}}", "shop"); err == nil {
		p.t.Cleanup(func() { removeCgroups(p.t, "/libpod_parent/"+strings.TrimSpace(id)) })
	}
	if err != nil {
		p.t.Fatal(err)
	}
	links := p.links()
	ns := p.answer("shop-web", "80", "81")
	for _, proto := range []string{"tcp", "udp"} {
		port := map[string]string{"tcp": "8095", "udp": "8096"}[proto]
		p.answers(p.outside, proto, "203.0.113.1:"+port, "shop-web", "203.0.113.2")
		p.answers(p.outside, proto, "[2001:db8::1]:"+port, "shop-web", "2001:db8::2")
	}
	p.answers(p.host, "tcp", "127.0.0.2:8097", "shop-web", "")
	link, ok := links["shop "+n.name]
	if len(links) != 1 || !ok {
		p.t.Fatalf("links of the pod: %v", links)
	}
	asks := append([]string{"podman", "run", "--rm", "--network", n.name}, p.parent()...)
	if out := p.do(append(asks, image, "nslookup", "shop", n.v4+"1")...); !strings.Contains(out, link.Addrs[0].Addr().String()) {
		p.t.Errorf("the name of the pod leads to %s, want %v", out, link.Addrs)
	}
	if out := nstest.Exec(p.t, ns, "busybox", "nc", "-w", "10", "127.0.0.1", "7005"); !strings.Contains(out, "nameserver "+n.v4+"1") {
		p.t.Errorf("resolv.conf of the other container: %q", out)
	}
	p.do("podman", "play", "kube", "--down", "/opt/shop.yaml")
}
