package packet

import (
	"bytes"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// TestAppendTCPReset: the numbers of RFC 9293 §3.10.7.1, read by gopacket.
func TestAppendTCPReset(t *testing.T) {
	for _, c := range []struct {
		name     string
		flags    uint8
		payload  int
		seq, ack uint32
		hasACK   bool
	}{
		{"SYN", FlagSYN, 0, 0, 0x1001, true},
		{"SYN with data", FlagSYN, 10, 0, 0x100b, true},
		{"SYN and ACK", FlagSYN | FlagACK, 0, 0x2000, 0, false},
		{"ACK", FlagACK, 0, 0x2000, 0, false},
		{"data", FlagACK | FlagPSH, 500, 0x2000, 0, false},
		{"FIN without ACK", FlagFIN, 3, 0, 0x1004, true},
		{"nothing", 0, 0, 0, 0x1000, true},
	} {
		for _, head := range []int{HeadLen, 1 << 16} {
			for _, orig := range [][]byte{ip4(6, 0, nil, tcp(c.flags, pattern(c.payload)...)), ip6(6, tcp(c.flags, pattern(c.payload)...))} {
				got := AppendTCPReset([]byte("kept"), orig[:min(head, len(orig))])[4:]
				h, o := parse(t, got), parse(t, orig)
				if h.Src != o.Dst || h.Dst != o.Src || !ValidL4Checksum(&h, [][]byte{got}) {
					t.Errorf("%s: %+v", c.name, h)
				}
				layer := layers.LayerTypeIPv4
				if h.Version == 6 {
					layer = layers.LayerTypeIPv6
				}
				r, ok := gopacket.NewPacket(got, layer, gopacket.Default).Layer(layers.LayerTypeTCP).(*layers.TCP)
				if !ok || !r.RST || r.SYN || r.FIN || r.ACK != c.hasACK || r.Seq != c.seq || r.Ack != c.ack ||
					r.SrcPort != 443 || r.DstPort != 40000 || r.Window != 0 {
					t.Errorf("%s over IPv%d: got %+v", c.name, h.Version, r)
				}
			}
		}
	}
}

// TestAppendTCPResetForbidden: what is not answered leaves the buffer as it was.
func TestAppendTCPResetForbidden(t *testing.T) {
	for name, orig := range map[string][]byte{
		"reset":          ip4(6, 0, nil, tcp(FlagRST)),
		"reset with ACK": ip6(6, tcp(FlagRST|FlagACK)),
		"UDP":            ip4(17, 0, nil, udp()),
		"fragment":       ip4(6, 0x2000, nil, tcp(FlagSYN, 1, 2, 3, 4)),
		"later fragment": ip4(6, 9, nil, pattern(20)),
		"malformed":      ip4(6, 0, nil, mutated(tcp(FlagSYN), 12, 0)),
		"cut off":        ip4(6, 0, nil, tcp(FlagSYN))[:39],
		"nothing":        nil,
		"to multicast":   reseal(mutated(ip4(6, 0, nil, tcp(FlagSYN)), 16, 224)),
		"to broadcast":   reseal(mutated(ip4(6, 0, nil, tcp(FlagSYN)), 16, 255, 255, 255, 255)),
		"to loopback":    reseal(mutated(ip4(6, 0, nil, tcp(FlagSYN)), 16, 127, 0, 0, 1)),
		"from nobody":    reseal(mutated(ip4(6, 0, nil, tcp(FlagSYN)), 12, 0, 0, 0, 0)),
	} {
		if got := AppendTCPReset([]byte("kept"), orig); !bytes.Equal(got, []byte("kept")) {
			t.Errorf("%s: a reset was made: % x", name, got)
		}
	}
}
