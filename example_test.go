package usernet_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"

	"github.com/usernet/usernet"
	"github.com/usernet/usernet/netstack"
)

// A command sees an interface, routes and a resolver of its own. (A program must
// have called Init first in main.)
func ExampleCommand() {
	cmd := usernet.Command("grep", "nameserver", "/etc/resolv.conf")
	cmd.Private.Subnets = []netip.Prefix{
		netip.MustParsePrefix("10.90.0.0/24"),
		netip.MustParsePrefix("fd90::/64"),
	}
	out, err := cmd.Output()
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(out)
	fmt.Println(cmd.Addrs())
	// Output:
	// nameserver 10.90.0.1
	// nameserver fd90::1
	// [10.90.0.2/24 fd90::2/64]
}

// Commands on one Network reach each other by name, and the program reaches
// them by DialContext.
func ExampleNetwork() {
	network, err := usernet.NewNetwork(usernet.NetworkConfig{Name: "lab"})
	if err != nil {
		log.Fatal(err)
	}
	defer network.Close()

	server := usernet.Command("/proc/self/exe", "echo", ":7") // this very program, see main_test.go
	server.Network, server.Name = network, "echo"
	ready, err := server.StdoutPipe()
	if err != nil {
		log.Fatal(err)
	}
	if err := server.Start(); err != nil {
		log.Fatal(err)
	}
	defer func() {
		server.Process.Kill()
		server.Wait()
	}()
	io.ReadFull(ready, make([]byte, len("ready")))

	conn, err := network.DialContext(context.Background(), "tcp", "echo:7")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(conn, "hello")
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(line)
	conn.Close()
	// Output: hello
}

// A host service opens a single port of the host's loopback, and nothing else of
// it.
func ExampleNetworkConfig_hostServices() {
	database, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer database.Close()
	go func() {
		conn, err := database.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "ready\n")
	}()

	target := netip.MustParseAddrPort(database.Addr().String())
	cmd := usernet.Command("/proc/self/exe", "fetch", fmt.Sprintf("database:%d", target.Port()))
	cmd.Private.HostServices = []netstack.HostService{{Name: "database", Target: target}}
	out, err := cmd.Output()
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(out)
	// Output: ready
}
