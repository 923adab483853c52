package tunneltest_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPairIsADevice(t *testing.T) {
	tunneltest.TestDevice(t, func(*testing.T) (tunnel.Device, tunnel.Device) {
		return tunneltest.Pair(1500)
	})
}

func TestPairReadPoisonsItsBuffersFirst(t *testing.T) {
	a, b := tunneltest.Pair(0)
	frame := tunneltest.FrameSpec{}.Frame()
	if err := a.WriteFrame([][]byte{frame}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len(frame)+8)
	if _, err := b.ReadFrame([][]byte{buf}); err != nil {
		t.Fatal(err)
	}
	for _, v := range buf[len(frame):] {
		if v != tunneltest.Poison {
			t.Fatalf("byte after the frame is %#x, want %#x", v, tunneltest.Poison)
		}
	}
}

func TestPairIsBounded(t *testing.T) {
	a, b := tunneltest.Pair(0)
	frame := [][]byte{tunneltest.FrameSpec{}.Frame()}
	for i := range tunneltest.QueueLen {
		if err := a.WriteFrame(frame); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
	if err := a.WriteFrame(frame); !errors.Is(err, tunnel.ErrFull) {
		t.Errorf("WriteFrame to a full queue = %v, want ErrFull", err)
	}
	if _, err := tunneltest.ReadFrame(b); err != nil {
		t.Fatal(err)
	}
	if err := a.WriteFrame(frame); err != nil {
		t.Errorf("WriteFrame after a read = %v", err)
	}
}

func TestPairPeersDeathIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := tunneltest.Pair(0)
		result := make(chan error, 1)
		go func() {
			_, err := tunneltest.ReadFrame(a)
			result <- err
		}()
		synctest.Wait() // until the read waits
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, tunnel.ErrGone) {
			t.Errorf("ReadFrame when the peer is closed = %v, want ErrGone", err)
		}
		if err := a.WriteFrame([][]byte{tunneltest.FrameSpec{}.Frame()}); !errors.Is(err, tunnel.ErrGone) {
			t.Errorf("WriteFrame when the peer is closed = %v, want ErrGone", err)
		}
	})
}
