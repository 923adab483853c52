package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

// The MTUs that TCP is measured with: Ethernet's, and the largest that all
// backends in user space take.
const (
	ethernetMTU = 1500
	largeMTU    = 65520
)

var mtus = []int{ethernetMTU, largeMTU}

// egress is TCP between a container and the outside server.
func egress(server string, mtu, streams int, down bool) Scenario {
	family, direction := "4", "up"
	if server == serverV6 {
		family = "6"
	}
	if down {
		direction = "down"
	}
	applies := func(b Backend) bool {
		t := b.Traits()
		// The kernel's packets are as large as the outside takes them.
		return t.Egress && (family == "4" || t.V6) && (mtu == ethernetMTU || t.Userspace)
	}
	return stream(fmt.Sprintf("egress-tcp%s-%s-%d-mtu%d", family, direction, streams, mtu), applies,
		func(ctx context.Context, b *Bench, _ Backend) (streamResult, error) {
			return b.iperf(ctx, load{server: b.topo.Server, client: b.topo.Containers[0], addr: server, mtu: mtu, streams: streams, down: down})
		})
}

// peer is TCP from one container to another.
func peer(mtu, streams int) Scenario {
	return stream(fmt.Sprintf("peer-tcp4-%d-mtu%d", streams, mtu), func(b Backend) bool { return b.Traits().Peers != nil },
		func(ctx context.Context, b *Bench, backend Backend) (streamResult, error) {
			return b.iperf(ctx, load{
				server: b.topo.Containers[1], client: b.topo.Containers[0], addr: backend.Traits().Peers[1], mtu: mtu, streams: streams,
			})
		})
}

// published is TCP from outside to a published port, or back over it.
func published(out bool) Scenario {
	direction := "in"
	if out {
		direction = "out"
	}
	return stream("published-tcp4-"+direction+"-1", func(b Backend) bool { return b.Traits().Publish },
		func(ctx context.Context, b *Bench, _ Backend) (streamResult, error) {
			return b.iperf(ctx, load{server: b.topo.Containers[0], client: b.topo.Server, addr: hostV4, port: publishedPort, streams: 1, down: out})
		})
}

// stream is a scenario that one run of iperf3 over TCP makes.
func stream(name string, applies func(Backend) bool, run func(context.Context, *Bench, Backend) (streamResult, error)) Scenario {
	return Scenario{
		Name: name, Applies: applies, Tool: "iperf3",
		Figures: []Figure{{Unit: "Gbit/s", HigherIsBetter: true}, {Name: "cpu", Unit: "CPU s/GB"}},
		Run: func(ctx context.Context, b *Bench, backend Backend) ([]float64, error) {
			r, err := run(ctx, b, backend)
			return []float64{r.gbits, r.cpuPerGB}, err
		},
	}
}

// tolerated is how much of a stream of datagrams may be lost, in percent, for
// its rate to count.
const tolerated = 1

// udpStream is datagrams of 1400 bytes: the highest rate that arrives nearly
// whole, and what becomes of as many as the sender can make.
func udpStream() Scenario {
	return Scenario{
		Name: "egress-udp4-up", Applies: egresses, Tool: "iperf3",
		Figures: []Figure{
			{Name: "at-1%-lost", Unit: "Gbit/s", HigherIsBetter: true},
			{Name: "flood-received", Unit: "Gbit/s", HigherIsBetter: true}, {Name: "flood-lost", Unit: "%"},
		},
		Run: func(ctx context.Context, b *Bench, _ Backend) ([]float64, error) {
			offer := func(gbits float64) (streamResult, error) {
				return b.iperf(ctx, load{server: b.topo.Server, client: b.topo.Containers[0], addr: serverV4, streams: 1, udp: true, gbits: gbits})
			}
			flood, err := offer(0)
			if err != nil {
				return nil, err
			}
			best, err := highestRate(flood, offer)
			return []float64{best, flood.gbits, flood.lostPercent}, err
		},
	}
}

// rateSteps bounds highestRate; with five the rate is found to a tenth.
const rateSteps = 5

// highestRate bisects the rates between none and a flood's for the highest at
// which no more than what is tolerated gets lost, and returns what arrived then.
// A rate has two tries: ten milliseconds in which the machine does something
// else lose a hundredth of a second's datagrams.
func highestRate(flood streamResult, offer func(gbits float64) (streamResult, error)) (best float64, err error) {
	if flood.lostPercent <= tolerated {
		return flood.gbits, nil
	}
	low, high := 0.0, flood.gbits/(1-flood.lostPercent/100)
	next := flood.gbits // a flood costs a backend more than what it carries of it
	for range rateSteps {
		r, err := offer(next)
		if err == nil && r.lostPercent > tolerated {
			r, err = offer(next)
		}
		if err != nil {
			return 0, err
		}
		if r.lostPercent <= tolerated {
			low, best = next, max(best, r.gbits)
		} else {
			high = next
		}
		next = math.Sqrt(low * high)
		if low == 0 {
			next = high / 2
		}
	}
	if best == 0 {
		err = fmt.Errorf("more than %d %% lost even at %.3f Gbit/s", tolerated, high)
	}
	return best, err
}

// load is one run of iperf3.
type load struct {
	server, client string // namespaces
	addr           string
	port           int // 0: iperf3's own
	mtu            int // of the packets between the two; 0: the backend's
	streams        int
	down, udp      bool
	gbits          float64 // offered; 0: as much as can be
}

// warmUp is how many seconds of a TCP stream are not counted.
const warmUp = 1

// argv is the client's command line.
func (l *load) argv(d time.Duration) []string {
	argv := []string{"iperf3", "-c", l.addr, "-p", strconv.Itoa(l.port), "-J", "--connect-timeout", "5000",
		"-t", strconv.Itoa(int(d.Seconds())), "-P", strconv.Itoa(l.streams)}
	if l.down {
		argv = append(argv, "-R")
	}
	if l.udp { // its warm-up would count as lost
		return append(argv, "-u", "-l", "1400", "-w", strconv.Itoa(socketBuffer()), "-b", strconv.FormatFloat(l.gbits*1e9, 'f', 0, 64))
	}
	return append(argv, "-O", strconv.Itoa(warmUp))
}

// socketBuffer is the size of the buffers of iperf3's sockets for datagrams: as
// much as the kernel lets, up to 4 MiB. With its default of 208 KiB it is
// iperf3 that loses them, and not the backend, whenever its server waits for
// two milliseconds of a CPU.
func socketBuffer() int {
	size := 4 << 20
	for _, limit := range []string{"rmem_max", "wmem_max"} {
		text, err := os.ReadFile("/proc/sys/net/core/" + limit)
		if err != nil {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			size = min(size, n)
		}
	}
	return size
}

type streamResult struct{ gbits, lostPercent, cpuPerGB float64 }

// iperf runs one iperf3 test and returns what the receiver got.
func (b *Bench) iperf(ctx context.Context, l load) (streamResult, error) {
	ctx, cancel := context.WithTimeout(ctx, b.duration+20*time.Second)
	defer cancel()
	if l.port == 0 {
		l.port = 5201
	}
	if l.mtu != 0 {
		remove, err := routeMTU(ctx, l.client, l.addr, l.mtu)
		if err != nil {
			return streamResult{}, err
		}
		defer remove()
	}
	srv, err := start(in(l.server, "iperf3", "-s", "-1", "-p", strconv.Itoa(l.port), "--forceflush")...)
	if err != nil {
		return streamResult{}, err
	}
	defer srv.stop()
	if err := srv.await(ctx, "listener", func() bool { return listens(l.server, "tcp", l.port) }); err != nil {
		return streamResult{}, err
	}
	before := busySeconds()
	out, err := output(ctx, in(l.client, l.argv(b.duration)...)...)
	return parseIperf(out, err, busySeconds()-before)
}

var errRefused = errors.New("it gave no figure")

// parseIperf reads iperf3's report; busy is the CPU time of the whole machine.
func parseIperf(out []byte, err error, busy float64) (streamResult, error) {
	var result struct {
		Error string `json:"error"`
		End   struct {
			Sum struct {
				LostPercent float64 `json:"lost_percent"`
			} `json:"sum"`
			SumReceived struct {
				BitsPerSecond float64 `json:"bits_per_second"`
				Seconds       float64 `json:"seconds"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if jsonErr := json.Unmarshal(out, &result); jsonErr != nil || result.Error != "" || err != nil {
		return streamResult{}, fmt.Errorf("iperf3: %s: %w", result.Error, cmp.Or(err, jsonErr, errRefused))
	}
	r := streamResult{gbits: result.End.SumReceived.BitsPerSecond / 1e9, lostPercent: result.End.Sum.LostPercent}
	if gb := r.gbits / 8 * (result.End.SumReceived.Seconds + warmUp); gb > 0 {
		r.cpuPerGB = busy / gb
	}
	if r.gbits < 0.005 {
		return r, fmt.Errorf("iperf3: stalled at %.4f Gbit/s", r.gbits)
	}
	return r, nil
}

// busySeconds is how long the machine's CPUs have worked since the boot.
func busySeconds() float64 {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	fields := strings.Fields(firstLine(string(stat)))
	var busy float64
	for i, f := range fields[1:] {
		n, _ := strconv.ParseFloat(f, 64)
		if i != 3 && i != 4 && i < 8 { // idle, iowait; guests are in user time already
			busy += n
		}
	}
	return busy / 100 // USER_HZ
}
