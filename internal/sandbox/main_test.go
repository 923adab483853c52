package sandbox

import (
	"testing"

	"github.com/usernet/usernet/internal/nstest"
)

func TestMain(m *testing.M) {
	Init()
	nstest.Main(m)
}
