package tunnel_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

const (
	fin, psh, ack, cwr = 0x01, 0x08, 0x10, 0x80
)

// superframes are of every kind that a splitter treats differently.
func superframes() map[string][]byte {
	all := make(map[string][]byte)
	for _, v6 := range []bool{false, true} {
		for _, tcp := range []bool{false, true} {
			for _, n := range []int{1, 99, 100, 101, 1000, 6_399} {
				f := tunneltest.FrameSpec{
					IPv6: v6, TCP: tcp, SegmentSize: 100, Payload: tunneltest.Payload(n, 7),
					ID: 0xfff0, Seq: 0xffff_ff00, TCPFlags: ack | psh | fin,
				}.Frame()
				all[fmt.Sprintf("v6=%v tcp=%v %d bytes", v6, tcp, n)] = f
				if tcp {
					f := bytes.Clone(f)
					f[1] |= tunnel.GSOECN
					// The partial checksum is over the pseudo-header alone
					// and stays right.
					f[tunnel.HeaderLen+packetL4(v6)+13] |= cwr
					all[fmt.Sprintf("v6=%v tcp=%v %d bytes CWR", v6, tcp, n)] = f
				}
			}
		}
	}
	return all
}

func packetL4(v6 bool) int {
	if v6 {
		return 40
	}
	return 20
}

func split(frame []byte) ([][]byte, error) {
	var hdr tunnel.Header
	hdr.Decode(frame)
	return tunnel.Split(hdr, frame[tunnel.HeaderLen:])
}

func TestSplitAgreesWithTheObviousWay(t *testing.T) {
	for name, frame := range superframes() {
		before := bytes.Clone(frame)
		got, err := split(frame)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want, err := tunneltest.Packets(frame)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-obvious +fast):\n%s", name, diff)
		}
		if !bytes.Equal(frame, before) {
			t.Errorf("%s: the split changed the frame", name)
		}
	}
}

func TestSplitFlagsOfTCP(t *testing.T) {
	frame := superframes()["v6=false tcp=true 1000 bytes CWR"]
	got, err := split(frame)
	if err != nil {
		t.Fatal(err)
	}
	var flags []uint8
	for _, p := range got {
		flags = append(flags, p[20+13])
	}
	want := []uint8{ack | cwr, ack, ack, ack, ack, ack, ack, ack, ack, ack | psh | fin}
	if diff := cmp.Diff(want, flags); diff != "" {
		t.Errorf("TCP flags (-want +got):\n%s", diff)
	}
}

// TestNetnsSplitAgreesWithTheKernel sends superframes out of an interface whose
// TUN has no offloads, so that the kernel splits them itself.
func TestNetnsSplitAgreesWithTheKernel(t *testing.T) {
	ns := nstest.NewNS(t)
	f := nstest.TUNFile(t, ns, netns.Interface{Name: "eth0", MTU: 1500})
	setOffloads(t, f, 0)
	dev, err := tunnel.Open(f, 1500)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	peer := newPacketSocket(t, ns, "eth0")
	for name, frame := range superframes() {
		want, err := split(frame)
		if err != nil {
			t.Fatal(err)
		}
		if err := peer.WriteFrame([][]byte{frame}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i, w := range want {
			got := readWithin(t, dev, 10*time.Second)
			if len(want) == 1 && got[0]&tunnel.FlagNeedsCsum != 0 {
				t.Fatalf("%s: the TUN still has checksum offload", name)
			}
			if !bytes.Equal(got[tunnel.HeaderLen:], w) {
				t.Fatalf("%s: packet %d (-kernel +ours):\n%s", name, i, cmp.Diff(got[tunnel.HeaderLen:], w))
			}
		}
	}
}

func setOffloads(t *testing.T, f *os.File, offloads int) {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var result error
	err = conn.Control(func(fd uintptr) { result = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, offloads) })
	if err := errors.Join(err, result); err != nil {
		t.Fatalf("TUNSETOFFLOAD %#x: %v", offloads, err)
	}
}

func TestSplitCompletesChecksums(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, tcp := range []bool{false, true} {
			for n := range 100 {
				spec := tunneltest.FrameSpec{IPv6: v6, TCP: tcp, Payload: tunneltest.Payload(n, 3), Partial: true}
				got, err := split(spec.Frame())
				if err != nil {
					t.Fatal(err)
				}
				spec.Partial = false
				if want := spec.Frame()[tunnel.HeaderLen:]; len(got) != 1 || !bytes.Equal(got[0], want) {
					t.Errorf("%+v:\ngot  % x\nwant % x", spec, got, want)
				}
			}
		}
	}
}

func TestSplitWritesNoZeroUDPChecksum(t *testing.T) {
	// One of these payloads makes the sum come out as zero.
	zeros := 0
	for v := range 1 << 16 {
		spec := tunneltest.FrameSpec{Payload: []byte{byte(v >> 8), byte(v)}, Partial: true}
		got, err := split(spec.Frame())
		if err != nil {
			t.Fatal(err)
		}
		switch sum := got[0][26:28]; {
		case sum[0] == 0 && sum[1] == 0:
			t.Fatalf("payload %#x has checksum 0, which says that there is none", v)
		case sum[0] == 0xff && sum[1] == 0xff:
			zeros++
		}
	}
	if zeros != 1 {
		t.Errorf("%d payloads had the checksum ffff, want 1", zeros)
	}
}

func TestCheckRefusesHostileHeaders(t *testing.T) {
	type change func(h *tunnel.Header)
	tcp := tunneltest.FrameSpec{TCP: true, Payload: tunneltest.Payload(1000, 0), SegmentSize: 100}
	udp := tunneltest.FrameSpec{IPv6: true, Payload: tunneltest.Payload(1000, 0), SegmentSize: 100}
	for name, test := range map[string]struct {
		spec   tunneltest.FrameSpec
		change change
	}{
		"unknown flag":                {tcp, func(h *tunnel.Header) { h.Flags |= 4 }},
		"csum_start before transport": {tcp, func(h *tunnel.Header) { h.CsumStart-- }},
		"csum_start beyond packet":    {tcp, func(h *tunnel.Header) { h.CsumStart = 0xffff }},
		"csum_offset beyond packet":   {tcp, func(h *tunnel.Header) { h.CsumOffset = 0xffff }},
		"csum_offset of UDP in TCP":   {tcp, func(h *tunnel.Header) { h.CsumOffset = 6 }},
		"csum_offset of TCP in UDP":   {udp, func(h *tunnel.Header) { h.CsumOffset = 16 }},
		"gso_size 0 of TCP":           {tcp, func(h *tunnel.Header) { h.GSOSize = 0 }},
		"gso_size 0 of UDP":           {udp, func(h *tunnel.Header) { h.GSOSize = 0 }},
		"gso_size 7 of TCP":           {tcp, func(h *tunnel.Header) { h.GSOSize = 7 }},
		"129 datagrams":               {udp, func(h *tunnel.Header) { h.GSOSize = 7 }},
		"TCPv6 on IPv4":               {tcp, func(h *tunnel.Header) { h.GSOType = tunnel.GSOTCPv6 }},
		"TCPv4 on UDP":                {udp, func(h *tunnel.Header) { h.GSOType = tunnel.GSOTCPv4 }},
		"UDP on TCP":                  {tcp, func(h *tunnel.Header) { h.GSOType = tunnel.GSOUDPL4 }},
		"UDP with ECN":                {udp, func(h *tunnel.Header) { h.GSOType |= tunnel.GSOECN }},
		"UFO":                         {udp, func(h *tunnel.Header) { h.GSOType = 3 }},
		"ECN alone":                   {tcp, func(h *tunnel.Header) { h.GSOType = tunnel.GSOECN }},
		"superframe without checksum": {tcp, func(h *tunnel.Header) { h.Flags = 0 }},
	} {
		frame := test.spec.Frame()
		var h tunnel.Header
		h.Decode(frame)
		var p packet.Header
		if fault := p.Parse(frame[tunnel.HeaderLen:], len(frame)-tunnel.HeaderLen); fault != packet.FaultNone {
			t.Fatal(fault)
		}
		if err := h.Check(&p); err != nil {
			t.Fatalf("%s: untouched header: %v", name, err)
		}
		test.change(&h)
		if err := h.Check(&p); !errors.Is(err, tunnel.ErrFrame) {
			t.Errorf("%s: Check(%+v) = %v, want ErrFrame", name, h, err)
		}
		if n := testing.AllocsPerRun(10, func() { h.Check(&p) }); n != 0 {
			t.Errorf("%s: Check allocates %v times", name, n)
		}
	}
}

func TestCheckIgnoresHdrLen(t *testing.T) {
	frame := tunneltest.FrameSpec{TCP: true, Payload: tunneltest.Payload(1000, 0), SegmentSize: 100}.Frame()
	frame[2], frame[3] = 0xff, 0xff
	if got, err := split(frame); err != nil || len(got) != 10 {
		t.Errorf("with hdr_len 65535: %d packets, %v, want 10", len(got), err)
	}
}

func TestCheckRefusesChecksumsOfFragmentsAndOtherProtocols(t *testing.T) {
	for name, p := range map[string]packet.Header{
		"fragment": {Version: 4, Proto: packet.ProtoUDP, L4: 20, Payload: 28, Len: 100, Fragment: true},
		"ICMP":     {Version: 4, Proto: packet.ProtoICMP, L4: 20, Payload: 28, Len: 100},
		"short":    {Version: 4, Proto: packet.ProtoTCP, L4: 20, Payload: 28, Len: 37},
	} {
		h := tunnel.Header{Flags: tunnel.FlagNeedsCsum, CsumStart: 20, CsumOffset: 6}
		if p.Proto == packet.ProtoTCP {
			h.CsumOffset = 16
		}
		if err := h.Check(&p); !errors.Is(err, tunnel.ErrFrame) {
			t.Errorf("%s: Check = %v, want ErrFrame", name, err)
		}
	}
}

// FuzzSegment: whatever a container sends, the split ends, its payloads add up
// to the frame's, each packet is sound, and the obvious way says the same.
func FuzzSegment(f *testing.F) {
	for _, frame := range superframes() {
		f.Add(frame)
	}
	f.Add(tunneltest.FrameSpec{Partial: true, Payload: []byte("x")}.Frame())
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) <= tunnel.HeaderLen || len(frame) > tunnel.MaxFrame {
			return
		}
		got, err := split(frame)
		want, wantErr := tunneltest.Packets(frame)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("split: %v, obvious way: %v", err, wantErr)
		}
		if err != nil {
			return
		}
		var hdr tunnel.Header
		hdr.Decode(frame)
		var whole packet.Header
		pkt := frame[tunnel.HeaderLen:]
		whole.Parse(pkt, len(pkt))
		sum := 0
		for _, p := range got {
			var h packet.Header
			if fault := h.Parse(p, len(p)); fault != packet.FaultNone {
				t.Fatalf("packet of a superframe: %v", fault)
			}
			if hdr.Superframe() && !packet.ValidL4Checksum(&h, [][]byte{p}) {
				t.Fatal("packet of a superframe has a wrong checksum")
			}
			sum += len(p) - h.Payload
		}
		if sum != len(pkt)-whole.Payload {
			t.Fatalf("payloads add up to %d, the frame has %d", sum, len(pkt)-whole.Payload)
		}
		if hdr.Superframe() && !cmp.Equal(got, want) {
			t.Fatalf("(-obvious +fast):\n%s", cmp.Diff(want, got))
		}
	})
}

func TestHeaderRoundTrip(t *testing.T) {
	h := tunnel.Header{Flags: 1, GSOType: 0x81, HdrLen: 0x0203, GSOSize: 0x0405, CsumStart: 0x0607, CsumOffset: 0x0809}
	b := make([]byte, tunnel.HeaderLen)
	h.Encode(b)
	want := []byte{1, 0x81, 3, 2, 5, 4, 7, 6, 9, 8} // little-endian
	if !bytes.Equal(b, want) {
		t.Errorf("Encode = % x, want % x", b, want)
	}
	var back tunnel.Header
	back.Decode(b)
	if back != h {
		t.Errorf("Decode(Encode(h)) = %+v, want %+v", back, h)
	}
}
