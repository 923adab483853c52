package tunnel_test

import (
	"testing"

	"github.com/usernet/usernet/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }
