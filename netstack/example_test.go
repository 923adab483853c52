package netstack_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/usernet/usernet/netstack"
	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

// A network has a gateway address per family; containers are attached to it by
// their devices.
func ExampleNew() {
	network, err := netstack.New(netstack.Config{
		Name: "blue",
		Gateways: []netip.Prefix{
			netip.MustParsePrefix("10.88.0.1/24"),
			netip.MustParsePrefix("fd00:88::1/64"),
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer network.Close()

	// In earnest the device comes from tunnel.Open; this one is a pair of
	// queues, and the far end plays the container's kernel.
	device, container := tunneltest.Pair(netstack.DefaultMTU)
	defer container.Close()

	link, err := network.Attach(device, netstack.LinkConfig{
		Name:    "web",
		Aliases: []string{"www"},
		Addrs:   []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd00:88::2")},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(link.Name(), link.Addrs())

	// The link is gone when its container dies; here we take it off.
	if err := link.Detach(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(network.Links()), "links")
	// Output:
	// web [10.88.0.2 fd00:88::2]
	// 0 links
}

// A runtime that makes its own namespaces hands the switch a TUN descriptor,
// publishes a port, and talks to the container itself.
func ExampleSwitch_Attach() {
	network, err := netstack.New(netstack.Config{Gateways: []netip.Prefix{netip.MustParsePrefix("10.88.0.1/24")}})
	if err != nil {
		log.Fatal(err)
	}
	defer network.Close()

	// Made in this namespace, to be moved into the container's and configured
	// there: then its death shows here at once.
	file, err := tunnel.Create(tunnel.Options{MTU: netstack.DefaultMTU})
	if err != nil {
		log.Fatal(err)
	}
	device, err := tunnel.Open(file, netstack.DefaultMTU) // owns file from here
	if err != nil {
		file.Close()
		log.Fatal(err)
	}
	link, err := network.Attach(device, netstack.LinkConfig{
		Name: "web", Addrs: []netip.Addr{netip.MustParseAddr("10.88.0.2")},
	}) // owns device from here
	if err != nil {
		device.Close()
		log.Fatal(err)
	}

	// 127.0.0.1:8080 of the host leads to port 80 of the container.
	if _, err := network.Publish(netstack.PublishConfig{
		Link: "web", Proto: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:8080"), Port: 80,
	}); err != nil {
		log.Fatal(err)
	}

	// This program reaches the container by name, without a published port.
	client := http.Client{Transport: &http.Transport{DialContext: network.DialContext}}
	if resp, err := client.Get("http://web/"); err == nil {
		fmt.Println(resp.Status)
		resp.Body.Close()
	}

	<-link.Done()
	fmt.Fprintln(os.Stderr, "container ended:", link.Err())

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := network.Shutdown(ctx); err != nil {
		log.Print(err)
	}
}

// The host reaches containers at their addresses through a device of its own; it
// has the gateway's addresses there.
func ExampleSwitch_AttachHost() {
	network, err := netstack.New(netstack.Config{Gateways: []netip.Prefix{netip.MustParsePrefix("10.88.0.1/24")}})
	if err != nil {
		log.Fatal(err)
	}
	defer network.Close()

	// In earnest: a TUN in the host's namespace with the address 10.88.0.1/24.
	device, kernel := tunneltest.Pair(netstack.DefaultMTU)
	defer kernel.Close()
	host, err := network.AttachHost(device, netstack.HostLinkConfig{Name: "host"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(host.Addrs(), len(network.HostLinks()), len(network.Links()))
	// Output:
	// [10.88.0.1] 1 0
}
