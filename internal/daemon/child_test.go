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
	if err := runChild(Config{Socket: dir + "/s.sock", StateDir: dir + "/state", Ready: func() { fmt.Println("ready") }}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runChild(cfg Config) (err error) {
	if cfg.Listener, err = InheritedListener(); err != nil {
		return err
	}
	d, err := New(cfg)
	if err != nil {
		return err
	}
	return d.Run(context.Background())
}
