package netstack_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/netstack"
)

// iperf measures TCP from one namespace to an address of another, in bits a
// second: what came to the receiver's interface on the whole, and what the receiver
// had in the third best of seven half seconds, after a first second. A loss costs
// TCP 0.2 s of silence at least (its shortest retransmission timeout), and then the
// receiver has at once what came behind it, a whole queue of the shaper's; and a busy
// machine takes the processes from the CPU. None of it says anything of the switch.
func iperf(t *testing.T, from, to *netns.Handle, addr netip.Addr) (whole, best float64) {
	t.Helper()
	server := exec.Command("iperf3", "-s", "-1", "-J", "-i", "0.5", "-B", addr.String())
	nstest.Start(t, to, server)
	nstest.WaitFor(t, testTimeout, func() bool {
		return strings.Contains(nstest.Exec(t, to, "ss", "-Hltn"), ":5201")
	})
	began, before := time.Now(), received(t, to)
	out, err := nstest.TryExec(t, from, "iperf3", "-J", "-c", addr.String(), "-O", "1", "-t", "4", "-i", "0.5", "--get-server-output")
	var result struct {
		Server struct {
			Intervals []struct {
				Sum struct {
					BitsPerSecond float64 `json:"bits_per_second"`
					Omitted       bool
					Seconds       float64
				}
			}
		} `json:"server_output_json"`
		Error string
	}
	if jsonErr := json.Unmarshal([]byte(out), &result); err != nil || jsonErr != nil || result.Error != "" {
		t.Fatalf("iperf3: %v, %v, %s", err, jsonErr, result.Error)
	}
	whole = float64(received(t, to)-before) * 8 / time.Since(began).Seconds()
	_ = server.Wait() // -1: it ends with its client
	var got []float64
	for _, i := range result.Server.Intervals {
		if !i.Sum.Omitted && i.Sum.Seconds > 0.4 { // the last one may be a rest
			got = append(got, i.Sum.BitsPerSecond)
		}
	}
	if len(got) < 7 {
		t.Fatalf("iperf3 measured %d times: %s", len(got), out)
	}
	got = got[1:] // where the second that is left out ends in it, iperf3 counts half
	slices.Sort(got)
	return whole, got[len(got)-3]
}

// received is how many bytes of IP packets have come to a namespace's interface.
func received(t *testing.T, ns *netns.Handle) (bytes uint64) {
	t.Helper()
	nstest.In(t, ns, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		bytes = link.Attrs().Statistics.RxBytes
		return nil
	})
	return bytes
}

// TestNetnsBandwidth: TCP gets the rate of either direction within a tenth, and
// the other direction does not suffer.
func TestNetnsBandwidth(t *testing.T) {
	requireTools(t, "iperf3", "ping")
	for _, mbit := range []uint64{5, 100} {
		r := netstack.Rate{BitsPerSecond: mbit * 1e6}
		for name, limits := range map[string][]netstack.Bandwidth{
			"FromContainer": {{FromContainer: r}, {}},
			"ToContainer":   {{}, {ToContainer: r}},
		} {
			t.Run(fmt.Sprintf("%s/%dMbit", name, mbit), func(t *testing.T) {
				p := newPair(t, kinds["TUNtoTUN"], limits...)
				for family := range 2 {
					whole, best := iperf(t, p.ns[0], p.ns[1], p.addrs[1][family])
					t.Logf("%.1f and at best %.1f Mbit/s of %d; drops %v", whole/1e6, best/1e6, mbit, p.links[1].Stats().Drops)
					if want := float64(mbit) * 1e6; whole > 1.1*want || best < 0.9*want {
						t.Errorf("%.1f Mbit/s, at best %.1f, want %d within a tenth", whole/1e6, best/1e6, mbit)
					}
				}
				begin := time.Now()
				sendAcross(t, p.ns[1], p.ns[0], p.addrs[0][0], 8<<20)
				if took := time.Since(begin); took > 3*time.Second {
					t.Errorf("the other direction took %v for 8 MiB", took)
				}
			})
		}
	}
}

// TestNetnsBandwidthLetsGo: a link that waits for its rate, in both directions,
// is detached at once.
func TestNetnsBandwidthLetsGo(t *testing.T) {
	slow := netstack.Rate{BitsPerSecond: 8, BurstBits: 8}
	p := newPair(t, kinds["TUNtoTUN"], netstack.Bandwidth{FromContainer: slow}, netstack.Bandwidth{ToContainer: slow})
	for i, to := range []netip.Addr{p.addrs[1][0], p.addrs[0][0]} {
		if _, err := nstest.TryExec(t, p.ns[i], "ping", "-n", "-c", "1", "-W", "1", to.String()); err == nil {
			t.Error("a ping passes at 8 bit/s")
		}
	}
	for _, link := range p.links {
		begin := time.Now()
		if err := link.Detach(t.Context()); err != nil || time.Since(begin) > time.Second {
			t.Errorf("detach: %v after %v", err, time.Since(begin))
		}
	}
}
