package usernet_test

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

func TestMain(m *testing.M) {
	usernet.Init()
	if len(os.Args) == 3 {
		act(os.Args[1], os.Args[2])
	}
	flag.Parse()
	// Examples cannot skip themselves. With CI=true they run, and fail where
	// they cannot: nothing is left untested unseen.
	if os.Getenv("CI") != "true" && !canMakeNamespaces() && flag.Lookup("test.skip").Value.String() == "" {
		flag.Set("test.skip", "^Example")
	}
	nstest.Main(m)
}

// act is what this program does as a command of an example, which cannot rely
// on other programs being installed.
func act(role, address string) {
	switch role {
	case "echo":
		l, err := net.Listen("tcp", address)
		if err != nil {
			die(err)
		}
		fmt.Print("ready")
		for {
			c, err := l.Accept()
			if err != nil {
				die(err)
			}
			io.Copy(c, c)
			c.Close()
		}
	case "fetch":
		c, err := net.Dial("tcp", address)
		if err != nil {
			die(err)
		}
		io.Copy(os.Stdout, c)
		os.Exit(0)
	}
}

func die(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// canMakeNamespaces reports whether this very process can do what the examples
// show. nstest.Main may start another one that can.
func canMakeNamespaces() bool {
	ns, err := netns.New()
	if err != nil {
		return false
	}
	ns.Close()
	return unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK) == nil
}
