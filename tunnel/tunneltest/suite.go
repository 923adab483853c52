package tunneltest

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/tunnel"
)

// frameTimeout is how long the suite waits for one frame.
const frameTimeout = 10 * time.Second

// TestDevice holds a device against the contract of tunnel.Device. open makes a
// device and its peer, which is one too: what is written to one is read from
// the other, superframes whole or as the packets that they stand for, and
// nothing else is. open closes neither; both are the suite's.
func TestDevice(t *testing.T, open func(t *testing.T) (dev, peer tunnel.Device)) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, tunnel.Device, tunnel.Device){
		"MTU":                      testMTU,
		"FramesBothWays":           testFrames,
		"ScatterAndGather":         testScatter,
		"MalformedFrames":          testMalformed,
		"WriteKeepsNothing":        testWriteKeepsNothing,
		"ConcurrentWriters":        testConcurrentWriters,
		"Watchable":                testWatchable,
		"CloseEndsRead":            testCloseEndsRead,
		"CloseEndsWriters":         testCloseEndsWriters,
		"ReadAndWriteAllocateNone": testAllocations,
	} {
		t.Run(name, func(t *testing.T) {
			dev, peer := open(t)
			defer peer.Close()
			defer dev.Close()
			test(t, dev, peer)
		})
	}
}

// ReadFrame reads one frame from d as one piece of memory.
func ReadFrame(d tunnel.Device) ([]byte, error) {
	b := make([]byte, tunnel.MaxFrame)
	n, err := d.ReadFrame([][]byte{b})
	return b[:n], err
}

// receive reads a frame within frameTimeout. The device is closed when none
// comes, which ends the goroutine.
func receive(t *testing.T, d tunnel.Device) []byte {
	t.Helper()
	timer := time.AfterFunc(frameTimeout, func() { d.Close() })
	defer timer.Stop()
	for {
		f, err := ReadFrame(d)
		if err != nil {
			t.Fatalf("ReadFrame: %v", err)
		}
		if !isMLDReport(f[tunnel.HeaderLen:]) {
			return f
		}
	}
}

// isMLDReport reports whether a packet is what the kernel says of its own
// accord, when it likes, on an interface that comes up (RFC 3810 §5.2): of the
// unspecified address, with a hop-by-hop header, to ff02::16.
func isMLDReport(p []byte) bool {
	return len(p) > 40 && p[0]>>4 == 6 && p[6] == 0 && netip.AddrFrom16([16]byte(p[24:40])) == netip.MustParseAddr("ff02::16")
}

// expect reads frames until their packets make up those of want, in order.
func expect(t *testing.T, d tunnel.Device, want []byte) {
	t.Helper()
	wants, err := Packets(want)
	if err != nil {
		t.Fatal(err)
	}
	for len(wants) > 0 {
		f := receive(t, d)
		got, err := Packets(f)
		if err != nil {
			t.Fatalf("received % x: %v", f[:min(len(f), 64)], err)
		}
		for _, p := range got {
			if len(wants) == 0 {
				t.Fatalf("received a packet too many: % x", p[:min(len(p), 64)])
			}
			if !bytes.Equal(p, wants[0]) {
				t.Fatalf("received a packet of %d bytes\n% x…\nwant %d bytes\n% x…",
					len(p), p[:min(len(p), 64)], len(wants[0]), wants[0][:min(len(wants[0]), 64)])
			}
			wants = wants[1:]
		}
	}
}

func send(t *testing.T, d tunnel.Device, bufs ...[]byte) {
	t.Helper()
	if err := d.WriteFrame(bufs); err != nil {
		t.Fatalf("WriteFrame: %v", err)
	}
}

func testMTU(t *testing.T, dev, _ tunnel.Device) {
	if mtu := dev.MTU(); mtu < 576 || mtu > tunnel.MaxPacket {
		t.Errorf("MTU() = %d", mtu)
	}
}

// specs are frames of all kinds.
func specs() map[string]FrameSpec {
	all := make(map[string]FrameSpec)
	for _, s := range []FrameSpec{{}, {TCP: true}, {IPv6: true}, {IPv6: true, TCP: true}} {
		family, proto := "IPv4", "UDP"
		if s.IPv6 {
			family = "IPv6"
		}
		if s.TCP {
			proto = "TCP"
		}
		add := func(kind string, change func(*FrameSpec)) {
			s := s
			change(&s)
			all[fmt.Sprintf("%s/%s/%s", family, proto, kind)] = s
		}
		add("Empty", func(*FrameSpec) {})
		add("Odd", func(s *FrameSpec) { s.Payload = Payload(33, 1) })
		add("Full", func(s *FrameSpec) { s.Payload = Payload(1400, 2) })
		add("PartialChecksum", func(s *FrameSpec) { s.Payload, s.Partial = Payload(777, 3), true })
		add("Superframe", func(s *FrameSpec) {
			s.Payload, s.SegmentSize, s.ID = Payload(20_001, 4), 1400, 0xfffd
			// ACK, PSH and FIN. Not CWR: no kernel makes it without GSOECN,
			// and wireguard's own TUN splits it wrongly.
			s.TCPFlags, s.Seq = 0x10|0x08|0x01, 0xffff_f000
		})
	}
	// 65,535 bytes of packet: the largest frame there is.
	all["IPv4/TCP/Largest"] = FrameSpec{TCP: true, Payload: Payload(65_495, 5), SegmentSize: 1448, TCPFlags: 0x10}
	return all
}

func testFrames(t *testing.T, dev, peer tunnel.Device) {
	for name, spec := range specs() {
		frame := spec.Frame()
		t.Run(name+"/ToPeer", func(t *testing.T) {
			send(t, dev, frame)
			expect(t, peer, frame)
		})
		t.Run(name+"/FromPeer", func(t *testing.T) {
			send(t, peer, frame)
			expect(t, dev, frame)
		})
	}
}

func testScatter(t *testing.T, dev, peer tunnel.Device) {
	frame := FrameSpec{IPv6: true, Payload: Payload(1000, 9)}.Frame()
	// Gather from as many pieces as may be, of odd lengths and with empty
	// ones between.
	var pieces [][]byte
	for rest := frame; len(rest) > 0; {
		n := min(len(rest), 1+len(pieces)%37)
		if len(pieces) == 2*tunnel.MaxBuffers-2 {
			n = len(rest)
		}
		pieces = append(pieces, rest[:n], nil)
		rest = rest[n:]
	}
	send(t, dev, pieces...)
	expect(t, peer, frame)

	send(t, peer, frame)
	into := make([]byte, len(frame))
	bufs := [][]byte{into[:3], nil, into[3:10], into[10:51], {}, into[51:], make([]byte, 100)}
	timer := time.AfterFunc(frameTimeout, func() { dev.Close() })
	defer timer.Stop()
	n, err := dev.ReadFrame(bufs)
	if err != nil || n != len(frame) || !bytes.Equal(into[tunnel.HeaderLen:], frame[tunnel.HeaderLen:]) {
		t.Errorf("ReadFrame over pieces = %d, %v, want the frame of %d bytes", n, err, len(frame))
	}

	// A frame longer than the buffers is cut, and the next one is whole.
	send(t, peer, frame)
	send(t, peer, frame)
	if n, err := dev.ReadFrame([][]byte{make([]byte, 60)}); n != 60 || err != nil {
		t.Errorf("ReadFrame into 60 bytes = %d, %v", n, err)
	}
	expect(t, dev, frame)
}

func testMalformed(t *testing.T, dev, peer tunnel.Device) {
	many := make([][]byte, tunnel.MaxBuffers+1)
	for i := range many {
		many[i] = []byte{0}
	}
	for name, bufs := range map[string][][]byte{
		"nothing":          nil,
		"an empty buffer":  {{}},
		"a header only":    {make([]byte, tunnel.HeaderLen)},
		"half a header":    {make([]byte, 5)},
		"too long":         {make([]byte, tunnel.MaxFrame), {0}},
		"too many buffers": many,
	} {
		if err := dev.WriteFrame(bufs); !errors.Is(err, tunnel.ErrFrame) {
			t.Errorf("WriteFrame of %s = %v, want ErrFrame", name, err)
		}
	}
	for name, bufs := range map[string][][]byte{"nothing": nil, "too many buffers": many} {
		if n, err := dev.ReadFrame(bufs); !errors.Is(err, tunnel.ErrFrame) || n != 0 {
			t.Errorf("ReadFrame into %s = %d, %v, want ErrFrame", name, n, err)
		}
	}
	// And the device goes on.
	frame := FrameSpec{Payload: []byte("still here")}.Frame()
	send(t, dev, frame)
	expect(t, peer, frame)
}

func testWriteKeepsNothing(t *testing.T, dev, peer tunnel.Device) {
	for _, spec := range []FrameSpec{
		{Payload: Payload(500, 1)},
		{TCP: true, Partial: true, Payload: Payload(500, 2)},
		{TCP: true, SegmentSize: 100, Payload: Payload(500, 3), TCPFlags: 0x18},
	} {
		frame := spec.Frame()
		want := bytes.Clone(frame)
		send(t, dev, frame[:7], frame[7:])
		if !bytes.Equal(frame, want) {
			t.Error("WriteFrame changed its caller's buffers")
		}
		fill(frame, Poison)
		expect(t, peer, want)
	}
}

func testConcurrentWriters(t *testing.T, dev, peer tunnel.Device) {
	// All of them fit a socket's usual receive buffer.
	const writers, each = 8, 20
	start := make(chan struct{})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			<-start
			for i := range each {
				f := FrameSpec{Payload: Payload(100+w*100, byte(i)), ID: uint16(w*each + i)}.Frame()
				if err := dev.WriteFrame([][]byte{f[:20], f[20:]}); err != nil {
					t.Errorf("WriteFrame: %v", err)
				}
			}
		})
	}
	close(start)
	next := make([]int, writers)
	for range writers * each {
		f := receive(t, peer)
		id := int(f[tunnel.HeaderLen+20])<<8 | int(f[tunnel.HeaderLen+21]) // source port
		w, i := id/each, id%each
		want := FrameSpec{Payload: Payload(100+w*100, byte(i)), ID: uint16(id)}.Frame()
		if !bytes.Equal(f[tunnel.HeaderLen:], want[tunnel.HeaderLen:]) {
			t.Fatalf("frame %d of writer %d is damaged", i, w)
		}
		if i != next[w] {
			t.Errorf("frame %d of writer %d came when %d was due", i, w, next[w])
		}
		next[w] = i + 1
	}
	wg.Wait()
}

// testWatchable holds a device that is tunnel.Watchable against that contract; of
// others there is nothing to ask.
func testWatchable(t *testing.T, dev, peer tunnel.Device) {
	w, ok := dev.(tunnel.Watchable)
	if !ok {
		return
	}
	buf := make([]byte, tunnel.MaxFrame)
	var err error
	for err == nil { // the kernel may have sent what it likes
		_, err = w.TryReadFrame([][]byte{buf})
	}
	if !errors.Is(err, tunnel.ErrEmpty) {
		t.Fatalf("TryReadFrame without a frame = %v, want ErrEmpty", err)
	}
	want := FrameSpec{Payload: Payload(100, 1)}.Frame()
	if err := peer.WriteFrame([][]byte{want}); err != nil {
		t.Fatal(err)
	}
	for got := buf[:0]; !bytes.Equal(got, want[tunnel.HeaderLen:]); {
		fds := []unix.PollFd{{Fd: -1, Events: unix.POLLIN}}
		if err := w.Descriptor(func(fd int) { fds[0].Fd = int32(fd) }); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Poll(fds, int(frameTimeout.Milliseconds())); n != 1 {
			t.Fatalf("the descriptor does not become readable: %d, %v", n, err)
		}
		n, err := w.TryReadFrame([][]byte{buf})
		if err != nil {
			t.Fatalf("TryReadFrame = %v", err)
		}
		got = buf[tunnel.HeaderLen:n]
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.TryReadFrame([][]byte{buf}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("TryReadFrame after Close = %v, want os.ErrClosed", err)
	}
	if err := w.Descriptor(func(int) { t.Error("a descriptor after Close") }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Descriptor after Close = %v, want os.ErrClosed", err)
	}
}

func testCloseEndsRead(t *testing.T, dev, _ tunnel.Device) {
	result := make(chan error, 1)
	go func() {
		var err error
		for err == nil { // the kernel may send what it likes
			_, err = ReadFrame(dev)
		}
		result <- err
	}()
	waitParked(t)
	if err := dev.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	select {
	case err := <-result:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("ReadFrame ended by Close = %v, want os.ErrClosed", err)
		}
	case <-time.After(frameTimeout):
		t.Fatal("ReadFrame goes on after Close")
	}
	if _, err := ReadFrame(dev); !errors.Is(err, os.ErrClosed) {
		t.Errorf("ReadFrame after Close = %v, want os.ErrClosed", err)
	}
	if err := dev.WriteFrame([][]byte{FrameSpec{}.Frame()}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("WriteFrame after Close = %v, want os.ErrClosed", err)
	}
	if err := dev.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close = %v, want os.ErrClosed", err)
	}
}

// waitParked waits until a goroutine is parked in ReadFrame, by the scheduler
// and not in a system call, which would hold a thread for each idle device.
func waitParked(t *testing.T) {
	t.Helper()
	deadline := time.NewTimer(frameTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	stacks := make([]byte, 1<<20)
	for {
		all := stacks[:runtime.Stack(stacks, true)]
		for g := range bytes.SplitSeq(all, []byte("\n\n")) {
			parked := bytes.Contains(g, []byte(" [IO wait")) || bytes.Contains(g, []byte(" [select"))
			if parked && bytes.Contains(g, []byte("tunneltest.ReadFrame(")) {
				return
			}
		}
		select {
		case <-deadline.C:
			t.Fatal("no goroutine is parked in ReadFrame")
		case <-tick.C:
		}
	}
}

func testCloseEndsWriters(t *testing.T, dev, _ tunnel.Device) {
	var wg sync.WaitGroup
	begun := make(chan struct{}, 4)
	for range cap(begun) {
		wg.Go(func() {
			f := FrameSpec{Payload: Payload(100, 0)}.Frame()
			for n := 0; ; n++ {
				err := dev.WriteFrame([][]byte{f})
				if n == 0 {
					begun <- struct{}{}
				}
				if errors.Is(err, os.ErrClosed) {
					return
				}
				if err != nil && !errors.Is(err, tunnel.ErrFull) {
					t.Errorf("WriteFrame during Close: %v", err)
					return
				}
			}
		})
	}
	for range cap(begun) {
		<-begun
	}
	if err := dev.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wg.Wait()
}

// testAllocations is an ordinary test and not a benchmark, so that an
// allocation per frame fails the build.
func testAllocations(t *testing.T, dev, peer tunnel.Device) {
	if raceEnabled {
		t.Log("not counted under the race detector, under which sync.Pool forgets at random")
		return
	}
	const runs = 50
	frame := FrameSpec{TCP: true, Payload: Payload(3000, 0), SegmentSize: 1000, TCPFlags: 0x10}.Frame()
	small := FrameSpec{Payload: Payload(100, 0)}.Frame()
	// Devices in memory keep the buffers that they once had.
	for range runs + 1 { // AllocsPerRun warms up by one run
		send(t, dev, frame)
		send(t, peer, small)
	}
	for range runs + 1 {
		expect(t, peer, frame)
		expect(t, dev, small)
	}

	gather := [][]byte{frame[:tunnel.HeaderLen], frame[tunnel.HeaderLen:70], frame[70:]}
	writes := testing.AllocsPerRun(runs, func() {
		if err := dev.WriteFrame(gather); err != nil {
			t.Fatal(err)
		}
	})
	for range runs + 1 {
		send(t, peer, small)
	}
	into := [][]byte{make([]byte, 10), make([]byte, 128), make([]byte, tunnel.MaxPacket)}
	timer := time.AfterFunc(frameTimeout, func() { dev.Close() })
	defer timer.Stop()
	reads := testing.AllocsPerRun(runs, func() {
		if _, err := dev.ReadFrame(into); err != nil {
			t.Fatal(err)
		}
	})
	if writes != 0 || reads != 0 {
		t.Errorf("WriteFrame allocates %v times and ReadFrame %v times, want 0", writes, reads)
	}
}
