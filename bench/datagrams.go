package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	datagramPort = 7002
	datagramSize = 1400
	// datagramBatch is how many datagrams a system call sends at most, or one
	// superframe holds.
	datagramBatch = 16
	// datagramQuiet ends a receiver to which nothing came for so long.
	datagramQuiet = 500 * time.Millisecond
	// datagramRest is how long a sender sleeps that is not late.
	datagramRest = 20 * time.Microsecond
)

// datagramStreams are datagrams by ends that cost as little as such ends can: each
// system call takes many. What iperf3 pays for a datagram, four system calls of its
// own, is as much as all that is between its ends.
func datagramStreams() Scenario {
	streams := []datagramStream{{name: "up"}, {name: "down", down: true}, {name: "segmented-up", segmented: true}}
	s := Scenario{Name: "datagrams", Applies: egresses}
	for _, d := range streams {
		s.Figures = append(s.Figures, Figure{Name: d.name, Unit: "Gbit/s", HigherIsBetter: true})
	}
	s.Run = func(ctx context.Context, b *Bench, _ Backend) ([]float64, error) {
		var figures []float64
		for _, d := range streams {
			offer := func(gbits float64) (streamResult, error) { return d.offer(ctx, b, gbits) }
			flood, err := offer(0)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", d.name, err)
			}
			best, err := highestRate(flood, offer)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", d.name, err)
			}
			figures = append(figures, best)
		}
		return figures, nil
	}
	return s
}

// datagramTime is how long a load lasts: half of others, for there are three to be
// bisected.
func (b *Bench) datagramTime() time.Duration { return b.duration / 2 }

// datagramStream is one load between container 0 and the outside.
type datagramStream struct {
	name      string
	down      bool
	segmented bool // superframes (UDP_SEGMENT), as programs that speak QUIC send them
}

// datagramResult is what an end prints.
type datagramResult struct{ Datagrams int64 }

// offer runs the two ends once; 0 is as much as can be.
func (d *datagramStream) offer(ctx context.Context, b *Bench, gbits float64) (streamResult, error) {
	ctx, cancel := context.WithTimeout(ctx, b.duration+10*time.Second)
	defer cancel()
	sender := []string{b.self, "probe", "send", "-time", b.datagramTime().String(), "-gbits", strconv.FormatFloat(gbits, 'f', -1, 64)}
	if d.segmented {
		sender = append(sender, "-segmented")
	}
	outside, inside := []string{b.self, "probe", "receive"}, sender
	if d.down {
		outside, inside = sender, outside
	}
	server, err := start(in(b.topo.Server, outside...)...)
	if err != nil {
		return streamResult{}, err
	}
	defer server.stop()
	if err := server.await(ctx, "socket", func() bool { return listens(b.topo.Server, "udp", datagramPort) }); err != nil {
		return streamResult{}, err
	}
	addr := net.JoinHostPort(serverV4, strconv.Itoa(datagramPort))
	out, err := output(ctx, in(b.topo.Containers[0], append(inside, "-addr", addr)...)...)
	if err != nil {
		return streamResult{}, err
	}
	printed, err := server.result(ctx)
	var there, here datagramResult
	err = errors.Join(err, json.Unmarshal([]byte(printed), &there), json.Unmarshal(out, &here))
	if err != nil {
		return streamResult{}, fmt.Errorf("%w: %s", err, tail(printed))
	}
	sent, got := here.Datagrams, there.Datagrams
	if d.down {
		sent, got = got, sent
	}
	if got == 0 {
		return streamResult{}, fmt.Errorf("none of %d datagrams arrived", sent)
	}
	return streamResult{
		gbits:       float64(got) * datagramSize * 8 / 1e9 / b.datagramTime().Seconds(),
		lostPercent: 100 * (1 - float64(got)/float64(sent)),
	}, nil
}

// datagramSocket returns a socket to addr, or one that whoever says hello first is
// the peer of.
func datagramSocket(addr string) (*net.UDPConn, error) {
	open := func() (net.Conn, error) { return net.Dial("udp4", addr) }
	if addr == "" {
		open = func() (net.Conn, error) { return net.ListenUDP("udp4", &net.UDPAddr{Port: datagramPort}) }
	}
	conn, err := open()
	if err != nil {
		return nil, err
	}
	c := conn.(*net.UDPConn)
	// As much as the kernel lets.
	return c, errors.Join(c.SetReadBuffer(4<<20), c.SetWriteBuffer(4<<20))
}

// receiveDatagrams counts until nothing comes any more. From a peer at addr it
// asks for them.
func receiveDatagrams(addr string) (datagramResult, error) {
	c, err := datagramSocket(addr)
	if err != nil {
		return datagramResult{}, err
	}
	defer c.Close()
	quiet := 10 * datagramQuiet // until the first comes
	if addr != "" {
		if _, err := c.Write([]byte("hello")); err != nil {
			return datagramResult{}, err
		}
	}
	batch := newDatagrams(datagramBatch)
	p := ipv4.NewPacketConn(c)
	var r datagramResult
	var until time.Time
	for {
		if now := time.Now(); until.Sub(now) < quiet/2 {
			until = now.Add(quiet)
			if err := c.SetReadDeadline(until); err != nil {
				return r, err
			}
		}
		n, err := p.ReadBatch(batch, 0)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		if r.Datagrams == 0 {
			quiet, until = datagramQuiet, time.Time{}
		}
		r.Datagrams += int64(n)
	}
}

// newDatagrams returns buffers of n datagrams.
func newDatagrams(n int) []ipv4.Message {
	batch := make([]ipv4.Message, n)
	for i := range batch {
		batch[i].Buffers = [][]byte{make([]byte, datagramSize)}
	}
	return batch
}

// sendDatagrams sends at a rate, or as fast as it can, to addr or to whoever asks
// for them.
func sendDatagrams(addr string, gbits float64, segmented bool, d time.Duration) (datagramResult, error) {
	c, err := datagramSocket(addr)
	if err != nil {
		return datagramResult{}, err
	}
	defer c.Close()
	if addr == "" {
		hello := make([]byte, datagramSize)
		_, peer, err := c.ReadFromUDPAddrPort(hello)
		if err != nil {
			return datagramResult{}, err
		}
		if err := connectDatagrams(c, peer.Port(), peer.Addr().Unmap().As4()); err != nil {
			return datagramResult{}, err
		}
	}
	send, err := datagramSender(c, segmented)
	if err != nil {
		return datagramResult{}, err
	}
	perSecond := gbits * 1e9 / 8 / datagramSize
	rest := unix.NsecToTimespec(int64(datagramRest))
	var r datagramResult
	for begin := time.Now(); ; {
		passed := time.Since(begin)
		if passed >= d {
			return r, nil
		}
		if gbits > 0 && float64(r.Datagrams+datagramBatch) > passed.Seconds()*perSecond {
			_ = unix.Nanosleep(&rest, nil) // one that a signal ends is as good
			continue
		}
		n, err := send()
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return r, err
		}
		r.Datagrams += int64(n)
	}
}

// connectDatagrams gives a listening socket its peer.
func connectDatagrams(c *net.UDPConn, port uint16, addr [4]byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Control(func(fd uintptr) {
		result = unix.Connect(int(fd), &unix.SockaddrInet4{Port: int(port), Addr: addr})
	})
	return errors.Join(err, result)
}

// datagramSender returns a function that sends up to datagramBatch datagrams by one
// system call.
func datagramSender(c *net.UDPConn, segmented bool) (send func() (int, error), err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if !segmented {
		batch, p := newDatagrams(datagramBatch), ipv4.NewPacketConn(c)
		return func() (int, error) { return p.WriteBatch(batch, 0) }, nil
	}
	var result error
	err = raw.Control(func(fd uintptr) {
		result = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, datagramSize)
	})
	superframe := make([]byte, datagramBatch*datagramSize)
	return func() (int, error) {
		n, err := c.Write(superframe)
		return n / datagramSize, err
	}, errors.Join(err, result)
}
