package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
)

// childVar marks the process that runs in the namespaces of its own.
const childVar = "USERNET_NSTEST_CHILD"

// errNoChild is why the test binary could not run itself again as root of a user
// namespace; set by Main before any test runs.
var errNoChild error

// Main runs a package's tests with the rights that TestNetns tests need, as far
// as they can be had, and exits. It is called from TestMain. When the tests have
// passed, each of checks must, too: a search for leaked goroutines, say.
func Main(m *testing.M, checks ...func() error) {
	if os.Getenv(childVar) != "" {
		os.Exit(runChild(m, checks))
	}
	if os.Geteuid() == 0 {
		os.Exit(run(m, checks))
	}
	cmd, err := startChild()
	if err != nil {
		errNoChild = err
		os.Exit(run(m, checks))
	}
	os.Exit(exitCode(cmd.Wait()))
}

// run runs the tests and then the checks.
func run(m *testing.M, checks []func() error) int {
	code := m.Run()
	for _, check := range checks {
		if code != 0 {
			break
		}
		if err := check(); err != nil {
			fmt.Fprintf(os.Stderr, "nstest: after the tests: %v\n", err)
			code = 1
		}
	}
	return code
}

// startChild starts this program again as root of new namespaces.
func startChild() (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the test binary: %w", err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), childVar+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the tests in a new user namespace: %w", err)
	}
	return cmd, nil
}

// runChild prepares the new namespaces and runs the tests: plain tests of the
// same package expect a loopback interface.
func runChild(m *testing.M, checks []func() error) int {
	err := errors.Join(
		os.NewSyscallError("mount / private", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")),
		netns.LoopbackUp(),
	)
	if err != nil {
		fmt.Fprintf(os.Stderr, "nstest: prepare the tests' namespaces: %v\n", err)
		return 1
	}
	return run(m, checks)
}

// exitCode is the exit status that a child's end asks of its parent.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode()
	}
	fmt.Fprintf(os.Stderr, "nstest: tests in a new user namespace: %v\n", err)
	return 1
}

// missing is what TestNetns tests lack here, nil when they can run.
var missing = sync.OnceValue(func() error {
	h, err := netns.New()
	if err != nil {
		return errors.Join(err, errNoChild)
	}
	defer h.Close()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	unix.Close(fd)
	return nil
})

// Require skips the test when network namespaces or TUN devices cannot be made
// here, and says why. With CI=true in the environment it fails the test.
func Require(t testing.TB) {
	t.Helper()
	if err := missing(); err != nil {
		skip(t, "network namespaces and TUN devices", err)
	}
}

// RequireBBR does the same for the kernel's congestion control of that name,
// which it loads if it may.
func RequireBBR(t testing.TB) {
	t.Helper()
	Require(t)
	_ = exec.Command("modprobe", "tcp_bbr").Run() // it may be built in
	have, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err == nil && !slices.Contains(strings.Fields(string(have)), "bbr") {
		err = fmt.Errorf("the kernel has %s; modprobe tcp_bbr adds it", strings.TrimSpace(string(have)))
	}
	if err != nil {
		skip(t, "TCP's BBR", err)
	}
}

func skip(t testing.TB, what string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("this test needs %s, and CI=true forbids to skip it: %v", what, err)
	}
	t.Skipf("this test needs %s: %v", what, err)
}
