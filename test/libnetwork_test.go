//go:build runtimes

package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/nstest"
)

// suitePackage is podman's CNI code.
const suitePackage = "github.com/containers/common/libnetwork/cni"

// TestLibnetworkRunsOnDropInNames: the tests that podman's CNI code has of
// itself pass with the drop-in names where the reference plugins would be. Each
// of them has a /var/lib/cni of its own, so that the plugin starts a daemon for
// each, with its socket and state below.
func TestLibnetworkRunsOnDropInNames(t *testing.T) {
	nstest.Require(t)
	dir := t.TempDir()
	suite, source := libnetworkSuite(t, dir)
	names := filepath.Join(dir, "cni")
	run := func(argv ...string) {
		t.Helper()
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	run(program("usernet"), "cni", "install", "--drop-in", "--bin-dir", names)
	daemon := filepath.Join(dir, "daemon")
	text := fmt.Sprintf("#!/bin/sh\nexec '%s' \"$@\" --state-dir /var/lib/cni/usernet/state\n", program("usernet"))
	if err := os.WriteFile(daemon, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	// The suite's first plugin directory is built in.
	script := fmt.Sprintf(`set -e
		mount -t tmpfs tmpfs /usr/libexec && mkdir /usr/libexec/cni && mount --bind '%s' /usr/libexec/cni
		mount -t tmpfs tmpfs /var/lib/cni && mount -t proc proc /proc && ip link set lo up
		cd '%s' && exec '%s' -ginkgo.focus 'run CNI' -ginkgo.no-color -test.timeout 3m`, names, source, suite)
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Env = append(os.Environ(), "USERNET_BINARY="+daemon, "USERNET_SOCKET=/var/lib/cni/usernet/usernet.sock")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL, // takes the daemons along
	}
	out, err := cmd.CombinedOutput()
	ran := regexp.MustCompile(`(\d+) Passed \| 0 Failed`).FindStringSubmatch(string(out))
	if err != nil || ran == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if ran[1] != "26" {
		t.Errorf("%s specs ran, want 26\n%s", ran[1], out)
	}
}

// libnetworkSuite builds the suite and returns the program and the directory of
// its source, in which it is to run.
func libnetworkSuite(t *testing.T, dir string) (suite, source string) {
	t.Helper()
	goTool := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("go", args...)
		cmd.Dir = "libnetwork"
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, stderr.String())
		}
		return strings.TrimSpace(string(out))
	}
	suite = filepath.Join(dir, "libnetwork.test")
	goTool("test", "-c", "-o", suite, suitePackage)
	return suite, goTool("list", "-f", "{{.Dir}}", suitePackage)
}
