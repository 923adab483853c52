package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Either end may be the one that waits, and what is sent one by one and as
// superframes is counted alike.
func TestDatagrams(t *testing.T) {
	at := net.JoinHostPort("127.0.0.1", strconv.Itoa(datagramPort))
	for name, c := range map[string]struct{ segmented, down bool }{
		"up": {}, "down": {down: true}, "segmented": {segmented: true}, "segmented down": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			sendAddr, receiveAddr := at, ""
			if c.down {
				sendAddr, receiveAddr = "", at
			}
			const gbits, d = 0.1, 200 * time.Millisecond
			var sent datagramResult
			var sendErr error
			done := make(chan struct{})
			send := func() {
				defer close(done)
				sent, sendErr = sendDatagrams(sendAddr, gbits, c.segmented, d)
			}
			got, err := eitherFirst(t, c.down, send, func() (datagramResult, error) { return receiveDatagrams(receiveAddr) })
			<-done
			if err != nil || sendErr != nil {
				t.Fatalf("send: %v, receive: %v", sendErr, err)
			}
			want := gbits * 1e9 / 8 / datagramSize * d.Seconds()
			if got != sent || float64(got.Datagrams) < want/2 || float64(got.Datagrams) > want {
				t.Errorf("%d of %d arrived, want nearly %.0f", got.Datagrams, sent.Datagrams, want)
			}
		})
	}
}

// eitherFirst runs the end that waits and, when its socket is there, the other.
func eitherFirst(t *testing.T, senderWaits bool, send func(), receive func() (datagramResult, error)) (datagramResult, error) {
	t.Helper()
	if senderWaits {
		go send()
		awaitSocket(t)
		return receive()
	}
	go func() {
		awaitSocket(t)
		send()
	}()
	return receive()
}

// awaitSocket returns when somebody holds the port.
func awaitSocket(t *testing.T) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 5000 {
		sockets, err := os.ReadFile("/proc/self/net/udp")
		if err == nil && strings.Contains(string(sockets), fmt.Sprintf(":%04X ", datagramPort)) {
			return
		}
		<-tick.C
	}
	t.Error("no socket")
}
