package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/sandbox"
)

func (a *app) publishCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "publish LINK PORTS...",
		Short: "Let ports of this machine lead to a running container",
		Long: `Opens ports of this machine that lead to a container, until "usernet unpublish"
or the container's end. PORTS are written as for "usernet run --publish". The
sockets are opened by this command and handed to the daemon, so ports below 1024
need this command's rights only.

` + refHelp,
		Example: `  usernet publish web 8080:80
  usernet publish web 0.0.0.0:443 127.0.0.1:5353:53/udp`,
		Args:              args(cobra.MinimumNArgs(2)),
		ValidArgsFunction: a.completeLink,
		RunE: func(cmd *cobra.Command, argv []string) error {
			var wanted []sandbox.Publish
			for _, spec := range argv[1:] {
				some, err := sandbox.ParsePublish(spec)
				if err != nil {
					return usageError(cmd, err)
				}
				wanted = append(wanted, some...)
			}
			made, err := a.publishAll(cmd, argv[0], wanted)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(made)
			}
			for _, p := range made {
				fmt.Fprintf(a.stdout, "%s  %s\n", p.ID, ports([]control.Publication{p}))
			}
			return nil
		},
	})
}

// publishAll makes all publications or none.
func (a *app) publishAll(cmd *cobra.Command, link string, wanted []sandbox.Publish) ([]control.Publication, error) {
	var made []control.Publication
	for _, p := range wanted {
		one, err := a.publishOne(cmd, link, p)
		if err != nil {
			for _, m := range made {
				if uerr := a.client().Unpublish(cmd.Context(), m.ID); uerr != nil {
					err = errors.Join(err, fmt.Errorf("take back %s: %w", m.ID, uerr))
				}
			}
			return nil, err
		}
		made = append(made, one)
	}
	return made, nil
}

func (a *app) publishOne(cmd *cobra.Command, link string, p sandbox.Publish) (control.Publication, error) {
	request := control.PublishRequest{Link: link, PublicationSpec: control.PublicationSpec{
		Proto: p.Proto, HostIP: p.Host.Addr(), HostPort: p.Host.Port(), Port: p.Port,
	}}
	// Only a port that the daemon may not open itself is worth a socket made
	// here: of a conflict the daemon can say more.
	socket, err := privilegedSocket(cmd, p)
	if err != nil {
		return control.Publication{}, err
	}
	if socket == nil {
		return a.client().Publish(cmd.Context(), request)
	}
	defer socket.Close()
	request.FD = true
	return a.client().Publish(cmd.Context(), request, socket)
}

// privilegedSocket opens the host's socket when its port is one that ordinary
// users may not open; nil for any other.
func privilegedSocket(cmd *cobra.Command, p sandbox.Publish) (*os.File, error) {
	if p.Host.Port() == 0 || p.Host.Port() >= firstFreePort() {
		return nil, nil
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	if p.Proto == "udp" {
		c, err := config.ListenPacket(cmd.Context(), "udp", p.Host.String())
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return fileOf(c)
	}
	l, err := config.Listen(cmd.Context(), "tcp", p.Host.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return fileOf(l)
}

func fileOf(socket any) (*os.File, error) {
	f, ok := socket.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("%T has no descriptor", socket)
	}
	return f.File()
}

// firstFreePort is the first port that ordinary users may listen on.
func firstFreePort() uint16 {
	n, err := strconv.ParseUint(readSysctl("net/ipv4/ip_unprivileged_port_start"), 10, 16)
	if err != nil {
		return 1024
	}
	return uint16(n)
}

func (a *app) unpublishCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unpublish ID...",
		Short: "Close published ports",
		Long: `Closes published ports by the ids that "usernet port ls" shows. Connections that
are open stay open. A port that is redirected leads nowhere then, and stays so
until the last of those that were published with it is closed.`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, ids []string) error {
			var errs []error
			for _, id := range ids {
				if err := a.client().Unpublish(cmd.Context(), id); err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(a.stdout, id)
			}
			return errors.Join(errs...)
		},
	}
}

func (a *app) portCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "port",
		Short: "List published ports",
		Args:  a.group,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.jsonFlag(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List published ports",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.client().Publications(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(all)
			}
			t := table{head: []string{"ID", "HOST", "PROTO", "LINK", "PORT"}}
			for _, p := range all {
				host := netip.AddrPortFrom(p.HostIP, p.HostPort).String()
				if p.SocketPort != 0 {
					host += fmt.Sprintf(" (redirected to %d)", p.SocketPort)
				}
				t.add(p.ID, host, p.Proto, p.Link, strconv.Itoa(int(p.Port)))
			}
			t.print(a.stdout, a.painter(a.stdout))
			return nil
		},
	}))
	return cmd
}
