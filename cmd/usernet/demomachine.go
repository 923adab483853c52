package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/usernet/usernet"
	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/daemon"
	"github.com/usernet/usernet/netstack"
)

// demo is the run of the demo inside its machine.
type demo struct {
	*app
	paint   painter
	ctx     context.Context
	world   *demoWorld
	network *usernet.Network
	web     *usernet.Cmd
	steps   int
}

// demoMachine runs all steps. It is the whole of the machine's process, which
// leaves nothing behind when it ends.
func (a *app) demoMachine() error {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 6*demoPatience)
	defer cancel()
	d := &demo{app: a, paint: a.painter(a.stdout), ctx: ctx}
	defer d.close()
	for _, step := range []func() error{
		d.makeWorld, d.makeNetwork, d.startWeb, d.peer, d.egress, d.ingress, d.loopback, d.hostService, d.flows,
	} {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", d.steps, err)
		}
	}
	d.say("")
	d.say(d.paint.paint(green, fmt.Sprintf("All %d steps worked, in %.1f seconds.", d.steps, time.Since(begun).Seconds())))
	return nil
}

func (d *demo) close() {
	if d.web != nil {
		d.web.Process.Kill()
		_ = d.web.Wait() // it says that it was killed
	}
	if d.network != nil {
		d.network.Close()
	}
}

func (d *demo) say(text string) { fmt.Fprintln(d.stdout, text) }

// step begins a step.
func (d *demo) step(text string) {
	d.steps++
	if d.steps > 1 {
		d.say("")
	}
	d.say(d.paint.paint(bold, fmt.Sprintf("%d. %s", d.steps, text)))
}

func (d *demo) shows(what, answer string) {
	d.say(fmt.Sprintf("   %-52s %s", what, d.paint.paint(green, answer)))
}

func (d *demo) makeWorld() (err error) {
	d.step("A machine and an outside world, made for this demo and gone after it")
	if d.world, err = makeDemoWorld(); err != nil {
		return err
	}
	d.shows("the machine", fmt.Sprintf("%s  %s", machine4, machine6))
	d.shows("the outside world, "+outsideName, fmt.Sprintf("%s  %s", outside4, outside6))
	return nil
}

func (d *demo) makeNetwork() (err error) {
	d.step("A network, which is a part of this process: no bridge, no firewall rules")
	d.network, err = usernet.NewNetwork(usernet.NetworkConfig{
		Name:         "demo",
		DNS:          []netip.AddrPort{netip.AddrPortFrom(outside4, 53)},
		HostServices: []netstack.HostService{{Name: "database", Target: d.world.database}},
	})
	return err
}

// startWeb starts the sandbox that the others talk to, and waits until it does
// listen.
func (d *demo) startWeb() error {
	d.step("A sandbox \"web\" serves HTTP on its port 80, published as port 8080 of the machine")
	web := d.program("web", "web")
	web.Publish = []string{"0.0.0.0:8080:80", "[::]:8080:80"}
	out, err := web.StdoutPipe()
	if err != nil {
		return err
	}
	if err := web.Start(); err != nil {
		return err
	}
	d.web = web
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "listening\n" {
		return fmt.Errorf("the sandbox says %q instead of listening: %w", line, err)
	}
	var addrs []string
	for _, a := range web.Addrs() {
		addrs = append(addrs, a.Addr().String())
	}
	d.shows("web", strings.Join(addrs, "  "))
	return nil
}

// program is a program of the demo's in a sandbox of that name.
func (d *demo) program(name string, args ...string) *usernet.Cmd {
	cmd := usernet.CommandContext(d.ctx, "/proc/self/exe")
	cmd.Args = append([]string{demoArg0}, args...)
	cmd.Network, cmd.Name = d.network, name
	cmd.Stderr = d.stderr
	return cmd
}

// inClient runs a program in the sandbox "client" and returns what it printed,
// and the sandbox's address of a family.
func (d *demo) inClient(args ...string) (string, []netip.Prefix, error) {
	cmd := d.program("client", args...)
	out, err := cmd.Output()
	if err != nil {
		return "", nil, fmt.Errorf("%s in the sandbox \"client\": %w", strings.Join(args, " "), err)
	}
	return string(bytes.TrimSpace(out)), cmd.Addrs(), nil
}

// families are what every conversation of the demo is tried over.
var families = []struct{ network, name string }{{"tcp4", "IPv4"}, {"tcp6", "IPv6"}}

func (d *demo) peer() error {
	d.step("A second sandbox \"client\" reaches the first by its name")
	for i, family := range families {
		answer, own, err := d.inClient("get", family.network, "http://web/")
		if err != nil {
			return err
		}
		if err := expect(answer, "this is web, you are "+own[i].Addr().String()); err != nil {
			return err
		}
		d.shows("client$ get http://web/  ("+family.name+")", answer)
	}
	return nil
}

func (d *demo) egress() error {
	d.step("It reaches the outside, which sees the machine's address")
	for i, family := range families {
		answer, _, err := d.inClient("get", family.network, "http://"+outsideName+"/")
		if err != nil {
			return err
		}
		seen := []netip.Addr{machine4, machine6}[i]
		if err := expect(answer, "this is the outside world, you are "+seen.String()); err != nil {
			return err
		}
		d.shows("client$ get http://"+outsideName+"/  ("+family.name+")", answer)
	}
	return nil
}

func (d *demo) ingress() error {
	d.step("The outside reaches the published port, and the sandbox sees who it really is")
	for i, family := range families {
		url := "http://" + netip.AddrPortFrom([]netip.Addr{machine4, machine6}[i], 8080).String() + "/"
		answer, err := d.world.get(d.ctx, family.network, url)
		if err != nil {
			return err
		}
		client := []netip.Addr{outside4, outside6}[i]
		if err := expect(answer, "this is web, you are "+client.String()); err != nil {
			return err
		}
		d.shows("outside$ get "+url, answer)
	}
	return nil
}

// loopback tries the ways on which other tools let a container reach what
// listens on the machine's loopback only.
func (d *demo) loopback() error {
	d.step("The machine's loopback is out of reach")
	port := d.world.closed.Port()
	gateway := netip.Addr{}
	for _, link := range d.network.Switch().Links() {
		gateway = link.Addrs()[0].Prev() // the first address; web has the second
	}
	for _, target := range []struct {
		what string
		addr netip.Addr
		want string
	}{
		{"its own loopback", d.world.closed.Addr(), "refused"},
		{"the gateway", gateway, "refused"},
		{"the machine's address", machine4, "prohibited"},
	} {
		at := netip.AddrPortFrom(target.addr, port).String()
		answer, _, err := d.inClient("knock", at)
		if err != nil {
			return err
		}
		if err := expect(answer, target.want); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		d.shows("client$ connect "+at, answer+"  ("+target.what+")")
	}
	return nil
}

func (d *demo) hostService() error {
	d.step("But for the one service that was opened by name")
	url := fmt.Sprintf("http://database:%d/", d.world.database.Port())
	answer, _, err := d.inClient("get", "tcp4", url)
	if err != nil {
		return err
	}
	if err := expect(answer, "this is the database, you are 127.0.0.1"); err != nil {
		return err
	}
	d.shows("client$ get "+url, answer)
	return nil
}

// flows shows the table, which must hold one flow of every kind.
func (d *demo) flows() error {
	d.step("Every conversation was seen")
	var shown []control.Flow
	var missing []error
	all := d.network.Flows()
	for _, f := range all {
		if f.Proto == "tcp" {
			shown = append(shown, daemon.FlowOf(f))
		}
	}
	for _, direction := range []netstack.FlowDirection{netstack.FlowPeer, netstack.FlowEgress, netstack.FlowIngress, netstack.FlowService} {
		if !slices.ContainsFunc(all, func(f netstack.Flow) bool { return f.Direction == direction }) {
			missing = append(missing, fmt.Errorf("no flow of direction %s", direction))
		}
	}
	if !slices.ContainsFunc(all, func(f netstack.Flow) bool { return f.Verdict == netstack.FlowDropped }) {
		missing = append(missing, errors.New("no flow was refused"))
	}
	d.printFlows(shown)
	return errors.Join(missing...)
}

func expect(got, want string) error {
	if got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}
