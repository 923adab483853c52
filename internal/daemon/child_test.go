package daemon

import (
	"context"
	"fmt"
	"os"
)

// childEnv makes the test binary a daemon with the directory it names.
const childEnv = "USERNET_DAEMON_TEST_DIR"

// childMain runs a daemon until it is killed.
func childMain() {
	dir := os.Getenv(childEnv)
	d, err := New(Config{
		Socket: dir + "/s.sock", StateDir: dir + "/state",
		Ready: func() { fmt.Println("ready") },
	})
	if err == nil {
		err = d.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
