package netstack

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/packet"
)

// ping builds a whole echo request.
func (e *end) ping(v4 bool, seq uint16, payload []byte) []byte {
	return packet.AppendEcho(nil, false, e.addr(v4), e.link.s.gateway(v4), 0x4242, seq, 64, payload)
}

func TestGatewayAnswersPings(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		a := h.attach("a", 2, nil)
		for seq, size := range []int{0, 56, 1400} {
			payload := bytes.Repeat([]byte{byte(size)}, size)
			a.send(a.ping(v4, uint16(seq), payload))
			_, pkt := a.receive()
			hdr := parse(t, pkt)
			if !hdr.IsEchoReply() || hdr.Src != h.s.gateway(v4) || hdr.SrcPort != 0x4242 || int(hdr.ICMPSeq) != seq ||
				!packet.ValidL4Checksum(&hdr, [][]byte{pkt}) || !bytes.Equal(pkt[hdr.Payload:], payload) {
				t.Errorf("%d bytes: %+v", size, hdr)
			}
		}
		a.wantDrops(map[string]uint64{})
	})
}

func TestGatewayAnswersBigPings(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		a := h.attach("a", 2, nil)
		payload := bytes.Repeat([]byte("big ping"), 2000)
		err := packet.Fragments(a.ping(v4, 1, payload), DefaultMTU, 5, func(frag []byte) error {
			a.send(frag)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		r := packet.NewReassembler(packet.ReassemblyLimits{})
		var whole []byte
		for whole == nil {
			_, frag := a.receive()
			if len(frag) > DefaultMTU {
				t.Fatalf("fragment of %d bytes", len(frag))
			}
			hdr := parse(t, frag)
			whole, _ = r.Add(&hdr, [][]byte{frag}, testNow)
		}
		hdr := parse(t, whole)
		if !hdr.IsEchoReply() || !packet.ValidL4Checksum(&hdr, [][]byte{whole}) || !bytes.Equal(whole[hdr.Payload:], payload) {
			t.Errorf("%+v", hdr)
		}
		a.wantDrops(map[string]uint64{})
	})
}

func TestICMPFaultsAreDropped(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		a := h.attach("a", 2, nil)
		bad := a.ping(v4, 1, []byte("payload"))
		bad[len(bad)-1] ^= 1
		a.send(bad)
		a.send(packet.AppendEcho(nil, true, a.addr(v4), h.s.gateway(v4), 1, 1, 64, nil)) // a reply nobody asked for
		a.wantDrops(map[string]uint64{"checksum": 1, "protocol": 1})
		a.quiet()
	})
}

// Fragments beyond the link's limit are counted one by one, and whole packets
// go on passing.
func TestFragmentLimit(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Limits.FragmentBytes = 8 << 10 })
	a := h.attach("a", 2, nil)
	first := func(id uint32) {
		n := 0
		err := packet.Fragments(a.ping(true, 1, make([]byte, 2000)), 1500, id, func(frag []byte) error {
			if n++; n == 1 {
				a.send(frag)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for id := range uint32(40) {
		first(id)
	}
	a.send(a.ping(true, 2, nil))
	a.receive()
	fr := &a.link.nat.fragments
	fr.mu.Lock()
	_, held := fr.r.Held()
	fr.mu.Unlock()
	if held > 8<<10 {
		t.Errorf("%d bytes held", held)
	}
	if d := a.link.Stats().Drops; d["reassembly"] < 30 || len(d) != 1 {
		t.Errorf("drops %v", d)
	}
}

// What never becomes whole is given up, and the container is told.
func TestFragmentTimeout(t *testing.T) {
	families(t, func(t *testing.T, v4 bool) {
		h := newHarness(t, nil)
		a := h.attach("a", 2, nil)
		pkt := a.ping(v4, 1, make([]byte, 2000))
		sent := false
		err := packet.Fragments(pkt, 1500, 9, func(frag []byte) error {
			if !sent {
				a.send(frag)
			}
			sent = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		fr := &a.link.nat.fragments
		eventually(t, fr.held)
		fr.expire(a.link, time.Now())
		if !fr.held() {
			t.Fatal("given up at once")
		}
		fr.expire(a.link, time.Now().Add(time.Minute))
		_, answer := a.receive()
		hdr := parse(t, answer)
		kind := icmp4ErrorKind(hdr.ICMPType, hdr.ICMPCode)
		if !v4 {
			kind = icmp6ErrorKind(hdr.ICMPType, hdr.ICMPCode)
		}
		if hdr.Src != h.s.gateway(v4) || kind != packet.ErrReassemblyTimeout {
			t.Errorf("%+v, want reassembly time exceeded from the gateway", hdr)
		}
		a.wantDrops(map[string]uint64{"reassembly": 1})
	})
}

func TestPingAvailableSaysWhatToDo(t *testing.T) {
	err := PingAvailable()
	if err == nil {
		return // as root, by a raw socket at least
	}
	if !errors.Is(err, ErrPingUnavailable) || !strings.Contains(err.Error(), "sysctl -w net.ipv4.ping_group_range") {
		t.Errorf("%v", err)
	}
}
