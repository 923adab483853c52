// Command dropprivs drops its privileges as the daemon does and prints what is
// left, for a test that must not lose its own. With SERVE=DIR in the environment
// it is a daemon without privileges instead.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/daemon"
)

func main() {
	if dir := os.Getenv("SERVE"); dir != "" {
		d, err := daemon.New(daemon.Config{
			Socket: dir + "/s.sock", StateDir: dir + "/state", DropPrivileges: true,
			Ready: func() { fmt.Println("ready") },
		})
		if err == nil {
			err = d.Run(context.Background())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Some threads, so that "all threads" means something.
	for range 4 {
		ready := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(ready)
			select {}
		}()
		<-ready
	}
	if err := daemon.DropPrivileges(daemon.Privileges{KeepNetRaw: len(os.Args) > 1}); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	for _, task := range tasks {
		status, err := os.ReadFile("/proc/self/task/" + task.Name() + "/status")
		if err != nil {
			continue // a thread that ended meanwhile
		}
		for line := range strings.Lines(string(status)) {
			if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") {
				fmt.Print(line)
			}
		}
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	fmt.Println("dumpable", dumpable, err)
	_, err = net.Listen("unix", os.Getenv("SOCKET"))
	fmt.Println("listen", err)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	fmt.Println("raw", errors.Is(err, unix.EPERM), fd >= 0)
	fmt.Println("chroot", errors.Is(unix.Chroot("/"), unix.EPERM))
}
