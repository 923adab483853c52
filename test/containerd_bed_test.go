//go:build runtimes

package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/nstest"
)

// containerd is a machine with containerd, which is started again whenever it
// ends. usernet's daemon runs outside of it.
type containerd struct {
	*machine
	all    *testing.T // bed.t is the subtest's
	daemon *exec.Cmd
	log    string // containerd's own
}

// containerdDirs are containerd's own directories.
var containerdDirs = []string{"/etc/containerd", "/var/lib/containerd"}

// containerdScript starts containerd again and again. $LOG is a file outside.
const containerdScript = `
mkdir -p /opt/cni/bin /etc/cni/two.d /run/netns
cat >/etc/containerd/config.toml <<'END'
` + containerdConfig + `END
(while :; do containerd || :; done) </dev/null >%s 2>&1 3<&- &
`

const containerdConfig = `version = 2

disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]

[debug]
  level = "warn"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + image + `"
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.two]
  runtime_type = "io.containerd.runc.v2"
  cni_conf_dir = "/etc/cni/two.d"
  cni_max_conf_num = 2
`

// startContainerd starts containerd with the plugin under all its names and no
// network, and imports the image.
func (b *bed) startContainerd() *containerd {
	b.t.Helper()
	need(b.t, "containerd", "ctr", "runc", "cri")
	c := &containerd{all: b.t, daemon: b.startDaemon(), log: filepath.Join(b.t.TempDir(), "containerd.log")}
	c.machine = b.startMachine(containerdDirs, "export "+b.socketVar()+fmt.Sprintf(containerdScript, c.log))
	b.t.Cleanup(func() {
		if b.t.Failed() {
			log, _ := os.ReadFile(c.log)
			b.t.Logf("containerd said:\n%s", errorLines(string(log)))
		}
	})
	c.exec("usernet", "cni", "install", "--drop-in", "--bin-dir", "/opt/cni/bin")
	c.waitServing()
	c.write("/opt/image.tar", string(ociArchive(b.t)))
	for _, namespace := range []string{"default", "k8s.io"} {
		c.exec("ctr", "-n", namespace, "images", "import", "--snapshotter", "native", "/opt/image.tar")
	}
	return c
}

// errorLines are the lines of a log that tell of errors.
func errorLines(log string) string {
	var lines strings.Builder
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "level=info") && !strings.Contains(line, "cleanup") {
			lines.WriteString(line)
		}
	}
	return lines.String()
}

// waitServing waits until the CRI service answers.
func (c *containerd) waitServing() {
	c.t.Helper()
	var err error
	c.t.Cleanup(func() {
		if err != nil {
			c.t.Logf("the CRI service: %v", err)
		}
	})
	nstest.WaitFor(c.t, 60*time.Second, func() bool {
		_, err = c.tryCRI("Version", nil)
		return err == nil
	})
}

// tryExec runs a command on containerd's machine.
func (c *containerd) tryExec(argv ...string) (string, error) {
	c.t.Helper()
	in := []string{"env", c.socketVar(), "PATH=/opt/bin:" + os.Getenv("PATH"), "nsenter", "--target", strconv.Itoa(c.init), "--mount", "--pid", "--"}
	return nstest.TryExec(c.t, c.host, append(in, argv...)...)
}

// socketVar tells plugins whose configuration names no socket.
func (b *bed) socketVar() string { return "USERNET_SOCKET=" + b.socket }

// exec is tryExec for what has to succeed.
func (c *containerd) exec(argv ...string) string {
	c.t.Helper()
	out, err := c.tryExec(argv...)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return out
}

// startDaemonAgain starts usernet's daemon for this test and those after it.
func (c *containerd) startDaemonAgain() {
	c.t.Helper()
	this := c.t
	c.t = c.all
	c.daemon = c.startDaemon()
	c.t = this
}

// restart kills containerd and waits for the next one. Containers go on.
func (c *containerd) restart() {
	c.t.Helper()
	old := c.exec("pidof", "containerd")
	c.exec("kill", "-9", strings.TrimSpace(old))
	nstest.WaitFor(c.t, 10*time.Second, func() bool {
		now, err := c.tryExec("pidof", "containerd")
		return err == nil && now != old
	})
	c.waitServing()
}

// conflist is a configuration list; the network is called as its file without
// the number.
type conflist struct {
	file    string
	plugins []keys
}

// conflists makes lists the only networks of a directory.
func (c *containerd) conflists(dir string, lists ...conflist) {
	c.t.Helper()
	old, err := filepath.Glob(filepath.Join(c.path(dir), "*.conflist"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, file := range old {
		if err := os.Remove(file); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, list := range lists {
		_, name, _ := strings.Cut(list.file, "-")
		text, err := json.MarshalIndent(keys{"cniVersion": "1.0.0", "name": name, "plugins": list.plugins}, "", "  ")
		if err != nil {
			c.t.Fatal(err)
		}
		// containerd reads a file as soon as it is there.
		whole := filepath.Join(c.path(dir), list.file)
		if err := os.WriteFile(whole+".new", text, 0o600); err != nil {
			c.t.Fatal(err)
		}
		if err := os.Rename(whole+".new", whole+".conflist"); err != nil {
			c.t.Fatal(err)
		}
	}
}

// usePods makes "pods" the network of all.
func (c *containerd) usePods() {
	c.t.Helper()
	c.conflists("/etc/cni/net.d", conflist{"10-pods", []keys{c.plugin(nil)}})
	c.waitNetwork("10.88.0.0/24")
}

// waitNetwork waits until containerd gives the network to new pods.
func (c *containerd) waitNetwork(name string) {
	c.t.Helper()
	nstest.WaitFor(c.t, 20*time.Second, func() bool {
		out, err := c.tryCRI("Status", keys{"verbose": true})
		return err == nil && strings.Contains(string(out), name)
	})
}
