package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/internal/sandbox"
)

// TestMain lets the test binary be the program too: under the name "usernet",
// and as the set-up of a sandbox or a process of the demo.
func TestMain(m *testing.M) {
	sandbox.Init()
	demoInit()
	if filepath.Base(os.Args[0]) == "usernet" {
		main()
	}
	nstest.Main(m)
}

// installProgram makes a directory for PATH in which this test binary is called
// usernet.
func installProgram(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return os.Symlink(self, filepath.Join(dir, "usernet"))
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			bin := filepath.Join(env.WorkDir, ".bin")
			if err := os.Mkdir(bin, 0o755); err != nil {
				return err
			}
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			// No daemon of this machine's is to be asked.
			env.Setenv("USERNET_SOCKET", filepath.Join(env.WorkDir, "no", "daemon.sock"))
			return installProgram(bin)
		},
	})
}
