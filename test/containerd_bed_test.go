//go:build runtimes

package test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
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

// criImage is the one that the containers of containerd and its sandboxes run: a
// static busybox, which sleeps unless it is told to do something else.
const criImage = "localhost/busybox:1"

// containerd is a containerd with a machine of its own around it: in the bed's
// host namespace, with process IDs and mounts of its own, so that it has the
// paths of its documentation, and ends with the test whatever happens.
type containerd struct {
	*bed
	all    *testing.T // bed.t is the subtest's
	daemon *exec.Cmd  // usernet's
	init   *exec.Cmd  // restarts containerd when that ends
	dir    string     // what it finds in containerdDirs, by their names
	pid    int        // of init's child, process 1 of its namespace
}

// containerdDirs are the directories that are its own.
var containerdDirs = []string{"/opt/cni/bin", "/etc/cni", "/run/containerd", "/run/netns", "/var/lib/containerd"}

const containerdConfig = `version = 2

disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]

[debug]
  level = "warn"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + criImage + `"
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
	need(b.t, "containerd", "ctr", "runc", "busybox", "nsenter", "cri")
	c := &containerd{bed: b, all: b.t, daemon: b.startDaemon(), dir: b.t.TempDir()}
	var script strings.Builder
	script.WriteString("set -e\n")
	for _, dir := range containerdDirs {
		own := c.path(dir)
		if err := os.MkdirAll(own, 0o755); err != nil {
			b.t.Fatal(err)
		}
		fmt.Fprintf(&script, "mkdir -p %[1]s; mount --bind %[2]s %[1]s\n", dir, own)
	}
	for _, dir := range []string{"net.d", "two.d"} {
		if err := os.Mkdir(c.path("/etc/cni/"+dir), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	config := filepath.Join(c.dir, "config.toml")
	if err := os.WriteFile(config, []byte(containerdConfig), 0o600); err != nil {
		b.t.Fatal(err)
	}
	fmt.Fprintf(&script, "while :; do containerd --config %s || :; done\n", config)
	c.init = exec.Command("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script.String())
	c.init.Env = append(os.Environ(), c.socketVar())
	var log bytes.Buffer
	c.init.Stdout, c.init.Stderr = &log, &log
	nstest.Start(b.t, b.host, c.init)
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("containerd said:\n%s", errorLines(log.String()))
		}
	})
	nstest.WaitFor(b.t, 10*time.Second, func() bool {
		out, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", c.init.Process.Pid))
		c.pid, _ = strconv.Atoi(strings.TrimSpace(string(out)))
		return c.pid != 0
	})
	c.exec(program("usernet"), "cni", "install", "--drop-in", "--bin-dir", "/opt/cni/bin")
	c.waitServing()
	archive := filepath.Join(c.dir, "image.tar")
	if err := os.WriteFile(archive, ociArchive(b.t), 0o600); err != nil {
		b.t.Fatal(err)
	}
	for _, namespace := range []string{"default", "k8s.io"} {
		c.exec("ctr", "-n", namespace, "images", "import", "--snapshotter", "native", archive)
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

// path is where the test finds what is below one of containerdDirs.
func (c *containerd) path(name string) string { return filepath.Join(c.dir, name) }

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
	in := append([]string{"env", c.socketVar(), "nsenter", "--target", strconv.Itoa(c.pid), "--mount", "--pid", "--"}, argv...)
	return nstest.TryExec(c.t, c.host, in...)
}

// socketVar tells plugins whose configuration names no socket.
func (c *containerd) socketVar() string { return "USERNET_SOCKET=" + c.socket }

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
}

// ociArchive is an OCI image layout in a tar, with a static busybox as all of
// it (image-spec: image-layout, manifest, config).
func ociArchive(t *testing.T) []byte {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	root := newTar()
	for _, dir := range []string{"bin", "tmp", "etc", "proc", "sys", "dev", "root"} {
		root.dir(dir)
	}
	root.file("bin/busybox", busybox)
	for _, applet := range []string{"sh", "cat", "sleep", "nc", "ping", "ping6", "nslookup", "ip", "httpd", "kill", "echo"} {
		root.link("bin/"+applet, "busybox")
	}
	// Debian's static wget dies where glibc's name services are missing.
	root.file("bin/get", []byte("#!/bin/sh\n# get HOST PORT [PATH]\nprintf 'GET %s HTTP/1.0\\r\\n\\r\\n' ${3:-/} | nc -w 5 $1 $2\n"))
	root.file("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n"))

	layout := newTar()
	blob := func(mediaType string, text []byte) keys {
		sum := fmt.Sprintf("%x", sha256.Sum256(text))
		layout.file("blobs/sha256/"+sum, text)
		return keys{"mediaType": mediaType, "digest": "sha256:" + sum, "size": len(text)}
	}
	marshal := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	layer := blob("application/vnd.oci.image.layer.v1.tar", root.end(t))
	config := blob("application/vnd.oci.image.config.v1+json", marshal(keys{
		"architecture": "amd64", "os": "linux",
		"config": keys{"Cmd": []string{"/bin/sleep", "1000000"}, "Env": []string{"PATH=/bin"}},
		"rootfs": keys{"type": "layers", "diff_ids": []any{layer["digest"]}},
	}))
	manifest := blob("application/vnd.oci.image.manifest.v1+json", marshal(keys{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": []keys{layer},
	}))
	manifest["annotations"] = keys{"io.containerd.image.name": criImage}
	layout.file("index.json", marshal(keys{"schemaVersion": 2, "manifests": []keys{manifest}}))
	layout.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return layout.end(t)
}

// tarball writes a tar in memory.
type tarball struct {
	buf bytes.Buffer
	w   *tar.Writer
	err error // the first
}

func newTar() *tarball {
	t := &tarball{}
	t.w = tar.NewWriter(&t.buf)
	return t
}

func (t *tarball) entry(h tar.Header, text []byte) {
	h.Size = int64(len(text))
	if err := t.w.WriteHeader(&h); err != nil && t.err == nil {
		t.err = err
	}
	if _, err := t.w.Write(text); err != nil && t.err == nil {
		t.err = err
	}
}

func (t *tarball) dir(name string) {
	t.entry(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil)
}
func (t *tarball) file(name string, text []byte) {
	t.entry(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755}, text)
}
func (t *tarball) link(name, to string) {
	t.entry(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, nil)
}

// end returns the tar.
func (t *tarball) end(test *testing.T) []byte {
	test.Helper()
	if err := t.w.Close(); err != nil || t.err != nil {
		test.Fatal(t.err, err)
	}
	return t.buf.Bytes()
}
