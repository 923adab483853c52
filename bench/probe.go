package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// probePort is where the probe's server answers over TCP and UDP.
const probePort = 7001

// probeResult is what a probing client prints.
type probeResult struct {
	P50, P99 float64 // µs
	PerSec   float64
	Errors   int64
	Refused  int64 // queries, which are no errors
}

// probe is the load generator for small messages and datagrams: the executable runs itself
// as "bench probe ROLE" in the namespaces of the topology.
func probe(args []string) error {
	runtime.GOMAXPROCS(1) // its threads must not be what is measured
	flags := flag.NewFlagSet("probe", flag.ContinueOnError)
	network := flags.String("net", "tcp", "tcp or udp")
	addr := flags.String("addr", "", "address and port of the server")
	clients := flags.Int("clients", 1, "at a time")
	duration := flags.Duration("time", 2*time.Second, "of the load")
	gbits := flags.Float64("gbits", 0, "of datagrams to send; 0: as many as can be")
	segmented := flags.Bool("segmented", false, "send datagrams as superframes")
	if len(args) == 0 {
		return errors.New("probe: want server, rr, crr, dns, send, receive, hold or get")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	var result any
	var err error
	switch args[0] {
	case "server":
		return serveProbes()
	case "get":
		return get(*addr)
	case "hold":
		return hold(*addr, *clients, *duration)
	case "rr":
		result, err = roundTrips(*network, *addr, *duration)
	case "crr":
		result = connections(*addr, *clients, *duration)
	case "dns":
		result = queries(*addr, *clients, *duration)
	case "send":
		result, err = sendDatagrams(*addr, *gbits, *segmented, *duration)
	case "receive":
		result, err = receiveDatagrams(*addr)
	default:
		err = fmt.Errorf("probe %q: want server, rr, crr, dns, send, receive, hold or get", args[0])
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// serveProbes echoes bytes over TCP and UDP and answers every DNS query.
func serveProbes() error {
	at := fmt.Sprintf(":%d", probePort)
	packets, err := net.ListenPacket("udp", at)
	if err != nil {
		return err
	}
	go echoPackets(packets)
	resolver := &dns.Server{Addr: ":53", Net: "udp", Handler: dns.HandlerFunc(answer)}
	go func() { fmt.Fprintln(os.Stderr, resolver.ListenAndServe()) }()
	l, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go echo(c)
	}
}

// echoPackets runs until the process ends.
func echoPackets(c net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		if n, from, err := c.ReadFrom(buf); err == nil {
			_, _ = c.WriteTo(buf[:n], from) // a lost answer is the client's to count
		}
	}
}

func echo(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 1)
	for {
		if _, err := io.ReadFull(c, buf); err != nil {
			return
		}
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func answer(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	if len(q.Question) == 1 && q.Question[0].Qtype == dns.TypeA {
		m.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, // TTL 0: nothing is cached
			A:   net.IPv4(192, 0, 2, 1),
		}}
	}
	_ = w.WriteMsg(m)
}

// get fetches one byte and prints it.
func get(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte{'x'}); err != nil {
		return err
	}
	_, err = io.CopyN(os.Stdout, c, 1)
	return err
}

// hold keeps idle connections open, says when they are there, and ends after
// the time or with its standard input.
func hold(addr string, n int, d time.Duration) error {
	conns := make([]net.Conn, 0, n)
	for range n {
		c, err := net.DialTimeout("tcp", addr, 10*time.Second)
		if err != nil {
			return fmt.Errorf("connection %d: %w", len(conns)+1, err)
		}
		conns = append(conns, c)
	}
	fmt.Println("held", len(conns))
	time.Sleep(d)
	return nil
}

// roundTrips measures one byte there and back on one connection.
func roundTrips(network, addr string, d time.Duration) (probeResult, error) {
	c, err := net.Dial(network, addr)
	if err != nil {
		return probeResult{}, err
	}
	defer c.Close()
	var took []time.Duration
	buf := make([]byte, 1)
	begin := time.Now()
	for end := begin.Add(d); time.Now().Before(end); {
		sent := time.Now()
		if _, err := c.Write(buf); err != nil {
			return probeResult{}, err
		}
		if err := c.SetReadDeadline(sent.Add(time.Second)); err != nil {
			return probeResult{}, err
		}
		if _, err := c.Read(buf); err != nil {
			if network == "udp" && errors.Is(err, os.ErrDeadlineExceeded) {
				continue // lost
			}
			return probeResult{}, err
		}
		took = append(took, time.Since(sent))
	}
	return summarize(took, time.Since(begin), 0), nil
}

func summarize(took []time.Duration, all time.Duration, errs int64) probeResult {
	if len(took) == 0 {
		return probeResult{Errors: errs}
	}
	slices.Sort(took)
	micro := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	return probeResult{
		P50: micro(took[len(took)/2]), P99: micro(took[len(took)*99/100]),
		PerSec: float64(len(took)) / all.Seconds(), Errors: errs,
	}
}

// connections measures connect, one byte there and back, close.
func connections(addr string, clients int, d time.Duration) probeResult {
	return repeat(clients, d, func() error {
		c, err := net.DialTimeout("tcp", addr, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		buf := make([]byte, 1)
		if _, err := c.Write(buf); err != nil {
			return err
		}
		_, err = c.Read(buf)
		return err
	})
}

// queries measures DNS questions, each of another name.
func queries(addr string, clients int, d time.Duration) probeResult {
	var n, refused atomic.Int64
	client := &dns.Client{Timeout: 2 * time.Second}
	result := repeat(clients, d, func() error {
		m := new(dns.Msg)
		m.SetQuestion(fmt.Sprintf("n%d.bench.example.", n.Add(1)), dns.TypeA)
		r, _, err := client.Exchange(m, addr)
		if err == nil && len(r.Answer) != 1 {
			err = fmt.Errorf("no answer: %v", dns.RcodeToString[r.Rcode])
			if r.Rcode == dns.RcodeRefused {
				refused.Add(1)
			}
		}
		return err
	})
	result.Refused = refused.Load()
	result.Errors -= result.Refused
	return result
}

// repeat has clients do something over and over for a time.
func repeat(clients int, d time.Duration, do func() error) probeResult {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		took []time.Duration
		errs atomic.Int64
	)
	begin := time.Now()
	for range clients {
		wg.Go(func() {
			var mine []time.Duration
			for time.Since(begin) < d {
				t := time.Now()
				if do() == nil {
					mine = append(mine, time.Since(t))
				} else {
					errs.Add(1)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	wg.Wait()
	return summarize(took, time.Since(begin), errs.Load())
}
