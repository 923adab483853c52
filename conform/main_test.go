package conform

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/usernet/usernet/internal/nstest"
)

// TestMain is the sample plugin when it is started under that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == sampleName {
		os.Exit(samplePlugin())
	}
	// With the race detector every process sleeps for a second at its end, unless
	// told otherwise.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	nstest.Main(m, func() error { return goleak.Find() })
}
