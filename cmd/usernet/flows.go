package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/netstack"
)

func (a *app) flowsCommand() *cobra.Command {
	var q control.FlowQuery
	cmd := a.jsonFlag(&cobra.Command{
		Use:   "flows [LINK]",
		Short: "List conversations: who talks to whom, and what is refused",
		Long:  "Lists the conversations of containers: those that are open and those that ended\nlately, refused ones too.\n\n" + refHelp,
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if len(argv) == 1 {
				q.Link = argv[0]
			}
			flows, err := a.client().Flows(cmd.Context(), q)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(flows)
			}
			a.printFlows(flows)
			return nil
		},
	})
	cmd.Flags().StringVar(&q.Network, "network", "", "only those of network `NAME`")
	return cmd
}

// printFlows prints the table of flows.
func (a *app) printFlows(flows []control.Flow) {
	t := table{head: []string{"LINK", "DIRECTION", "PROTO", "SOURCE", "DESTINATION", "SENT", "RECEIVED", "STATE", "AGE"}, colour: flowColour}
	for _, f := range flows {
		t.add(shortLink(f.Link), f.Direction, f.Proto, endpoint(f.Source, f.Proto), destination(f),
			size(f.FromContainerBytes), size(f.ToContainerBytes), flowState(f), age(f.Start))
	}
	t.print(a.stdout, a.painter(a.stdout))
}

// shortLink leaves out what is the same for nearly all links.
func shortLink(id string) string {
	key, err := control.ParseLinkKey(id)
	if err != nil {
		return id
	}
	return key.Network + "/" + shortID(key.Container)
}

// endpoint leaves out the port where the protocol has none.
func endpoint(a netip.AddrPort, proto string) string {
	if !a.IsValid() {
		return ""
	}
	if proto == "tcp" || proto == "udp" {
		return a.String()
	}
	return a.Addr().String()
}

func destination(f control.Flow) string {
	text := endpoint(f.Destination, f.Proto)
	if f.Target.IsValid() && f.Target != f.Destination {
		text += " -> " + endpoint(f.Target, f.Proto)
	}
	if f.Peer != "" {
		text += " (" + shortLink(f.Peer) + ")"
	}
	return text
}

// flowState says what became of a flow, and why.
func flowState(f control.Flow) string {
	state := "open"
	switch {
	case f.Verdict == string(netstack.FlowDropped):
		state = "refused"
	case f.Verdict == string(netstack.FlowError):
		state = "failed"
	case !f.End.IsZero():
		state = "ended"
	}
	if f.Reason != "" {
		state += ": " + f.Reason
	}
	return state
}

func flowColour(_ int, text string) string {
	switch state, _, _ := strings.Cut(text, ":"); state {
	case "refused":
		return red
	case "failed":
		return yellow
	case "open":
		return green
	}
	return ""
}

func (a *app) statsCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "stats [NETWORK]",
		Short: "Count packets, bytes and drops by reason",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			network := ""
			if len(argv) == 1 {
				network = argv[0]
			}
			stats, err := a.client().Stats(cmd.Context(), network)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(stats)
			}
			t := table{head: []string{"NETWORK", "LINK", "FLOWS", "SENT", "PACKETS", "RECEIVED", "PACKETS", "DROPS"}}
			row := func(network, link, flows string, c control.Counters, d map[string]uint64) {
				t.add(network, link, flows, size(c.FromContainerBytes), strconv.FormatUint(c.FromContainerPackets, 10),
					size(c.ToContainerBytes), strconv.FormatUint(c.ToContainerPackets, 10), drops(d))
			}
			for _, n := range stats.Networks {
				row(n.Network, "(all)", strconv.Itoa(n.Flows), n.Counters, n.Drops)
				for _, l := range n.Links {
					row(n.Network, strings.TrimPrefix(l.ID, n.Network+"/"), "", l.Counters, l.Drops)
				}
			}
			t.print(a.stdout, a.painter(a.stdout))
			return nil
		},
	})
}

// drops writes counts by reason.
func drops(d map[string]uint64) string {
	var all []string
	for _, reason := range slices.Sorted(maps.Keys(d)) {
		if d[reason] > 0 {
			all = append(all, fmt.Sprintf("%s=%d", reason, d[reason]))
		}
	}
	return strings.Join(all, " ")
}

func (a *app) captureCommand() *cobra.Command {
	var (
		q    control.CaptureQuery
		path string
	)
	cmd := &cobra.Command{
		Use:   "capture [LINK]",
		Short: "Write packets as pcapng, for wireshark",
		Long: `Writes the packets of a container's link as pcapng until interrupted or the link's
end. Without LINK, those of all links, or with --network of one network.

` + refHelp,
		Example: `  usernet capture web | tshark -r -
  usernet capture web -w web.pcapng
  usernet capture --network ci | wireshark -k -i -`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if len(argv) == 1 {
				q.Link = argv[0]
			}
			return a.capture(cmd.Context(), q, path)
		},
	}
	cmd.Flags().StringVarP(&path, "write", "w", "", "write to `FILE` instead of standard output")
	cmd.Flags().StringVar(&q.Network, "network", "", "only links of network `NAME`")
	cmd.Flags().IntVar(&q.SnapLen, "snaplen", 0, "keep only `BYTES` of each packet (default all)")
	return cmd
}

func (a *app) capture(ctx context.Context, q control.CaptureQuery, path string) error {
	w := a.stdout
	if path != "" {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		w = f
	} else if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return errors.New("a capture is no text for a terminal; write it to a file with -w, or into a pipe: usernet capture … | tshark -r -")
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := a.client().Capture(ctx, q, w)
	if errors.Is(err, syscall.EPIPE) { // the reader has seen enough
		return nil
	}
	return err
}
