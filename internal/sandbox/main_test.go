package sandbox

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/usernet/usernet/internal/nstest"
)

func TestMain(m *testing.M) {
	Init()
	nstest.Main(m, func() error { return goleak.Find() })
}
