package nstest

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/netns"
)

// Answer answers at an address of ns, until the test's end, whoever asks: with
// its name and the address that it sees of the client, without the port. network
// and address are [net.Listen]'s. It returns the port.
func Answer(t testing.TB, ns *netns.Handle, name, network, address string) uint16 {
	t.Helper()
	reply := func(to net.Addr) []byte {
		return []byte(name + " " + netip.MustParseAddrPort(to.String()).Addr().Unmap().String())
	}
	var at net.Addr
	if network[:3] == "udp" {
		c := ListenPacket(t, ns, network, address)
		at = c.LocalAddr()
		go func() { // ends with the socket
			b := make([]byte, 64)
			for {
				_, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(reply(from), from) // who asked judges
			}
		}()
	} else {
		l := Listen(t, ns, network, address)
		at = l.Addr()
		go func() { // ends with the listener
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write(reply(c.RemoteAddr())) // who asked judges
				_ = c.Close()
			}
		}()
	}
	return netip.MustParseAddrPort(at.String()).Port()
}

// askPatience bounds the wait for an answer.
const askPatience = 15 * time.Second

// Ask asks from ns what answers at an address, "tcp" or "udp", and returns the
// answer or the error's text.
func Ask(t testing.TB, ns *netns.Handle, network, address string) string {
	t.Helper()
	c, err := Dial(t, ns, network, address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	return AskOver(c)
}

// AskOver is Ask on a connection that there is.
func AskOver(c net.Conn) string {
	if err := c.SetDeadline(time.Now().Add(askPatience)); err != nil {
		return err.Error()
	}
	if _, ok := c.(*net.UDPConn); ok {
		if _, err := fmt.Fprint(c, "?"); err != nil {
			return err.Error()
		}
	}
	b := make([]byte, 256)
	n, err := c.Read(b)
	if err != nil {
		return err.Error()
	}
	return string(b[:n])
}
