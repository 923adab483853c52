package plugin

import (
	"encoding/json"
	"math"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/tunnel"
)

// bandwidth is the capability of that name, whose four keys a configuration may
// have as well (CONVENTIONS.md). Ingress is into the container. Rates are bits a
// second, bursts bits; 0: no limit.
type bandwidth struct {
	IngressRate, IngressBurst, EgressRate, EgressBurst uint64
}

const (
	// anyBurst and more is what runtimes say that were given a rate alone:
	// containerd this, CRI-O maxBurst. So much at once would make the rate
	// none for minutes.
	anyBurst = math.MaxUint32
	// maxBurst is the reference plugin's limit: less than 4 GiB.
	maxBurst = math.MaxUint32*8 - 1
)

// limit decodes one key of a configuration's own bandwidth.
func limit(of func(*bandwidth) *uint64) field {
	return func(c *config, raw json.RawMessage) error { return json.Unmarshal(raw, of(&c.Bandwidth)) }
}

func decodeBandwidth(c *config, raw json.RawMessage) error {
	var b bandwidth
	if err := json.Unmarshal(raw, &b); err != nil {
		return err
	}
	if err := b.check("runtimeConfig.bandwidth."); err != nil {
		return err
	}
	c.Runtime.Bandwidth = b
	return nil
}

// check judges the values; prefix comes before the names of their keys.
func (b *bandwidth) check(prefix string) *types.Error {
	for _, way := range []struct {
		name        string
		rate, burst uint64
	}{{"ingress", b.IngressRate, b.IngressBurst}, {"egress", b.EgressRate, b.EgressBurst}} {
		switch {
		case way.rate == 0 && way.burst > 0:
			return badValue(prefix+way.name+"Burst", way.burst, "a burst needs a rate: give "+way.name+"Rate too, or neither")
		case way.rate > 0 && way.burst == 0:
			return badValue(prefix+way.name+"Rate", way.rate, "a rate needs a burst: give "+way.name+"Burst too, or neither")
		case way.burst > maxBurst:
			return badValue(prefix+way.name+"Burst", way.burst, "want less than 4 GiB, in bits")
		}
	}
	return nil
}

// bandwidth returns the limits in the daemon's terms, nil for none. Of the
// configuration's and the runtime's the stricter holds, so that both are kept.
func (c *config) bandwidth() *control.Bandwidth {
	own, asked := c.Bandwidth, c.Runtime.Bandwidth
	b := control.Bandwidth{
		FromContainer: stricter(rate(own.EgressRate, own.EgressBurst), rate(asked.EgressRate, asked.EgressBurst)),
		ToContainer:   stricter(rate(own.IngressRate, own.IngressBurst), rate(asked.IngressRate, asked.IngressBurst)),
	}
	if b == (control.Bandwidth{}) {
		return nil
	}
	return &b
}

const (
	// maxWait is how long a packet may wait in the container's own queue for a
	// limited rate, as the switch has it in the other direction.
	maxWait = 100 * time.Millisecond
	// minQueueLen lets some superframes of TCP wait at any rate.
	minQueueLen = 8
)

// queueLen is the length in frames of the container's own queue, in which what it
// sends waits for its rate; 0, the device's default, for none. In the default's
// 2,000 frames a ping would wait 4.5 s behind a flood of datagrams at 5 Mbit/s.
func queueLen(b *control.Bandwidth) int {
	if b == nil || b.FromContainer.BitsPerSecond == 0 {
		return 0
	}
	const frameBits = 8 * 1500 // the MTU of limited links
	frames := b.FromContainer.BitsPerSecond / uint64(time.Second/maxWait) / frameBits
	return int(min(max(frames, minQueueLen), tunnel.DefaultQueueLen))
}

func rate(bits, burst uint64) control.Rate {
	if burst >= anyBurst {
		burst = 0 // the daemon's choice
	}
	return control.Rate{BitsPerSecond: bits, BurstBits: burst}
}

// stricter returns the lower of two rates, of which zero is none.
func stricter(a, b control.Rate) control.Rate {
	if a.BitsPerSecond == 0 || b.BitsPerSecond > 0 && b.BitsPerSecond < a.BitsPerSecond {
		return b
	}
	return a
}
