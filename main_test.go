package usernet_test

import (
	"flag"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

func TestMain(m *testing.M) {
	usernet.Init()
	flag.Parse()
	// Examples cannot skip themselves. With CI=true they run, and fail where
	// they cannot: nothing is left untested unseen.
	if os.Getenv("CI") != "true" && !canMakeNamespaces() && flag.Lookup("test.skip").Value.String() == "" {
		flag.Set("test.skip", "^Example")
	}
	nstest.Main(m)
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
