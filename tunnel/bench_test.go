package tunnel_test

import (
	"testing"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

// largest is the frame that bulk TCP consists of.
var largest = tunneltest.FrameSpec{
	TCP: true, TCPFlags: ack, SegmentSize: 1448, Payload: tunneltest.Payload(65_160, 0),
}.Frame()

// BenchmarkNetnsWrite writes frames to a container whose kernel discards them:
// the system call and the kernel's copy.
func BenchmarkNetnsWrite(b *testing.B) {
	for kind, open := range devices {
		b.Run(kind, func(b *testing.B) { benchmarkWrite(b, open) })
	}
}

func benchmarkWrite(b *testing.B, open func(testing.TB, *netns.Handle, netns.Interface) tunnel.Device) {
	for name, frame := range map[string][]byte{
		"Superframe": largest,
		"Small":      tunneltest.FrameSpec{Payload: tunneltest.Payload(100, 0)}.Frame(),
	} {
		b.Run(name, func(b *testing.B) {
			dev := open(b, nstest.NewNS(b), silent)
			bufs := [][]byte{frame[:128], frame[128:]}
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				if err := dev.WriteFrame(bufs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWrapWrite splits a superframe for a wireguard device in memory.
func BenchmarkWrapWrite(b *testing.B) {
	near, far := tunneltest.WireguardPair(1500, 128)
	dev, err := tunnel.Wrap(near)
	if err != nil {
		b.Fatal(err)
	}
	defer dev.Close()
	bufs, sizes := make([][]byte, 128), make([]int, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	frame := [][]byte{largest}
	b.SetBytes(int64(len(largest)))
	b.ReportAllocs()
	for b.Loop() {
		if err := dev.WriteFrame(frame); err != nil {
			b.Fatal(err)
		}
		if _, err := far.Read(bufs, sizes, 0); err != nil {
			b.Fatal(err)
		}
	}
}
